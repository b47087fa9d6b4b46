"""Evaluated and trained examples, answers and losses of model and base -> what kind of learning it was, with intervals.

A score alone does not tell whether a model follows instructions or plays back what it was trained on. Each probe changes one
thing and compares pairs on the same item; the mean is over tasks, with the interval of `evals/statistics.py` over families of tasks.
docs/evaluation.md has the definitions and their sources. P0 (baselines) and P1 (transfer) need no further answers: `evals/score.py` has them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sft_dist.core.records import Example
from sft_dist.core.rng import generator
from sft_dist.evals.choices import with_answer
from sft_dist.evals.constraints import CONSTRAINTS, FORMATS, PROMPTS, loose
from sft_dist.evals.metrics import exact_match
from sft_dist.evals.probe_material import (
    Answers,
    Material,
    Probe,
    Variants,
    apart,
    asked,
    by_task,
    difference,
    ends,
    few,
    gap_figure,
    interval,
    paired,
    per_token,
    right,
    share,
    shares,
    with_instruction,
    with_phrasing,
)
from sft_dist.evals.splits import KINDS, SHOWN_TOKENS, Kind
from sft_dist.evals.statistics import Contrast, contrast, mcnemar_p, mean_interval, wilson

NEUTRAL = ("alpha", "omega")  # labels that mean nothing to a task
WRONG = 3  # foreign instructions an item is asked with
REWORDED = (
    "Here is a task for you. {}",
    "{} Answer with nothing else.",
    "Please do as follows: {}",
)
"""Rule list of unseen wordings, for sources that know no further phrasings."""
RANKS = ("first", "second_or_third", "lower")  # where the base has the model's first choice
PLACES = (
    range(1),
    range(1, 2),
    range(2, 4),
    range(4, 8),
    range(8, 16),
    range(16, 32),
    range(32, SHOWN_TOKENS),
)
"""Positions in an answer that are counted together."""
Samples = tuple[Mapping[str, Sequence[float]], Mapping[str, Sequence[float]]]
"""Task -> values of its items, in two samples."""


# P2: unseen wordings


def phrasing_variants(m: Material) -> Variants:
    """Return trained tasks' items under wordings that training never had."""
    out: dict[str, list[Example]] = {}
    for e in m.sets.get("seen", ()):
        if e.phrasings:
            out[e.id] = [with_phrasing(e, p) for p in e.phrasings[:WRONG]]
            continue
        wordings = [*m.phrasings.get(e.task, ())] or [w.format(e.instruction) for w in REWORDED]
        if e.instruction:
            out[e.id] = [with_instruction(e, w) for w in wordings[:WRONG]]
    return {"reworded": out}


def judge_phrasing(m: Material, v: Variants, model: Answers, _: Answers | None) -> dict[str, Any]:
    """Compare the score as asked with the mean over unseen wordings and with the worst."""
    as_asked, reworded, worst = {}, {}, {}
    for task, members in by_task(m.sets.get("seen", ())).items():
        known = [e for e in members if e.id in v["reworded"]]
        if not known:
            continue
        as_asked[task] = [right(model, e.id, e) for e in known]
        others = [[right(model, x.id, e) for x in v["reworded"][e.id]] for e in known]
        reworded[task] = [float(np.mean(o)) for o in others]
        worst[task] = [min(o) for o in others]
    if not as_asked:
        return {}
    change = paired(reworded, as_asked, m)
    return {
        "figures": {
            "as asked": interval(as_asked, m),
            "unseen wording": interval(reworded, m),
            "worst wording": interval(worst, m),
        },
        "difference": difference(change),
        "wordings": "of the source"
        if m.phrasings or any(e.phrasings for e in m.sets["seen"])
        else "by a rule list",
        "sentence": f"Under wordings that training never had, exact match changes by {100 * change.difference:+.1f} points "
        f"[{100 * change.low:+.1f}, {100 * change.high:+.1f}].{few(change.units)}",
    }


# P3: altered tasks with known other answers


def judge_contrast(m: Material, _: Variants, model: Answers, base: Answers | None) -> dict[str, Any]:
    """Share of answers that follow the held-out instruction (C), that are the trained sibling's (K), and the rest."""
    out: dict[str, Any] = {}
    for who, answers in (("model", model), ("base", base)):
        if answers is None:
            continue
        rows: dict[str, NDArray[np.float64]] = {}
        tasks = {}
        for task, members in by_task(m.originals).items():
            found = []
            for e in members:
                if e.id not in m.contrasts or exact_match(m.contrasts[e.id][1], e.answers):
                    continue
                said = answers.generations[e.id].prediction
                c, k = exact_match(said, e.answers), exact_match(said, [m.contrasts[e.id][1]])
                found.append((c, k, 1 - c - k))
            if found:
                rows[task] = np.array(found)
                c, k, rest = np.mean(found, axis=0)
                low, high = wilson(sum(f[1] for f in found), len(found))
                tasks[task] = {
                    "compliance": c, "memory": k, "rest": rest, "n": len(found), "memory_low": low, "memory_high": high,
                    "sibling": m.contrasts[members[0].id][0],
                }  # fmt: skip
        if not rows:
            return {}
        out[who] = {**shares(rows, m), "tasks": tasks}
    own = out["model"]
    out["sentence"] = (
        f"Where a trained sibling would answer otherwise, {100 * own['compliance']['mean']:.0f} %{ends(own['compliance'])} of the answers "
        f"follow the new instruction and {100 * own['memory']['mean']:.0f} %{ends(own['memory'])} are the sibling's "
        f"({len(own['tasks'])} tasks).{few(own['units'])}"
    )
    return out


def label_variants(m: Material) -> Variants:
    """Return trained tasks of two labels whose instruction swaps them, or renames them to words that mean nothing.

    The copies of an item are its possible answers: the one that is right now, the one that was right, then the others.
    """
    out: Variants = {"swapped": {}, "renamed": {}}
    for task, members in by_task(m.sets.get("seen", ())).items():
        known = [*members, *m.trained.get(task, ())]
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
            rows: dict[str, NDArray[np.float64]] = {}
            for task, members in by_task(e for e in m.sets.get("seen", ()) if e.id in copies).items():
                likeliest = [
                    int(np.argmin([answers.losses[x.id].nats for x in copies[e.id]])) for e in members
                ]
                rows[task] = np.array([(i == 0, i == 1, i > 1) for i in likeliest], dtype=np.float64)
            if rows:
                out.setdefault(mode, {})[who] = shares(rows, m)
    if not out:
        return {}
    said = [
        f"{100 * found['model']['compliance']['mean']:.0f} %{ends(found['model']['compliance'])} of the likeliest answers follow and "
        f"{100 * found['model']['memory']['mean']:.0f} %{ends(found['model']['memory'])} are those that training taught where labels are {mode}"
        for mode, found in out.items()
    ]
    own = out["swapped"]["model"]
    out["sentence"] = f"{'; '.join(said)} ({own['tasks']} tasks of two labels).{few(own['units'])}"
    return out


def format_variants(m: Material) -> Variants:
    """Return trained tasks' unseen inputs whose instruction asks for the answer in another format."""
    out: Variants = {name: {} for name in FORMATS}
    for e in m.sets.get("seen", ()):
        for name, form in FORMATS.items():
            if e.instruction and form.inside(e.output) is None:  # the trained answer is not in it already
                out[name][e.id] = [with_instruction(e, f"{e.instruction} {form.wording}")]
    return out


def judge_format(m: Material, v: Variants, model: Answers, base: Answers | None) -> dict[str, Any]:
    """Share of answers that are right in the format asked for (C), right in the trained one (K), and the rest."""
    out: dict[str, Any] = {}
    for who, answers in (("model", model), ("base", base)):
        if answers is None:
            continue
        every: dict[str, list[tuple[float, float, float, float]]] = {}
        for name, copies in v.items():
            rows: dict[str, NDArray[np.float64]] = {}
            for task, members in by_task(e for e in m.sets.get("seen", ()) if e.id in copies).items():
                found = []
                for e in members:
                    said = answers.generations[copies[e.id][0].id].prediction
                    inner = FORMATS[name].inside(said)
                    c = exact_match(inner, e.answers) if inner is not None else 0.0
                    k = exact_match(said, e.answers) if inner is None else 0.0
                    found.append((c, k, 1 - c - k, float(inner is not None)))
                rows[task] = np.array(found)
                every.setdefault(task, []).extend(found)
            if rows:
                out.setdefault(name, {})[who] = _formats(rows, m)
        if every:
            out.setdefault("all", {})[who] = _formats({t: np.array(r) for t, r in every.items()}, m)
    if not out:
        return {}
    own = out["all"]["model"]
    out["sentence"] = (
        f"Asked for another format, the model keeps it in {100 * own['kept']['mean']:.0f} %{ends(own['kept'])} of its answers; "
        f"{100 * own['compliance']['mean']:.0f} %{ends(own['compliance'])} are right in it and "
        f"{100 * own['memory']['mean']:.0f} %{ends(own['memory'])} right in the trained one ({own['tasks']} tasks).{few(own['units'])}"
    )
    return out


def _formats(rows: Mapping[str, NDArray[np.float64]], m: Material) -> dict[str, Any]:
    return {**shares(rows, m), "kept": interval({t: r[:, 3].tolist() for t, r in rows.items()}, m)}


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
            none: dict[str, list[float]] = {}
            wrong: dict[str, list[float]] = {}
            prefers: dict[str, list[float]] = {}
            for task, members in by_task(e for e in examples if e.id in v["wrong"]).items():
                own = [per_token(answers, e.id) for e in members]
                foreign = [[per_token(answers, x.id) for x in v["wrong"][e.id]] for e in members]
                bare = [per_token(answers, v["none"][e.id][0].id) for e in members]
                none[task] = [b - r for b, r in zip(bare, own, strict=True)]
                wrong[task] = [float(np.mean(w)) - r for w, r in zip(foreign, own, strict=True)]
                prefers[task] = [
                    float(np.mean([r < x for x in w])) for w, r in zip(foreign, own, strict=True)
                ]
                if who == "model" and mean_interval([wrong[task]], seed=m.seed, draws=200).low <= 0:
                    ignored.append(task)
            if prefers:
                out["sets"].setdefault(name, {})[who] = {
                    "saved_against_none": interval(none, m),
                    "saved_against_wrong": interval(wrong, m),
                    "prefers_right": interval(prefers, m),
                }
    if not out["sets"]:
        return {}
    out["ignored"] = sorted(set(ignored))
    first = next(iter(out["sets"]))
    found = out["sets"][first]["model"]["prefers_right"]
    out["sentence"] = (
        f"The right instruction makes the answer more likely than a wrong one in {100 * found['mean']:.0f} %{ends(found)} of pairs "
        f"({first.replace('_', ' ')}; 50 % would mean that it is ignored); {len(out['ignored'])} tasks show no use of it.{few(found['units'])}"
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
        found[who] = _two_samples(m, v, lambda e, a=answers: per_token(a, e.id))  # type: ignore[misc]
    if not found["model"][0]:
        return {}
    gaps = {who: gap_figure(apart(*samples, m)) for who, samples in found.items()}
    out: dict[str, Any] = {"gap": gaps}
    if "base" in found:
        out["difference"] = difference(_beyond(found["model"], found["base"], m))
    shown = out.get("difference") or {"difference": gaps["model"]["mean"], **gaps["model"]}
    verdict = (
        "more likely than unseen ones of the same task"
        if shown["low"] > 0
        else "no more likely than unseen ones"
    )
    out["sentence"] = (
        f"Trained answers are {verdict}: {shown['difference']:+.2f} nats a token [{shown['low']:+.2f}, {shown['high']:+.2f}]"
        + (" beyond the base model." if "difference" in out else ".")
        + few(shown["units"])
    )
    return out


def extraction_variants(m: Material) -> Variants:
    """Return trained examples and unseen ones of the same tasks, each to be gone on with from the first half of its answer."""
    trained = memory_variants(m)["trained"]
    unseen = by_task(e for e in m.sets.get("seen", ()) if e.task in trained)
    return {"trained": trained, "unseen": unseen}


def judge_extraction(m: Material, v: Variants, model: Answers, base: Answers | None) -> dict[str, Any]:
    """Share of answers that are gone on with word for word: trained less unseen ones, less the same gap of the base model."""
    out: dict[str, Any] = {}
    found = {}
    for who, answers in (("model", model), ("base", base)):
        if answers is None:
            continue
        said = answers.continuations
        able = {
            name: {t: [float(said[e.id].equal) for e in es if said[e.id].tokens] for t, es in v[name].items()}
            for name in ("unseen", "trained")
        }
        both = [t for t in able["trained"] if able["trained"][t] and able["unseen"].get(t)]
        if not both:
            return {}
        unseen, trained = ({t: able[name][t] for t in both} for name in ("unseen", "trained"))
        found[who] = (trained, unseen)
        out[who] = {
            "trained": interval(trained, m),
            "unseen": interval(unseen, m),
            "gap": gap_figure(apart(trained, unseen, m)),
        }
    if "base" in found:
        out["difference"] = difference(_beyond(found["model"], found["base"], m))
    own = out["model"]
    shown = out.get("difference") or {"difference": own["gap"]["mean"], **own["gap"]}
    out["sentence"] = (
        f"From its first half, {100 * own['trained']['mean']:.0f} %{ends(own['trained'])} of trained answers are gone on with word for word and "
        f"{100 * own['unseen']['mean']:.0f} %{ends(own['unseen'])} of unseen ones: {100 * shown['difference']:+.0f} points"
        f"{ends(shown)}{' beyond the base model' if 'base' in found else ''} ({own['trained']['tasks']} tasks).{few(shown['units'])}"
    )
    return out


def _two_samples(
    m: Material, v: Variants, value: Callable[[Example], float]
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Return task -> values of unseen items, and of trained items of the same tasks."""
    unseen = by_task(e for e in m.sets.get("seen", ()) if v["trained"].get(e.task))
    return (
        {t: [value(e) for e in es] for t, es in unseen.items()},
        {t: [value(e) for e in v["trained"][t]] for t in unseen},
    )


def _beyond(model: Samples, base: Samples, m: Material) -> Contrast:
    """Return the gap between two samples of the model less that of the base, paired on the items of each sample."""
    first, second = (
        {t: np.subtract(own[t], other[t]).tolist() for t in own}
        for own, other in zip(model, base, strict=True)
    )
    return apart(first, second, m)


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
            out["+".join(both) + f"#{number}"] = [asked(text)]
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
        for key, (prompt,) in v["constraints"].items():
            said = answers.generations[prompt.id].prediction
            names = key.partition("#")[0].split("+")
            held = [CONSTRAINTS[n].holds(said) for n in names]
            for n, ok in zip(names, held, strict=True):
                by_name.setdefault(n, []).append(ok)
            prompts.append(all(held))
            easy.append(all(any(CONSTRAINTS[n].holds(x) for x in loose(said)) for n in names))
        kept[who] = prompts
        instructions = [ok for oks in by_name.values() for ok in oks]
        out[who] = {
            "prompt_strict": share(prompts), "prompt_loose": share(easy), "instruction_strict": share(instructions),
            "constraints": {n: share(oks) for n, oks in by_name.items()},
        }  # fmt: skip
    if "base" in kept:
        pairs = list(zip(kept["model"], kept["base"], strict=True))
        out["mcnemar_p"] = mcnemar_p(sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs))
    found = out["model"]["prompt_strict"]
    out["sentence"] = (
        f"All constraints of a prompt are kept in {100 * found['mean']:.0f} %{ends(found)} of "
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
    return {"texts": {str(i): [asked("Write a sentence.", text)] for i, text in enumerate(m.texts)}}


def judge_forgetting(m: Material, v: Variants, model: Answers, base: Answers | None) -> dict[str, Any]:
    """Nats a token on general text, model minus base, over documents."""
    if base is None or not v["texts"]:
        return {}
    ids = [xs[0].id for xs in v["texts"].values()]
    pair = contrast([[per_token(model, i)] for i in ids], [[per_token(base, i)] for i in ids], seed=m.seed)
    verdict = "worse" if pair.low > 0 else "better" if pair.high < 0 else "neither better nor worse"
    return {
        "difference": difference(pair),
        "documents": len(ids),
        "sentence": f"On general text the model is {verdict} than before training: {pair.difference:+.2f} nats a token "
        f"[{pair.low:+.2f}, {pair.high:+.2f}] over {len(ids)} texts.",
    }


# P8: style or substance


def judge_shift(m: Material, _: Variants, model: Answers, base: Answers | None) -> dict[str, Any]:
    """At each position of the right answers: is the model's first choice the base's first, its second or third, or another."""
    if base is None:
        return {}
    out: dict[str, Any] = {"sets": {}}
    by_place: dict[str, dict[str, list[list[float]]]] = {}
    for name, examples in m.sets.items():
        rows: dict[str, NDArray[np.float64]] = {}
        for task, members in by_task(examples).items():
            pairs = [(model.losses[e.id].top, base.losses[e.id].top) for e in members]
            items = [
                np.array([_place(a[0], b) for a, b in zip(own, other, strict=True)])
                for own, other in pairs
                if own
            ]
            if not items:
                continue
            rows[task] = np.array([i.mean(axis=0) for i in items])
            for place in PLACES:
                here = [i[place.start : place.stop].mean(axis=0) for i in items if len(i) > place.start]
                if here:
                    by_place.setdefault(_place_name(place), {}).setdefault(task, []).extend(
                        x.tolist() for x in here
                    )
        if rows:
            out["sets"][name] = {
                kind: interval({t: r[:, k].tolist() for t, r in rows.items()}, m)
                for k, kind in enumerate(RANKS)
            }
    if not out["sets"]:
        return {}
    out["positions"] = {
        name: {
            kind: interval({t: [x[k] for x in xs] for t, xs in tasks.items()}, m)
            for k, kind in enumerate(RANKS)
        }
        for name, tasks in by_place.items()
    }
    first = next(iter(out["sets"]))
    found = out["sets"][first]
    out["sentence"] = (
        f"At {100 * found['first']['mean']:.0f} %{ends(found['first'])} of the answers' positions the model's first choice is the base's too, "
        f"at {100 * found['second_or_third']['mean']:.0f} %{ends(found['second_or_third'])} the base's second or third, at "
        f"{100 * found['lower']['mean']:.0f} %{ends(found['lower'])} one that the base ranks lower "
        f"({first.replace('_', ' ')}, {found['first']['tasks']} tasks).{few(found['first']['units'])}"
    )
    return out


def _place(choice: int, ranked: Sequence[int]) -> tuple[float, float, float]:
    rank = ranked.index(choice) if choice in ranked else len(ranked)
    return float(rank == 0), float(rank in (1, 2)), float(rank > 2)


def _place_name(place: range) -> str:
    return str(place.stop) if len(place) == 1 else f"{place.start + 1} to {place.stop}"


def no_variants(_: Material) -> Variants:
    """Return nothing: the evaluated examples are enough."""
    return {}


PROBES: dict[str, Probe] = {
    "phrasing": Probe(
        "Unseen wordings",
        "Trained tasks' unseen inputs under wordings of the instruction that training never had, against the wordings that it had.",
        phrasing_variants, "generate", judge_phrasing,
    ),
    "contrast": Probe(
        "Instruction or memory",
        "Held-out tasks on inputs to which a trained sibling gives another answer: the share that follows the new instruction "
        "(compliance), that plays back the sibling (memory), and the rest.",
        no_variants, "generate", judge_contrast,
    ),
    "labels": Probe(
        "Labels that mean something else",
        "Trained tasks of two labels under an instruction that swaps the labels, or renames them to words without a meaning: the share of "
        "items whose most likely answer is right now (compliance), was right in training (memory), or neither.",
        label_variants, "loss", judge_labels,
    ),
    "format": Probe(
        "Another format",
        "Trained tasks' unseen inputs whose instruction asks for the answer in capitals, as JSON, or behind a prefix: the share that is right "
        "in that format (compliance), right in the trained one (memory), and the rest.",
        format_variants, "generate", judge_format,
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
    "extraction": Probe(
        "Answers by heart",
        "Greedy continuation of answers from their first half, at most 32 tokens, word for word: trained answers less unseen ones of the same "
        "task, less the same gap of the base model. Answers whose second half has fewer than 4 tokens are left out.",
        extraction_variants, "continue", judge_extraction,
    ),
    "control": Probe(
        "Constraints",
        "Prompts with one or two constraints that a program checks (as IFEval), of the model and the base.",
        control_variants, "generate", judge_control,
    ),
    "forgetting": Probe(
        "Forgetting",
        "Nats a token on general text, minus those of the base model.",
        forgetting_variants, "loss", judge_forgetting,
    ),
    "shift": Probe(
        "Style or substance",
        f"At the first {SHOWN_TOKENS} positions of the right answers, what stands before them given: whether the model's most likely token is the "
        "base's most likely one, its second or third, or one that the base ranks lower.",
        no_variants, "loss", judge_shift,
    ),
}  # fmt: skip
"""One entry adds a probe: `eval.probes` switches it, evaluation asks its variants, the report shows its sentence and figures."""


def asked_of(probes: Sequence[str], m: Material) -> tuple[dict[str, Variants], dict[Kind, list[Example]]]:
    """Return the variants of each probe, and what each kind of work is needed for, each example once."""
    variants = {name: PROBES[name].variants(m) for name in probes}
    wanted: dict[Kind, dict[str, Example]] = {kind: {} for kind in KINDS}
    for name, v in variants.items():
        for by_id in v.values():
            for examples in by_id.values():
                wanted[PROBES[name].needs] |= {e.id: e for e in examples}
    return variants, {kind: list(examples.values()) for kind, examples in wanted.items()}


def judge_probes(
    variants: Mapping[str, Variants], m: Material, model: Answers, base: Answers | None
) -> dict[str, Any]:
    """Return probe -> title, definition, sentence and figures, of those that have something to judge."""
    out = {}
    for name, v in variants.items():
        if found := PROBES[name].judge(m, v, model, base):
            out[name] = {"title": PROBES[name].title, "definition": PROBES[name].definition, **found}
    return out
