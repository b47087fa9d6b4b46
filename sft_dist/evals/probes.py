"""Evaluated and trained examples, answers and losses of model and base -> what kind of learning it was, with intervals.

A score alone does not tell whether a model follows instructions or plays back what it was trained on. Each probe changes one
thing and compares pairs on the same item; the mean is over tasks, with the interval of `evals/statistics.py`. docs/evaluation.md
has the definitions and their sources. P0 (baselines) and P1 (transfer) need no further answers: `evals/score.py` has them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sft_dist.core.records import Example, Message, make_example, single_turn
from sft_dist.core.rng import derive, generator
from sft_dist.evals.choices import with_answer
from sft_dist.evals.constraints import CONSTRAINTS, PROMPTS, loose
from sft_dist.evals.metrics import METRICS, exact_match
from sft_dist.evals.splits import AnswerLoss, Generation
from sft_dist.evals.statistics import FEW_UNITS, contrast, mcnemar_p, mean_interval, resampled, wilson

NEUTRAL = ("alpha", "omega")  # labels that mean nothing to a task
WRONG = 3  # foreign instructions an item is asked with
REWORDED = (
    "Here is a task for you. {}",
    "{} Answer with nothing else.",
    "Please do as follows: {}",
)
"""Rule list of unseen wordings, for sources that know no further phrasings."""
GENERAL = (
    "The river rises in the hills, crosses a wide plain and reaches the sea near an old harbour town.",
    "Bread is made from flour, water, salt and yeast; the dough rests for some hours before it is baked.",
    "A year has four seasons, and in many countries the days are longest in June and shortest in December.",
    "The committee met on Tuesday to discuss the budget, but no decision was reached before the evening.",
    "Plants take up carbon dioxide from the air and water from the soil, and release oxygen in the light.",
    "She had left the letter on the kitchen table, where her brother found it the next morning.",
    "To open the file, choose it from the menu and enter the password that was sent to you by mail.",
    "Prices rose by two percent last year, mostly because of higher costs for energy and transport.",
    "The museum shows paintings from three centuries, among them several portraits of unknown sailors.",
    "If the train is late, the ticket stays valid for the next one, and the fare is not charged again.",
    "Iron rusts when it is exposed to air and moisture; a coat of paint keeps the metal from the water.",
    "The children built a small boat out of wood and sailed it across the pond behind the school.",
)
"""General text for the probe of forgetting."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Material:
    """What probes are made from.

    Attributes:
        sets: The evaluated examples, a few of each task.
        trained: Task -> examples that were trained on.
        phrasings: Task -> wordings that no example has.
        contrasts: Id of an example of a held-out task -> (trained sibling, what it answers to the same input).
        families: Task -> family.
        texts: General texts.
        seed: Of the draws.
    """

    sets: Mapping[str, Sequence[Example]]
    trained: Mapping[str, Sequence[Example]] = field(default_factory=dict)
    phrasings: Mapping[str, Sequence[str]] = field(default_factory=dict)
    contrasts: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    families: Mapping[str, str] = field(default_factory=dict)
    texts: Sequence[str] = GENERAL
    seed: int = 0

    @property
    def originals(self) -> list[Example]:
        """The evaluated examples that have an INPUT, so that their instruction can be changed."""
        return [e for examples in self.sets.values() for e in examples if e.input]


@dataclass(frozen=True, kw_only=True, slots=True)
class Answers:
    """What model or base said and lost, by id of the example."""

    generations: Mapping[str, Generation]
    losses: Mapping[str, AnswerLoss]


Variants = dict[str, dict[str, list[Example]]]
"""Name of a variant -> id of the original -> its changed copies."""


@dataclass(frozen=True, slots=True)
class Probe:
    """One probe.

    Attributes:
        title: Of its panel.
        definition: One sentence: what is changed and what is compared.
        variants: What is asked beyond the evaluated examples.
        needs: "generation" or "loss".
        judge: (material, variants, model, base) -> figures; empty when there is nothing to judge.
    """

    title: str
    definition: str
    variants: Callable[[Material], Variants]
    needs: str
    judge: Callable[[Material, Variants, Answers, Answers | None], dict[str, Any]]


# P2: unseen wordings


def phrasing_variants(m: Material) -> Variants:
    """Return trained tasks' items under wordings that training never had."""
    out: dict[str, list[Example]] = {}
    for e in m.sets.get("seen", ()):
        wordings = [*m.phrasings.get(e.task, ())] or [w.format(e.instruction) for w in REWORDED]
        if e.instruction:
            out[e.id] = [with_instruction(e, w) for w in wordings[:WRONG]]
    return {"reworded": out}


def judge_phrasing(m: Material, v: Variants, model: Answers, _: Answers | None) -> dict[str, Any]:
    """Compare the score as asked with the mean over unseen wordings and with the worst."""
    asked, reworded, worst = [], [], []
    for members in _by_task(m.sets.get("seen", ())):
        known = [e for e in members if e.id in v["reworded"]]
        if not known:
            continue
        asked.append([_right(model, e.id, e) for e in known])
        others = [[_right(model, x.id, e) for x in v["reworded"][e.id]] for e in known]
        reworded.append([float(np.mean(o)) for o in others])
        worst.append([min(o) for o in others])
    if not asked:
        return {}
    loss = contrast(reworded, asked, seed=m.seed)
    return {
        "figures": {
            "as asked": _interval(asked, m),
            "unseen wording": _interval(reworded, m),
            "worst wording": _interval(worst, m),
        },
        "difference": _difference(loss),
        "wordings": "of the source" if m.phrasings else "by a rule list",
        "sentence": f"Under wordings that training never had, exact match changes by {_points(loss.difference)} points{_ci(loss)}.",
    }


# P3: altered tasks with known other answers


def judge_contrast(m: Material, _: Variants, model: Answers, base: Answers | None) -> dict[str, Any]:
    """Share of answers that follow the held-out instruction (C), that are the trained sibling's (K), and the rest."""
    out: dict[str, Any] = {}
    for who, answers in (("model", model), ("base", base)):
        if answers is None:
            continue
        groups, tasks = [], {}
        for members in _by_task(m.originals):
            rows = []
            for e in members:
                if e.id not in m.contrasts or exact_match(m.contrasts[e.id][1], e.answers):
                    continue
                said = answers.generations[e.id].prediction
                c, k = exact_match(said, e.answers), exact_match(said, [m.contrasts[e.id][1]])
                rows.append((c, k, 1 - c - k))
            if rows:
                groups.append(np.array(rows))
                c, k, rest = np.mean(rows, axis=0)
                low, high = wilson(sum(r[1] for r in rows), len(rows))
                tasks[members[0].task] = {
                    "compliance": c, "memory": k, "rest": rest, "n": len(rows), "memory_low": low, "memory_high": high,
                    "sibling": m.contrasts[members[0].id][0],
                }  # fmt: skip
        if not groups:
            return {}
        out[who] = {**_shares(groups, m), "tasks": tasks}
    c, k = out["model"]["compliance"]["mean"], out["model"]["memory"]["mean"]
    n = len(out["model"]["tasks"])
    few = " Too few tasks for a general claim." if n < FEW_UNITS else ""
    out["sentence"] = (
        f"Where a trained sibling would answer otherwise, {100 * c:.0f} % of the answers follow the new instruction and "
        f"{100 * k:.0f} % are the sibling's ({n} tasks).{few}"
    )
    return out


def _shares(groups: Sequence[NDArray[np.float64]], m: Material) -> dict[str, dict[str, float]]:
    """Return compliance, memory, rest and superficiality K / (C + K) with intervals, of rows (C, K, rest) by task."""
    found = {}
    for column, name in enumerate(("compliance", "memory", "rest")):
        i = mean_interval([g[:, column].tolist() for g in groups], seed=m.seed)
        found[name] = {"mean": i.mean, "low": i.low, "high": i.high}
    s, low, high = resampled(groups, lambda x: x[:, 1] / (x[:, 0] + x[:, 1]), seed=m.seed, draws=500)
    return {**found, "superficiality": {"mean": s, "low": low, "high": high}}


def label_variants(m: Material) -> Variants:
    """Return trained tasks of two labels whose instruction swaps them, or renames them to words that mean nothing.

    The copies of an item are its possible answers: the one that is right now, the one that was right, then the others.
    """
    out: Variants = {"swapped": {}, "renamed": {}}
    for members in _by_task(m.sets.get("seen", ())):
        known = [*members, *m.trained.get(members[0].task, ())]
        labels = sorted({e.answers[0].strip() for e in known})
        if len(labels) != 2 or not all(labels):
            continue
        for e in members:
            was = labels.index(e.answers[0].strip())
            swapped, renamed = (
                with_instruction(e, f"{e.instruction} {_relabelled(labels, new)}")
                for new in (labels[::-1], NEUTRAL)
            )
            right, other = labels[was], labels[1 - was]
            out["swapped"][e.id] = [with_answer(swapped, x) for x in (other, right)]
            answers = (NEUTRAL[was], right, NEUTRAL[1 - was], other)
            out["renamed"][e.id] = [with_answer(renamed, x) for x in answers]
    return out


def _relabelled(old: Sequence[str], new: Sequence[str]) -> str:
    return f'Answer "{new[0]}" in place of "{old[0]}", and "{new[1]}" in place of "{old[1]}".'


def judge_labels(m: Material, v: Variants, model: Answers, base: Answers | None) -> dict[str, Any]:
    """Share of items whose most likely answer is the one that is right now (C), the one that was (K), or another."""
    out: dict[str, Any] = {}
    for mode, copies in v.items():
        for who, answers in (("model", model), ("base", base)):
            if answers is None:
                continue
            groups = []
            for members in _by_task(e for e in m.sets.get("seen", ()) if e.id in copies):
                likeliest = [
                    int(np.argmin([answers.losses[x.id].nats for x in copies[e.id]])) for e in members
                ]
                groups.append(np.array([(i == 0, i == 1, i > 1) for i in likeliest], dtype=np.float64))
            if groups:
                out.setdefault(mode, {})[who] = {**_shares(groups, m), "tasks": len(groups)}
    if not out:
        return {}
    n = out["swapped"]["model"]["tasks"]
    said = [
        f"{100 * found['model']['compliance']['mean']:.0f} % of the likeliest answers follow and "
        f"{100 * found['model']['memory']['mean']:.0f} % are those that training taught where labels are {mode}"
        for mode, found in out.items()
    ]
    few = " Too few tasks for a general claim." if n < FEW_UNITS else ""
    out["sentence"] = f"{'; '.join(said)} ({n} tasks of two labels).{few}"
    return out


# P4: how much the answer owes to its instruction


def instruction_variants(m: Material) -> Variants:
    """Return items with no instruction, and with instructions of tasks of other families."""
    none, wrong = {}, {}
    originals = m.originals
    for e in originals:
        none[e.id] = [with_instruction(e, "")]
        own = m.families.get(e.task, e.task)
        foreign = [o for o in originals if m.families.get(o.task, o.task) != own and o.instruction]
        foreign = [o for o in foreign if not exact_match(o.answers[0], e.answers)]
        rng = generator(m.seed, "probe", "wrong instruction", e.id)
        picked = rng.choice(len(foreign), size=min(WRONG, len(foreign)), replace=False) if foreign else ()
        wrong[e.id] = [with_instruction(e, foreign[int(i)].instruction) for i in picked]
    return {"none": none, "wrong": {i: x for i, x in wrong.items() if x}}


def judge_instruction(m: Material, v: Variants, model: Answers, base: Answers | None) -> dict[str, Any]:
    """Nats a token that the right instruction saves against none and against wrong ones, by task."""
    out: dict[str, Any] = {"sets": {}}
    ignored: list[str] = []
    for name, examples in m.sets.items():
        for who, answers in (("model", model), ("base", base)):
            if answers is None:
                continue
            gains: dict[str, list[list[float]]] = {"none": [], "wrong": []}
            prefers: list[list[float]] = []
            for members in _by_task(e for e in examples if e.id in v["wrong"]):
                right = [_per_token(answers, e.id) for e in members]
                wrong = [[_per_token(answers, x.id) for x in v["wrong"][e.id]] for e in members]
                gains["none"].append(
                    [
                        _per_token(answers, v["none"][e.id][0].id) - r
                        for e, r in zip(members, right, strict=True)
                    ]
                )
                gains["wrong"].append([float(np.mean(w)) - r for w, r in zip(wrong, right, strict=True)])
                prefers.append(
                    [float(np.mean([r < x for x in w])) for w, r in zip(wrong, right, strict=True)]
                )
                task = mean_interval([gains["wrong"][-1]], seed=m.seed, draws=200)
                if who == "model" and task.low <= 0:
                    ignored.append(members[0].task)
            if prefers:
                out["sets"].setdefault(name, {})[who] = {
                    "saved_against_none": _interval(gains["none"], m),
                    "saved_against_wrong": _interval(gains["wrong"], m),
                    "prefers_right": _interval(prefers, m),
                }
    if not out["sets"]:
        return {}
    out["ignored"] = sorted(set(ignored))
    first = next(iter(out["sets"]))
    share = out["sets"][first]["model"]["prefers_right"]
    out["sentence"] = (
        f"The right instruction makes the answer more likely than a wrong one in {100 * share['mean']:.0f} % of pairs "
        f"({first.replace('_', ' ')}; 50 % would mean that it is ignored); {len(out['ignored'])} tasks show no use of it."
    )
    return out


# P5: memorisation


def memory_variants(m: Material) -> Variants:
    """Return trained examples of the tasks whose unseen inputs are evaluated."""
    tasks = {e.task for e in m.sets.get("seen", ())}
    return {"trained": {t: list(m.trained[t]) for t in sorted(tasks & set(m.trained))}}


def judge_memory(m: Material, v: Variants, model: Answers, base: Answers | None) -> dict[str, Any]:
    """Loss on unseen minus loss on trained inputs of the same tasks, less the same gap of the base model."""
    found = {}
    for who, answers in (("model", model), ("base", base)):
        if answers is None:
            continue
        gaps = []
        for members in _by_task(m.sets.get("seen", ())):
            trained = [_per_token(answers, x.id) for x in v["trained"].get(members[0].task, ())]
            if trained:
                level = float(np.mean(trained))
                gaps.append([_per_token(answers, e.id) - level for e in members])
        if gaps:
            found[who] = gaps
    if "model" not in found:
        return {}
    out: dict[str, Any] = {"gap": {who: _interval(gaps, m) for who, gaps in found.items()}}
    if "base" in found:
        out["difference"] = _difference(contrast(found["model"], found["base"], seed=m.seed))
    shown = out.get("difference") or {"difference": out["gap"]["model"]["mean"], **out["gap"]["model"]}
    verdict = (
        "more likely than unseen ones of the same task"
        if shown["low"] > 0
        else "no more likely than unseen ones"
    )
    out["sentence"] = (
        f"Trained answers are {verdict}: {shown['difference']:+.2f} nats a token [{shown['low']:+.2f}, {shown['high']:+.2f}]"
        + (" beyond the base model." if "difference" in out else ".")
    )
    return out


# P6: controllability


def control_variants(_: Material) -> Variants:
    """Return local prompts with one and with two constraints that a program can check."""
    out: dict[str, list[Example]] = {}
    names = list(CONSTRAINTS)
    for number, prompt in enumerate(PROMPTS):
        for k, name in enumerate(names):
            if (number + k) % 5:  # every constraint with a fifth of the prompts
                continue
            both = [name] if (number + k) % 2 else [name, names[(k + 5) % len(names)]]
            text = f"{prompt} {' '.join(CONSTRAINTS[n].wording for n in both)}"
            out["+".join(both) + f"#{number}"] = [_asked(text)]
    return {"constraints": out}


def judge_control(_: Material, v: Variants, model: Answers, base: Answers | None) -> dict[str, Any]:
    """Share of constraints that are kept, by constraint and by prompt, strict and loose; McNemar against the base."""
    out: dict[str, Any] = {}
    kept: dict[str, list[bool]] = {}
    for who, answers in (("model", model), ("base", base)):
        if answers is None:
            continue
        by_name: dict[str, list[bool]] = {}
        prompts, easy = [], []
        for key, (asked,) in v["constraints"].items():
            said = answers.generations[asked.id].prediction
            names = key.partition("#")[0].split("+")
            held = [CONSTRAINTS[n].holds(said) for n in names]
            for n, ok in zip(names, held, strict=True):
                by_name.setdefault(n, []).append(ok)
            prompts.append(all(held))
            easy.append(all(any(CONSTRAINTS[n].holds(x) for x in loose(said)) for n in names))
        kept[who] = prompts
        instructions = [ok for oks in by_name.values() for ok in oks]
        out[who] = {
            "prompt_strict": _share(prompts), "prompt_loose": _share(easy), "instruction_strict": _share(instructions),
            "constraints": {n: _share(oks) for n, oks in by_name.items()},
        }  # fmt: skip
    if "base" in kept:
        pairs = list(zip(kept["model"], kept["base"], strict=True))
        out["mcnemar_p"] = mcnemar_p(sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs))
    share = out["model"]["prompt_strict"]
    out["sentence"] = (
        f"All constraints of a prompt are kept in {100 * share['mean']:.0f} % [{100 * share['low']:.0f}, {100 * share['high']:.0f}] of "
        f"{len(kept['model'])} prompts"
        + (
            f", {100 * out['base']['prompt_strict']['mean']:.0f} % by the base model (p {out['mcnemar_p']:.2g})."
            if "base" in kept
            else "."
        )
    )
    return out


# P7: forgetting


def forgetting_variants(m: Material) -> Variants:
    """Return general texts as answers."""
    return {"texts": {str(i): [_asked("Write a sentence.", text)] for i, text in enumerate(m.texts)}}


def judge_forgetting(m: Material, v: Variants, model: Answers, base: Answers | None) -> dict[str, Any]:
    """Nats a token on general text, model minus base, over documents."""
    if base is None or not v["texts"]:
        return {}
    ids = [xs[0].id for xs in v["texts"].values()]
    pair = contrast([[_per_token(model, i)] for i in ids], [[_per_token(base, i)] for i in ids], seed=m.seed)
    verdict = "worse" if pair.low > 0 else "better" if pair.high < 0 else "neither better nor worse"
    return {
        "difference": _difference(pair),
        "documents": len(ids),
        "sentence": f"On general text the model is {verdict} than before training: {pair.difference:+.2f} nats a token "
        f"[{pair.low:+.2f}, {pair.high:+.2f}] over {len(ids)} texts.",
    }


def no_variants(_: Material) -> Variants:
    """Return nothing: the evaluated examples are enough."""
    return {}


PROBES: dict[str, Probe] = {
    "phrasing": Probe(
        "Unseen wordings",
        "Trained tasks' unseen inputs under wordings of the instruction that training never had, against the wordings that it had.",
        phrasing_variants, "generation", judge_phrasing,
    ),
    "contrast": Probe(
        "Instruction or memory",
        "Held-out tasks on inputs to which a trained sibling gives another answer: the share that follows the new instruction "
        "(compliance), that plays back the sibling (memory), and the rest.",
        no_variants, "generation", judge_contrast,
    ),
    "labels": Probe(
        "Labels that mean something else",
        "Trained tasks of two labels under an instruction that swaps the labels, or renames them to words without a meaning: the share of "
        "items whose most likely answer is right now (compliance), was right in training (memory), or neither.",
        label_variants, "loss", judge_labels,
    ),
    "instruction": Probe(
        "What the instruction tells",
        "Nats a token of the right answer under the right instruction, none, and three of other families.",
        instruction_variants, "loss", judge_instruction,
    ),
    "memorisation": Probe(
        "Memorisation",
        "Loss on unseen inputs minus loss on trained ones of the same task, beyond the same gap of the base model.",
        memory_variants, "loss", judge_memory,
    ),
    "control": Probe(
        "Constraints",
        "Prompts with one or two constraints that a program checks (as IFEval), of the model and the base.",
        control_variants, "generation", judge_control,
    ),
    "forgetting": Probe(
        "Forgetting",
        "Nats a token on general text, minus those of the base model.",
        forgetting_variants, "loss", judge_forgetting,
    ),
}  # fmt: skip
"""One entry adds a probe: `eval.probes` switches it, evaluation asks its variants, the report shows its sentence and figures."""


def asked_of(probes: Sequence[str], m: Material) -> tuple[dict[str, Variants], list[Example], list[Example]]:
    """Return the variants of each probe, and what must be generated and what must get a loss for them, each once."""
    variants = {name: PROBES[name].variants(m) for name in probes}
    wanted: dict[str, dict[str, Example]] = {"generation": {}, "loss": {}}
    for name, v in variants.items():
        for by_id in v.values():
            for examples in by_id.values():
                wanted[PROBES[name].needs] |= {e.id: e for e in examples}
    return variants, list(wanted["generation"].values()), list(wanted["loss"].values())


def judge_probes(
    variants: Mapping[str, Variants], m: Material, model: Answers, base: Answers | None
) -> dict[str, Any]:
    """Return probe -> title, definition, sentence and figures, of those that have something to judge."""
    out = {}
    for name, v in variants.items():
        if found := PROBES[name].judge(m, v, model, base):
            out[name] = {"title": PROBES[name].title, "definition": PROBES[name].definition, **found}
    return out


def with_instruction(e: Example, instruction: str) -> Example:
    """Return the example under another instruction; "" leaves its INPUT alone."""
    at = next(i for i, message in enumerate(e.messages) if message.role == "user")
    parts = [t for t in (instruction, e.input) if t]
    changed: Message = replace(e.messages[at], content="\n\n".join(parts))
    return make_example(
        task=e.task,
        source=e.source,
        messages=(*e.messages[:at], changed, *e.messages[at + 1 :]),
        tools=e.tools,
        template_kwargs=e.template_kwargs,
        references=e.references,
        origin=(*e.origin, e.id),
        input_start=len(instruction) + 2 if instruction and e.input else None,
    )


def few_of(examples: Sequence[Example], per_task: int, seed: int) -> list[Example]:
    """Return at most `per_task` examples of each task, by hash."""
    ranked = sorted(examples, key=lambda e: derive(seed, "probe", e.id))
    taken: dict[str, int] = {}
    kept = set()
    for e in ranked:
        if taken.get(e.task, 0) < per_task:
            taken[e.task] = taken.get(e.task, 0) + 1
            kept.add(e.id)
    return [e for e in examples if e.id in kept]


def _asked(text: str, answer: str = "-") -> Example:
    return single_turn(task="probe", source="probe", instruction=text, output=answer)


def _by_task(examples: Any) -> list[list[Example]]:
    out: dict[str, list[Example]] = {}
    for e in examples:
        out.setdefault(e.task, []).append(e)
    return [members for _, members in sorted(out.items())]


def _right(answers: Answers, said: str, e: Example) -> float:
    return METRICS["exact_match"].function(answers.generations[said].prediction, e.answers)


def _per_token(answers: Answers, example: str) -> float:
    loss = answers.losses[example]
    return loss.nats / max(1, loss.tokens)


def _interval(groups: Sequence[Sequence[float]], m: Material) -> dict[str, float]:
    i = mean_interval(groups, seed=m.seed)
    return {"mean": i.mean, "low": i.low, "high": i.high, "tasks": i.units}


def _difference(c: Any) -> dict[str, float]:
    return {"difference": c.difference, "low": c.low, "high": c.high, "p": c.p, "tasks": c.units}


def _share(held: Sequence[bool]) -> dict[str, float]:
    low, high = wilson(sum(held), len(held))
    return {"mean": sum(held) / len(held) if held else math.nan, "low": low, "high": high, "n": len(held)}


def _points(difference: float) -> str:
    return f"{100 * difference:+.1f}"


def _ci(c: Any) -> str:
    return f" [{_points(c.low)}, {_points(c.high)}]"
