"""Probes on answers that are planted: a follower of instructions, one that plays back what it was trained on, one that ignores them."""

from __future__ import annotations

import json
import re

import pytest

from sft_dist.core.records import single_turn
from sft_dist.evals.constraints import CONSTRAINTS
from sft_dist.evals.probe_material import Answers, Material, few_of, with_instruction
from sft_dist.evals.probes import PROBES, asked_of, judge_probes
from sft_dist.evals.splits import AnswerLoss, Continuation, Generation

TASKS = 12


def example(task, i, answer):
    return single_turn(
        task=task, source="s", instruction=f"Do {task}.", input=f"input {task} {i}", output=answer
    )


@pytest.fixture(scope="module")
def material():
    seen = [example(f"t{t}", i, f"gold {t} {i}") for t in range(TASKS) for i in range(5)]
    held = [example(f"h{t}", i, f"new {t} {i}") for t in range(TASKS) for i in range(5)]
    trained = {f"t{t}": [example(f"t{t}", 100 + i, f"old {t} {i}") for i in range(5)] for t in range(TASKS)}
    contrasts = {e.id: ("t0", f"sibling {e.id}") for e in held}
    return Material(sets={"seen": seen, "heldout_near": held}, trained=trained, contrasts=contrasts)


def answers(material, say, nats, *, knows=lambda e, kind: False, top=lambda e: (1, 2, 3)):
    """Answers, losses, continuations and likeliest tokens by functions of (example, kind of variant)."""
    variants, asked = asked_of(tuple(PROBES), material)
    kind = {e.id: k for v in variants.values() for k, by in v.items() for es in by.values() for e in es}
    everything = [e for es in material.sets.values() for e in es] + [e for es in asked.values() for e in es]
    return variants, Answers(
        generations={
            e.id: Generation(id=e.id, prediction=say(e, kind.get(e.id)), stopped=True, tokens=1)
            for e in everything
        },
        losses={
            e.id: AnswerLoss(id=e.id, nats=nats(e, kind.get(e.id)), tokens=1, top=(top(e),) * 5)
            for e in everything
        },
        continuations={
            e.id: Continuation(id=e.id, equal=knows(e, kind.get(e.id)), tokens=9) for e in asked["continue"]
        },
    )


def follows(e, kind):
    return e.output


def nats_follow(e, kind):
    return {"none": 2.0, "wrong": 4.0}.get(kind, 1.0)


def nats_ignore(e, kind):
    return 1.0 + 0.01 * (int(e.id[:4], 16) % 7 - 3)


def judged(material, say, nats, **other):
    variants, model = answers(material, say, nats, **other)
    _, base = answers(material, lambda e, k: "nothing", lambda e, k: 5.0)
    return judge_probes(variants, material, model, base)


def test_a_follower_complies_and_uses_the_instruction(material):
    out = judged(material, follows, nats_follow)
    assert set(out) == set(PROBES) - {"labels"}  # no task here has two labels
    assert all(p["sentence"] and p["definition"] for p in out.values())
    assert out["contrast"]["model"]["compliance"]["mean"] == 1.0
    assert out["contrast"]["model"]["superficiality"]["mean"] == 0.0
    saved = out["instruction"]["sets"]["seen"]["model"]
    assert saved["saved_against_none"]["mean"] == pytest.approx(1.0)
    assert saved["saved_against_wrong"]["mean"] == pytest.approx(3.0)
    assert saved["prefers_right"]["low"] > 0.5
    assert out["instruction"]["ignored"] == []
    assert out["phrasing"]["difference"]["difference"] == 0.0
    assert out["memorisation"]["difference"]["low"] == pytest.approx(0.0)
    assert "better" in out["forgetting"]["sentence"]


def test_one_that_plays_back_the_sibling_is_memory(material):
    def sibling(e, kind):
        return material.contrasts[e.id][1] if e.id in material.contrasts else e.output

    out = judged(material, sibling, nats_follow)["contrast"]
    assert out["model"]["memory"]["low"] > out["model"]["compliance"]["high"]
    assert out["model"]["superficiality"]["mean"] == 1.0
    assert out["base"]["rest"]["mean"] == 1.0
    assert out["model"]["tasks"]["h0"]["memory_low"] > 0.5


def test_one_that_ignores_instructions_prefers_the_right_one_half_of_the_time(material):
    out = judged(material, follows, nats_ignore)["instruction"]
    share = out["sets"]["seen"]["model"]["prefers_right"]
    assert share["low"] < 0.5 < share["high"] + 0.15
    assert len(out["ignored"]) >= TASKS
    assert "no use of it" in out["sentence"]


def test_one_that_knows_its_training_examples_has_a_gap(material):
    out = judged(material, follows, lambda e, kind: 0.1 if kind == "trained" else 3.0)["memorisation"]
    assert out["gap"]["model"]["mean"] == pytest.approx(2.9)
    assert out["difference"]["low"] > 2
    assert "more likely" in out["sentence"]


def test_one_that_knows_wordings_by_heart_loses_on_new_ones(material):
    out = judged(material, lambda e, k: "?" if k == "reworded" else e.output, nats_follow)["phrasing"]
    assert out["difference"]["high"] < -0.9
    assert out["wordings"] == "by a rule list"


def test_few_tasks_are_said_to_be_few(material):
    sets = {n: [e for e in es if e.task in ("t0", "h0")] for n, es in material.sets.items()}
    few = Material(sets=sets, trained=material.trained, contrasts=material.contrasts)
    variants, model = answers(few, follows, nats_follow)
    assert "Too few tasks" in judge_probes(variants, few, model, None)["contrast"]["sentence"]


def test_probes_are_switched_and_need_nothing_twice(material):
    variants, asked = asked_of(("contrast",), material)
    assert (list(variants), asked) == (["contrast"], {"generate": [], "loss": [], "continue": []})
    _, asked = asked_of(tuple(PROBES), material)
    assert all(len({e.id for e in es}) == len(es) > 0 for es in asked.values())
    assert judge_probes({}, material, Answers(generations={}, losses={}), None) == {}


def test_instructions_are_swapped_and_removed_and_the_input_stays():
    e = example("a", 1, "x")
    assert with_instruction(e, "").messages[0].content == e.input
    swapped = with_instruction(e, "Other.")
    assert (swapped.instruction, swapped.input, swapped.output) == ("Other.", e.input, "x")
    assert e.id in swapped.origin


def test_few_of_takes_the_same_whatever_the_order(material):
    seen = material.sets["seen"]
    kept = few_of(seen, 2, seed=0)
    assert len(kept) == 2 * TASKS
    assert {e.id for e in kept} == {e.id for e in few_of(seen[::-1], 2, seed=0)}


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("at_least_words", "w " * 20, "w " * 19), ("at_most_words", "a b", "w " * 9), ("sentences", "A b. C d!", "A b."),
        ("bullets", "- a\n- b\n- c", "- a\n- b"), ("keyword", "The River flows.", "rivers"), ("no_keyword", "A sea.", "The sea."),
        ("capitals", "ALL HIGH.", "All"), ("no_commas", "a b", "a, b"), ("json", '{"a": 1}', "{a}"),
        ("start", "Well, yes.", "Yes, well."), ("end", "So that is all.", "that is all folks"), ("quotes", '"a b"', "a"),
    ],
)  # fmt: skip
def test_constraints_are_checked(name, good, bad):
    assert CONSTRAINTS[name].holds(good)
    assert not CONSTRAINTS[name].holds(bad)


@pytest.mark.parametrize(("picks", "compliance", "memory"), [("now", 1.0, 0.0), ("trained", 0.0, 1.0)])
def test_swapped_labels_tell_a_reader_from_one_that_plays_back_its_labels(picks, compliance, memory):
    seen = [example(f"l{t}", i, ("yes", "no")[i % 2]) for t in range(TASKS) for i in range(4)]
    free = [example("free", i, f"answer {i}") for i in range(4)]  # no two labels: left out
    labelled = Material(sets={"seen": [*seen, *free]})
    variants, asked = asked_of(("labels",), labelled)
    assert asked["generate"] == []
    first = variants["labels"]["swapped"][seen[0].id]
    assert [c.output for c in first] == ["no", "yes"]
    assert first[0].instruction == 'Do l0. Answer "yes" in place of "no", and "no" in place of "yes".'
    now, old, *_ = variants["labels"]["renamed"][seen[0].id]
    assert (now.output, old.output) == ("omega", "yes")
    place = {
        c.id: i for copies in variants["labels"].values() for cs in copies.values() for i, c in enumerate(cs)
    }
    wanted = {"now": 0, "trained": 1}[picks]
    nats = {e.id: AnswerLoss(id=e.id, nats=float(place[e.id] != wanted), tokens=1) for e in asked["loss"]}
    out = judge_probes(variants, labelled, Answers(generations={}, losses=nats), None)["labels"]
    for mode in ("swapped", "renamed"):
        found = out[mode]["model"]
        assert (found["compliance"]["mean"], found["memory"]["mean"], found["tasks"]) == (
            compliance,
            memory,
            TASKS,
        )
    assert re.search(
        rf"^{100 * compliance:.0f} % \[\d+, \d+\] of the likeliest answers follow", out["sentence"]
    )


def same(e):
    return {
        "capitals": e.output.upper(),
        "json": json.dumps({"answer": e.output}),
        "prefix": f"Answer: {e.output}",
    }


@pytest.mark.parametrize(
    ("say", "compliance", "memory", "kept"),
    [
        (lambda e, kind: same(e).get(kind, e.output), 1.0, 0.0, 1.0),  # follows
        (lambda e, kind: e.output, 0.0, 1.0, 0.0),  # answers as it was trained to
        (lambda e, kind: "Answer: what?" if kind == "prefix" else "what?", 0.0, 0.0, 1 / 3),
    ],
)
def test_another_format_tells_a_follower_from_one_that_answers_as_trained(
    material, say, compliance, memory, kept
):
    out = judged(material, say, nats_follow)["format"]
    found = out["all"]["model"]
    assert [found[k]["mean"] for k in ("compliance", "memory", "kept")] == pytest.approx(
        [compliance, memory, kept]
    )
    assert (found["tasks"], found["units"]) == (TASKS, TASKS)
    assert out["all"]["base"]["rest"]["mean"] == 1.0
    assert set(out) == {"title", "definition", "sentence", "all", "capitals", "json", "prefix"}


def test_answers_in_the_format_already_are_not_asked_for_it():
    e = example("t", 1, "NASA")
    variants, _ = asked_of(("format",), Material(sets={"seen": [e]}))
    assert [name for name, copies in variants["format"].items() if copies] == ["json", "prefix"]


@pytest.mark.parametrize(
    ("model", "base", "above"), [(True, False, True), (True, True, False), (False, False, False)]
)
def test_answers_that_are_known_by_heart_are_those_of_training_alone(material, model, base, above):
    def heart(knows):
        return answers(material, follows, nats_follow, knows=lambda e, kind: knows and kind == "trained")

    variants, first = heart(model)
    out = judge_probes(variants, material, first, heart(base)[1])["extraction"]
    assert out["model"]["gap"]["mean"] == (1.0 if model else 0.0)
    assert (out["difference"]["low"] > 0.9) is above
    assert out["difference"]["units"] == TASKS


def test_one_that_knows_every_answer_has_not_learnt_them_from_training(material):
    """Whoever can guess the second half of unseen answers too has no gap."""
    out = judged(material, follows, nats_follow, knows=lambda e, kind: True)["extraction"]
    assert (out["model"]["trained"]["mean"], out["model"]["gap"]["mean"]) == (1.0, 0.0)


@pytest.mark.parametrize(("choice", "kind"), [(1, "first"), (3, "second_or_third"), (7, "lower")])
def test_the_rank_that_the_base_gives_to_the_first_choice(material, choice, kind):
    out = judged(material, follows, nats_follow, top=lambda e: (choice, 8, 9))["shift"]
    assert {k: f["mean"] for k, f in out["sets"]["seen"].items()} == {
        k: float(k == kind) for k in ("first", "second_or_third", "lower")
    }
    assert list(out["positions"]) == ["1", "2", "3 to 4", "5 to 8"]
    variants, alone = answers(material, follows, nats_follow)
    assert "shift" not in judge_probes(variants, material, alone, None)


def test_tasks_of_one_family_are_one_unit_of_every_probe(material):
    families = {f"{kind}{t}": f"{kind}{t % 3}" for t in range(TASKS) for kind in "th"}
    related = Material(
        sets=material.sets, trained=material.trained, contrasts=material.contrasts, families=families
    )
    out = judged(related, follows, nats_ignore, knows=lambda e, kind: int(e.id[:2], 16) % 3 == 0)

    def units(found):
        if isinstance(found, dict):
            yield from ([found["units"]] if "units" in found else [])
            for name, value in found.items():
                if name not in ("forgetting", "control", "positions"):  # texts; prompts; both sets
                    yield from units(value)

    assert set(units(out)) == {3}
    assert "Too few tasks" in out["format"]["sentence"]
    wide = out["extraction"]["difference"]
    narrow = judged(material, follows, nats_ignore, knows=lambda e, kind: int(e.id[:2], 16) % 3 == 0)[
        "extraction"
    ]["difference"]
    assert wide["difference"] == pytest.approx(narrow["difference"])
    assert (wide["low"], wide["high"]) != (narrow["low"], narrow["high"])
