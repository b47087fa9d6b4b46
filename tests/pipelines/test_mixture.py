"""One config over real collections: construct, filter, decontaminate, mix. Counted again from files alone."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from card_again import evaluated, lines, rejects
from mixture_run import (
    DAMAGED,
    EPOCH,
    HELD_SEED,
    HELD_TEMPLATE,
    KEEP_TOP,
    MAX_IFD,
    drawn,
    score_of,
    target_tokens,
)

from sft_dist.core.records import Example

pytestmark = pytest.mark.slow


def test_every_source_contributes(mixture):
    assert set(mixture.stored) == set(mixture.config.data.sources) - {"wild"}  # prompts: for the teacher only
    for name, rows in mixture.stored.items():
        assert rows, name
        assert all(row["input_ids"] and target_tokens(row) for row in rows), name
    for source in mixture.card["sources"]:
        assert (source["amount"]["drawn_examples"] > 0) == (source["name"] != "wild")
    for name in ("tools", "trees"):  # several turns, each with loss
        assert sum(len(row["spans"]) > 1 for row in mixture.stored[name]) > len(mixture.stored[name]) / 4, (
            name
        )
    kinds = {row["task"] for row in mixture.stored["flan"]}
    assert {"qasc_train", "qasc_train/cot", "qasc_train/inversion", "aqua_train/cot"} <= kinds
    assert (
        len({row["task"] for row in mixture.stored["p3_copa"]}) == 11
    )  # of twelve templates one is held out
    assert {row["task"] for row in mixture.stored["ni_v1"]} == {"subtask105_ending"}
    assert len({row["task"] for row in mixture.stored["p3_rendered"]}) >= 90


def test_damaged_records_are_named_one_by_one_and_the_rest_is_kept(mixture):
    folder = mixture.root / "instructwild"
    unreadable = [r for r in rejects(mixture.data, "wild") if r["reason"] == "unreadable"]
    assert [(r["record"]["file"], r["record"]["line"]) for r in unreadable] == [
        (str(folder / name), line) for name, line in DAMAGED
    ]
    for reject, (name, line) in zip(unreadable, DAMAGED, strict=True):
        assert f"{name}, line {line}: not valid JSON" in reject["detail"]
        text = (folder / name).read_bytes().split(b"\n")[line - 1].decode()
        assert text.startswith(reject["record"]["text"][:100])
    sound = sum(len(f.read_text().splitlines()) for f in folder.glob("data_v2_user_*.jsonl")) - len(DAMAGED)
    read = Counter(type(r).__name__ for r in mixture.records["wild"])
    assert read == {"Example": sound, "BadRecord": len(DAMAGED)}
    for name in set(mixture.stored) - {"wild"}:
        assert not [r for r in rejects(mixture.data, name) if r["reason"] == "unreadable"]


def test_every_record_is_stored_evaluated_or_rejected(mixture):
    for name, records in mixture.records.items():
        if name == "wild":
            continue
        found = Counter(r.id for r in records if isinstance(r, Example))
        stored = Counter(row["id"] for row in mixture.stored[name])
        rejected = Counter(r["record"]["id"] for r in rejects(mixture.data, name) if "id" in r["record"])
        assert not (stored & rejected) or max(found.values()) > 1
        rest = found - stored - rejected
        assert stored + rejected + rest == found
        assert set(rest) <= {e["id"] for e in evaluated(mixture.data)}
        assert sum(rest.values()) == mixture.selection["sources"][name]["evaluation"]


def test_nothing_held_out_is_in_any_store(mixture):
    official = (mixture.real / "natural-instructions/splits/default/test_tasks.txt").read_text().split()
    strategy = {r.task for r in mixture.records["flan"] if r.task.startswith("strategyqa_train")}
    held = {*official, *strategy, HELD_TEMPLATE, HELD_SEED}
    present = {r.task for records in mixture.records.values() for r in records if isinstance(r, Example)}
    assert len(held & present) == 16 + len(strategy) + 2
    for name, rows in mixture.stored.items():
        by_id = {r.id: r for r in mixture.records[name] if isinstance(r, Example)}
        for row in rows:
            example = by_id[row["id"]]
            assert row["task"] == example.task
            assert row["task"] not in held
            assert not {o.removeprefix("task:") for o in example.origin} & held
    assert mixture.card["held_out"] == sorted(mixture.selection["holdout"]["tasks"])
    assert set(mixture.card["held_out"]) >= held


def test_no_other_question_about_an_evaluated_record_is_trained_on(mixture):
    """P3 asks each record through twelve templates; one of them is held out."""
    examples = {r.id: r for r in mixture.records["p3_copa"] if isinstance(r, Example)}
    records = {
        origin
        for e in evaluated(mixture.data)
        if e["source"] == "p3_copa"
        for origin in e["origin"]
        if origin.startswith("record:")
    }
    assert len(records) >= 20
    assert sum(bool(records & set(e.origin)) for e in examples.values()) > 100
    assert not any(records & set(examples[row["id"]].origin) for row in mixture.stored["p3_copa"])
    assert Counter(r["reason"] for r in rejects(mixture.data, "p3_copa"))["eval_record"] > 0


def test_decontaminated_against_another_rendering_of_held_out_data(mixture):
    """`alpaca` holds StrategyQA questions too, under another name, written otherwise: the text gives them away."""
    raw = [
        line.split("\t")[0].strip()
        for line in (mixture.real / "flan-cot" / "strategyqa_train.tsv").read_text().splitlines()
    ]
    asked = set()
    for e in lines(mixture.data / "eval" / "heldout.jsonl"):
        if e["task"].startswith("strategyqa_train"):
            text = "\n".join(m["content"] for m in e["messages"])
            last = max((q for q in raw if q in text), key=text.rfind)  # what stands before it are exemplars
            asked |= {last} if len(last.split()) >= 8 else set()  # shorter ones have no n-gram
    examples = {r.id: r for r in mixture.records["alpaca"] if isinstance(r, Example)}
    leaks = {i for i, e in examples.items() if any(q in e.messages[0].content for q in asked)}
    assert len(leaks) >= 20
    assert not leaks & {row["id"] for row in mixture.stored["alpaca"]}
    dropped = {r["record"]["id"]: r["reason"] for r in rejects(mixture.data, "alpaca") if "id" in r["record"]}
    assert {dropped[i] for i in leaks} <= {
        "leakage",
        "eval_input",
        "eval_shown",
        "near_duplicate",
        "exact_duplicate",
    }
    assert Counter(dropped.values())["leakage"] > 0
    assert mixture.card["contaminated"]


def test_generated_sets_descend_from_training_tasks_only(mixture):
    seeds = {r.task for r in mixture.records["seeds"] if isinstance(r, Example)}
    held = next(r for r in mixture.records["seeds"] if isinstance(r, Example) and r.task == HELD_SEED)
    assert mixture.asked
    assert not any(held.instruction[:60] in text for text in mixture.asked)
    for example in mixture.records["grown"]:
        parents = {o.removeprefix("task:") for o in example.origin if o.startswith("task:")}
        assert parents
        assert parents <= seeds - {HELD_SEED}
    prompts = {r.id for r in mixture.records["wild"] if isinstance(r, Example)}
    for example in mixture.records["imagined"]:
        assert set(example.origin) & prompts
        assert "task:wild" in example.origin
    for name in ("grown", "imagined"):
        counts = json.loads((mixture.data / "construct" / name / "counts.json").read_text())
        assert counts["examples"] == len(mixture.records[name]) == len(lines(source_file(mixture, name))) >= 5


def source_file(mixture: SimpleNamespace, name: str) -> Path:
    return Path(mixture.config.data.sources[name].path)


def test_the_score_files_decide_what_is_dropped(mixture):
    """Of each task the hardest `KEEP_TOP` of those up to `MAX_IFD`, among what every other rule keeps."""
    reasons: Counter[str] = Counter()
    for name in mixture.records:
        left = rejects(mixture.data, name)
        kept = [(row["id"], row["task"]) for row in mixture.stored.get(name, ())]
        files = sorted((mixture.data / "rejects").glob(f"{name}-render-*.jsonl"))
        kept += [(r["record"]["id"], r["record"]["task"]) for f in files for r in lines(f)]
        low = [(r["record"]["id"], r["record"]["task"]) for r in left if r["reason"] == "score_rank"]
        by_task: dict[str, list[float]] = {}
        for key, task in (*kept, *low):
            by_task.setdefault(task, []).append(score_of(key))
        least = {t: sorted(v)[len(v) - -int(-KEEP_TOP * len(v) // 1)] for t, v in by_task.items()}
        assert all(least[task] <= score_of(key) <= MAX_IFD for key, task in kept)
        assert all(score_of(key) < least[task] for key, task in low)
        for r in left:
            if r["reason"] == "score_high":
                assert score_of(r["record"]["id"]) > MAX_IFD
            if r["reason"] in {"score_rank", "score_high"}:
                assert f"{score_of(r['record']['id']):.3f}" in r["detail"]
                reasons[r["reason"]] += 1
    assert min(reasons["score_rank"], reasons["score_high"]) > 100
    file = mixture.card["id_files"]["scores.ifd"]
    assert (file["unknown"], file["missing"]) == (0, 0)
    assert "Scores and lists by id" in mixture.page


def test_the_mixture_follows_the_config(mixture):
    counts = Counter(name for name, _ in drawn(mixture))
    assert counts.total() == EPOCH
    shares = {n: s.share for n, s in mixture.config.data.sources.items() if s.share is not None}
    for name, share in shares.items():
        assert counts[name] == round(share * EPOCH), name
    assert counts["trees"] == EPOCH - sum(round(share * EPOCH) for share in shares.values())
    taken = {place for name, place in drawn(mixture) if name == "alpaca"}
    assert len(taken) <= round(0.5 * len(mixture.stored["alpaca"]))
