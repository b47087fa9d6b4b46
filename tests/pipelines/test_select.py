"""The selection with everything on: what is planted is found, nothing held out gets through, counts survive a relaunch."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from sft_dist.config import RunConfig
from sft_dist.config.filters import RecordRules
from sft_dist.config.load import validate
from sft_dist.core.errors import UserError
from sft_dist.core.records import BadRecord
from sft_dist.selection import judge, sides, tables, workers
from sft_dist.selection.files import DROPPED, EVALUATE, TRAIN, UNREADABLE, training_examples
from sft_dist.selection.sides import select
from sft_dist.sources import open_source

WORDS = [f"word{i}" for i in range(4000)]


def text(first: int, size: int = 30) -> str:
    return " ".join(WORDS[first : first + size])


def rows() -> dict[str, list[dict[str, str]]]:
    """Two sources. Line k of "main" has words of its own, so that nothing is alike but what is planted."""
    main = [
        {"instruction": f"Shorten the text {'held' if k % 4 == 3 else 'trained'}.", "input": text(40 * k), "output": text(40 * k + 30, 8), "task": "held" if k % 4 == 3 else "trained"}
        for k in range(60)
    ]  # fmt: skip
    other = [
        {"instruction": f"Tell {text(2600 + 20 * k, 12)}.", "output": text(2612 + 20 * k, 6)}
        for k in range(40)
    ]
    return {"main": main, "other": other}


def write(folder: Path, data: dict[str, list[dict[str, str]]], **filters: object) -> RunConfig:
    for name, records in data.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    sources = {
        "main": {"kind": "alpaca", "path": str(folder / "main.jsonl"), "task": "{task}"},
        "other": {"kind": "alpaca", "path": str(folder / "other.jsonl")},
    }
    return validate({
        "data": {
            "dir": str(folder / "data"), "sources": sources, "processes": 1,
            "holdout": {"tasks": ["held"]}, "filters": filters,
        },
        "render": {"train_vocab_size": 300, "template": "chatml"},
        "model": {"shape": {"hidden_size": 16, "intermediate_size": 16, "layers": 1, "heads": 1, "max_position_embeddings": 4096}},
    })  # fmt: skip


def run(config: RunConfig):
    sources = {n: open_source(n, c) for n, c in config.data.sources.items()}
    return sources, select(config.data, sources, Path(config.data.dir), lambda _: None, seed=config.seed)


def rejects(config: RunConfig, source: str) -> dict[int, dict[str, str]]:
    """Reason and detail by the number in the record's text."""
    lines = (Path(config.data.dir) / "rejects" / f"{source}.jsonl").read_text().splitlines()
    return {i: json.loads(line) for i, line in enumerate(lines)}


def test_without_the_rules_the_planted_stays(tmp_path: Path):
    data = rows()
    data["other"].append(dict(data["other"][0], output=data["other"][0]["output"] + " more"))
    _, selected = run(write(tmp_path, data))
    assert selected.sources["other"].dropped == {}
    assert selected.contaminated == ()


def test_near_duplicates_within_a_source_and_across(tmp_path: Path):
    data = rows()
    plain = data["other"][0]
    data["other"].append(dict(plain, instruction=plain["instruction"] + " please"))
    data["other"].append(dict(plain, output="something quite different from it all"))
    rule = {"threshold": 0.7}
    config = write(tmp_path, data, near_duplicates=rule)
    _, selected = run(config)
    assert selected.sources["other"].dropped == {"near_duplicate": 1}
    assert rejects(config, "other")[0]["detail"].startswith("like example ")
    assert " of other: prompt 0.9" in rejects(config, "other")[0]["detail"]
    assert selected.sources["other"].codes.tolist()[40] == DROPPED

    # the same record in another source counts with across_sources only, and there the first source keeps it
    trained = next(r for r in data["main"] if r["task"] == "trained")
    data["other"].append({k: trained[k] for k in ("instruction", "input", "output")})
    within, across = (
        run(
            write(
                tmp_path / n,
                data,
                near_duplicates=rule | {"across_sources": n == "across"},
                eval_inputs=False,
            )
        )[1]
        for n in ("within", "across")
        if not (tmp_path / n).mkdir()
    )
    assert (
        within.sources["other"].dropped["near_duplicate"],
        across.sources["other"].dropped["near_duplicate"],
    ) == (1, 2)
    assert across.sources["main"].dropped == within.sources["main"].dropped


def evaluated(config: RunConfig) -> list[dict]:
    folder = Path(config.data.dir) / "eval"
    return [
        json.loads(x) for n in ("seen", "heldout") for x in (folder / f"{n}.jsonl").read_text().splitlines()
    ]


def test_leakage_in_both_directions(tmp_path: Path):
    data = rows()
    held = [r for r in data["main"] if r["task"] == "held"]
    data["other"] += [
        {
            "instruction": f"Consider: {held[0]['input']} What follows?",
            "output": "nothing",
        },  # the evaluation input whole
        {
            "instruction": " ".join(held[1]["input"].split()[5:18]),
            "output": "a part",
        },  # a part of it, and nothing else
        {"instruction": f"{text(3600)} {' '.join(held[2]['input'].split()[:10])}", "output": "too little"},
    ]
    config = write(tmp_path, data, leakage={})
    _, selected = run(config)
    assert selected.sources["other"].dropped == {"leakage": 2}
    codes = selected.sources["other"].codes.tolist()
    assert (codes[40], codes[41], codes[42]) == (DROPPED, DROPPED, TRAIN)
    ids = {e["messages"][0]["content"]: e["id"] for e in evaluated(config)}
    found = {c.id: c for c in selected.contaminated}
    assert set(found) == {next(i for t, i in ids.items() if h["input"] in t) for h in held[:2]}
    first, second = (found[next(i for t, i in ids.items() if h["input"] in t)] for h in held[:2])
    assert (first.how, first.coverage, first.source, first.examples) == ("eval_in_training", 1.0, "other", 1)
    assert first.span == " ".join(held[0]["input"].split()[:24])
    assert (second.how, second.coverage) == ("training_in_eval", 1.0)
    details = [r["detail"] for r in rejects(config, "other").values()]
    assert first.id in details[0]
    assert first.span in details[0]


def test_nothing_held_out_is_trained_on_whatever_the_source(tmp_path: Path):
    """A held-out example planted in another source: as it is, reworded around, and as a descendant."""
    data = rows()
    held = [r for r in data["main"] if r["task"] == "held"]
    data["other"] += [
        {"instruction": held[0]["instruction"], "input": held[0]["input"], "output": held[0]["output"]},
        {"instruction": "Make this short!", "input": held[1]["input"].upper(), "output": "x"},
        {"instruction": f"Here is a text. {held[2]['input']} Now shorten it.", "output": held[2]["output"]},
    ]
    config = write(tmp_path, data, leakage={})
    sources, selected = run(config)
    assert selected.sources["other"].dropped == {"eval_input": 2, "leakage": 1}
    trained = [e for n, s in sources.items() for e in training_examples(s, selected.sources[n])]
    assert len(trained) == 45 + 40
    assert all(e.task != "held" for e in trained)
    seen = {e["messages"][0]["content"].split("\n\n")[1] for e in evaluated(config)}
    for example in trained:
        said = " ".join(m.content for m in example.messages).lower()
        assert not any(held_text.lower() in said for held_text in seen)


@pytest.mark.parametrize("eval_inputs", [True, False])
def test_a_copy_of_a_held_out_task_is_not_trained_on_though_only_part_of_it_is_evaluated(
    tmp_path: Path, eval_inputs: bool
):
    data = rows()
    held = [r for r in data["main"] if r["task"] == "held"]
    data["other"] += [
        {"instruction": "Another wording.", "input": "  " + r["input"].upper(), "output": r["output"]}
        for r in held
    ]
    data["other"].append(
        {"instruction": "Reverse it.", "input": held[0]["input"], "output": "its own answer"}
    )
    config = write(tmp_path, data, eval_inputs=eval_inputs)
    few = config.data.holdout.model_copy(update={"max_eval_per_task": 4})
    config = config.model_copy(update={"data": config.data.model_copy(update={"holdout": few})})
    dropped = run(config)[1].sources["other"].dropped
    assert dropped["heldout_copy"] == (11 if eval_inputs else 15)
    assert sum(dropped.values()) in (15, 16)  # the last one only if its input is among the four


def test_a_relaunch_keeps_counts_and_a_change_decides_anew(tmp_path: Path, monkeypatch):
    data = rows()
    held = next(r for r in data["main"] if r["task"] == "held")
    data["other"].append({"instruction": f"Read {held['input']}", "output": "yes"})
    data["other"].append(dict(data["other"][0]))
    config = write(tmp_path, data, leakage={}, near_duplicates={})
    _, first = run(config)
    files = {p: p.read_bytes() for p in Path(config.data.dir).rglob("*") if p.is_file()}
    with monkeypatch.context() as patched:  # what is there is read back, not decided again
        patched.setattr("sft_dist.selection.sides.make_facts", None)
        _, again = run(config)
    assert again.contaminated == first.contaminated != ()
    for name in first.sources:
        one, other = first.sources[name], again.sources[name]
        assert (one.dropped, one.read, one.kept, one.fingerprint) == (
            other.dropped,
            other.read,
            other.kept,
            other.fingerprint,
        )
        assert np.array_equal(one.codes, other.codes)
    assert first.sources["other"].dropped == {"leakage": 1, "exact_duplicate": 1}
    assert {p: p.read_bytes() for p in files} == files
    (Path(config.data.dir) / "selection.json").unlink()  # and decided again it is the same
    run(config)
    assert {p: p.read_bytes() for p in files} == files
    _, other = run(write(tmp_path, data, leakage=None))
    assert other.sources["other"].dropped == {"exact_duplicate": 1}


def test_every_record_is_accounted_for(tmp_path: Path):
    data = rows()
    config = write(tmp_path, data, leakage={}, near_duplicates={}, repetition={})
    path = tmp_path / "other.jsonl"
    path.write_text(path.read_text() + '{"instruction": 5}\n')
    config = config.model_copy(update={"data": config.data.model_copy(update={"max_bad_share": 0.5})})
    sources, selected = run(config)
    for name, source in sources.items():
        s = selected.sources[name]
        records = list(source)
        assert len(records) == s.read == len(s.codes)
        assert s.kept + s.evaluation + s.unreadable + sum(s.dropped.values()) == s.read
        by_code = Counter(s.codes.tolist())
        assert (by_code[TRAIN], by_code[EVALUATE], by_code[UNREADABLE]) == (
            s.kept,
            s.evaluation,
            s.unreadable,
        )
        reasons = Counter(r["reason"] for r in rejects(config, name).values())
        assert reasons == Counter(s.dropped) + Counter(unreadable=s.unreadable)
        assert [isinstance(r, BadRecord) for r in records] == (s.codes == UNREADABLE).tolist()
    assert selected.sources["other"].unreadable == 1


def outcome(config: RunConfig) -> dict[str, bytes]:
    out = Path(config.data.dir)
    return {
        str(p.relative_to(out)): p.read_bytes()
        for p in sorted(out.rglob("*"))
        if p.is_file() and p.name != "selection.json" and not p.name.startswith(".")
    }


def small_blocks(monkeypatch, least: int = 4096) -> None:
    """Cut files into many blocks, and never think them too small for a pool."""
    monkeypatch.setattr("sft_dist.sources.files.blocks.LEAST_BYTES", least)
    monkeypatch.setattr(workers, "POOL_BYTES", 1)
    monkeypatch.setattr(tables, "GROUP_ROWS", 7)
    monkeypatch.setattr(judge, "SMALL_ROWS", 3)


def planted() -> dict[str, list[dict[str, str]]]:
    """Duplicates, near ones and leaks that lie in other blocks than what they are like."""
    data = rows()
    held = [r for r in data["main"] if r["task"] == "held"]
    data["other"] *= 3
    data["other"] += [{"instruction": f"Consider: {r['input']}", "output": "nothing"} for r in held[:3]]
    data["other"] += [dict(r, instruction=r["instruction"] + " please") for r in data["other"][5:9]]
    return data


def with_processes(config: RunConfig, processes: int) -> RunConfig:
    return config.model_copy(update={"data": config.data.model_copy(update={"processes": processes})})


def test_a_pool_decides_what_one_process_decides_and_blocks_what_the_whole_does(tmp_path: Path, monkeypatch):
    files = []
    for name, processes, least in (("whole", 1, 0), ("one", 1, 4096), ("two", 2, 4096), ("three", 3, 900)):
        (tmp_path / name).mkdir()
        rule = {"threshold": 0.7, "across_sources": True}
        config = write(tmp_path / name, planted(), leakage={}, near_duplicates=rule)
        with monkeypatch.context() as patched:
            if least:
                small_blocks(patched, least)
            path = tmp_path / name / "other.jsonl"
            lines = path.read_text().splitlines()
            path.write_text(
                "\n".join([*lines[:3], '{"instruction": 5}', "", *lines[3:70], "no json", *lines[70:]])
            )
            config = config.model_copy(update={"data": config.data.model_copy(update={"max_bad_share": 0.5})})
            _, selected = run(with_processes(config, processes))
        found = {n: v.replace(bytes(path.parent), b"") for n, v in outcome(config).items()}
        bad = [r["record"]["line"] for r in rejects(config, "other").values() if r["reason"] == "unreadable"]
        assert bad == [4, 73]
        facts = {n for n in found if n.startswith("facts/other/") and n.endswith(".parquet")}
        assert (len(facts) > 3) == bool(least)
        files.append({n: v for n, v in found.items() if not n.startswith("facts/")})
        assert {"leakage", "exact_duplicate", "near_duplicate"} <= set(selected.sources["other"].dropped)
    assert files[0] == files[1] == files[2] == files[3]


def test_slices_make_the_facts_together_and_decide_the_same(tmp_path: Path, monkeypatch):
    small_blocks(monkeypatch)
    for name in ("whole", "slices"):
        (tmp_path / name).mkdir()
    whole, sliced = (
        write(tmp_path / n, planted(), leakage={}, near_duplicates={}) for n in ("whole", "slices")
    )
    run(whole)
    made = []
    real = sides.MakeFacts.__call__
    with monkeypatch.context() as patched:
        patched.setattr(
            sides.MakeFacts,
            "__call__",
            lambda self, s, item: (made.append(item.number), real(self, s, item))[1],
        )
        for part in ((2, 3), (0, 3), (1, 3)):
            sources = {n: open_source(n, c) for n, c in sliced.data.sources.items()}
            select(sliced.data, sources, Path(sliced.data.dir), lambda _: None, seed=sliced.seed, part=part)
    found = outcome(sliced)
    assert found == outcome(whole)
    assert len(made) == sum(n.endswith(".parquet") for n in found)  # none twice
    assert made[0] == 2  # the first slice began with its own


@pytest.mark.parametrize("damage", ["torn table", "torn record", "no table", "flipped"])
def test_facts_that_are_damaged_are_made_again_and_the_others_are_not(tmp_path: Path, monkeypatch, damage):
    small_blocks(monkeypatch)
    config = write(tmp_path, planted(), near_duplicates={})
    run(config)
    before = outcome(config)
    table = sorted((tmp_path / "data/facts/other").glob("*.parquet"))[1]
    data = table.read_bytes()
    if damage == "no table":
        table.unlink()
    elif damage == "torn record":
        table.with_suffix(".json").write_text("{")
    else:
        table.write_bytes(
            data[:-9] if damage == "torn table" else data[:50] + bytes([data[50] ^ 1]) + data[51:]
        )
    inodes = {p: p.stat().st_ino for p in (tmp_path / "data/facts").rglob("*.parquet") if p != table}
    (tmp_path / "data/selection.json").unlink()
    run(config)
    assert outcome(config) == before
    assert {p: p.stat().st_ino for p in inodes} == inodes


class KilledError(Exception):
    """As if the process ended."""


def test_a_launch_that_ends_at_a_block_loses_that_block_alone(tmp_path: Path, monkeypatch):
    small_blocks(monkeypatch)
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    whole, killed = (
        write(tmp_path / n, planted(), leakage={}, near_duplicates={}) for n in ("whole", "killed")
    )
    run(whole)
    made: list[str] = []
    for job in (sides.MakeFacts, judge.Judge):
        real = job.__call__

        def dies(self, sources, item, real=real):
            if isinstance(self, judge.Judge) and self.path(item.facts).with_suffix(".json").exists():
                return real(self, sources, item)
            if len(made) % 3 == 2:
                made.append("killed")
                raise KilledError
            made.append(type(self).__name__)
            return real(self, sources, item)

        monkeypatch.setattr(job, "__call__", dies)
    launches = 0
    while launches < 50:
        launches += 1
        try:
            run(killed)
        except KilledError:
            assert not (tmp_path / "killed/data/selection.json").exists()
        else:
            break
    assert launches > 3
    found = outcome(killed)
    assert found == outcome(whole)
    blocks = sum(n.startswith("facts/") and n.endswith(".parquet") for n in found)
    assert (made.count("MakeFacts"), made.count("Judge")) == (blocks, blocks)  # none twice


def test_missing_scores_name_the_command(tmp_path: Path):
    with pytest.raises(UserError, match="sft-dist score"):
        run(write(tmp_path, rows(), scores={"ifd": {"max": 1}}))
    assert not (tmp_path / "data" / "selection.json").exists()


def test_a_source_sets_its_own_rules(tmp_path: Path):
    data = rows()
    for name in data:
        data[name].append(
            {
                "instruction": f"Help with {text(3800)}.",
                "output": "I am sorry, but I cannot help with that.",
                "task": "trained",
            }
        )
    config = write(tmp_path, data, refusal=True)
    sources = dict(config.data.sources)
    sources["other"] = sources["other"].model_copy(update={"filters": RecordRules(refusal=False)})
    own = config.model_copy(update={"data": config.data.model_copy(update={"sources": sources})})
    _, everywhere = run(config)
    assert [everywhere.sources[n].dropped.get("refusal", 0) for n in ("main", "other")] == [1, 1]
    _, scoped = run(own)
    assert [scoped.sources[n].dropped.get("refusal", 0) for n in ("main", "other")] == [1, 0]
    assert own.data.filters_of("other").length == config.data.filters.length  # what it leaves out stays


def test_memory_that_is_too_little_to_look_for_duplicates_is_one_sentence(tmp_path: Path) -> None:
    config = write(tmp_path, rows(), near_duplicates={})
    small = config.model_copy(update={"data": config.data.model_copy(update={"memory_gb": 0.0005})})
    with pytest.raises(
        UserError, match=r"100 records cannot be joined .*data\.memory_gb=0\.0005 .*; raise data\.memory_gb"
    ):
        run(small)
    assert not [p for p in (tmp_path / "data").iterdir() if p.name.startswith(".spill")]
    assert run(config)


def test_facts_of_this_selection_and_the_one_before_stay(tmp_path: Path) -> None:
    """Going back to earlier settings reads nothing anew; what is older goes; a dry run removes nothing."""

    def facts() -> set[str]:
        return {p.name for p in (tmp_path / "data/facts/main").glob("*.parquet")}

    def settings(chars: int) -> RunConfig:
        return write(tmp_path, rows(), length={"min_answer_chars": chars})

    made = []
    for chars in (1, 2, 3):
        run(settings(chars))
        made.append(facts())
    assert [len(m) for m in made] == [1, 2, 2]
    assert made[1] > made[0]
    assert not made[2] & made[0]
    left = tmp_path / "data/facts/main/.x.parquet.1.tmp"
    left.touch()  # of a launch that was killed
    config = settings(4)
    sources = {n: open_source(n, c) for n, c in config.data.sources.items()}
    select(config.data, sources, tmp_path / "dry", lambda _: None, seed=0, facts=tmp_path / "data/facts")
    assert facts() > made[2]
    assert left.exists()
    run(settings(2))
    assert not left.exists()
    assert facts() == made[2]  # that of the dry run went
