"""Scores and lists of other tools, joined by id: what is dropped is what a plain reading of the file says."""

from __future__ import annotations

import csv
import gzip
import json
import random
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_select import rows, run, small_blocks, with_processes, write

from sft_dist.config import RunConfig
from sft_dist.config.load import load_config
from sft_dist.core.errors import UserError
from sft_dist.core.records import Example
from sft_dist.selection.by_id import judged
from sft_dist.selection.files import training_examples


def trained(config: RunConfig) -> dict[str, Example]:
    sources, selected = run(config)
    found = [e for n, s in sources.items() for e in training_examples(s, selected.sources[n])]
    return {e.id: e for e in found}


def dropped(config: RunConfig) -> dict[str, tuple[str, str]]:
    """Reason and detail by id, of all sources."""
    files = sorted((Path(config.data.dir) / "rejects").glob("*.jsonl"))
    found = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    assert len(found) == len({r["record"]["id"] for r in found})  # nothing is dropped twice
    return {r["record"]["id"]: (r["reason"], r["detail"]) for r in found}


def made_up(ids) -> dict[str, float]:
    return {i: round(random.Random(i).random() * 10, 3) for i in ids}


def write_table(path: Path, records: list[dict]) -> Path:
    kind = path.name.partition(".")[2]
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(records), path)
    elif kind in ("csv", "tsv"):
        with path.open("w", newline="") as file:
            table = csv.DictWriter(file, list(records[0]), delimiter="," if kind == "csv" else "\t")
            table.writeheader()
            table.writerows(records)
    elif kind == "json":
        path.write_text(json.dumps(records))
    else:
        text = "".join(json.dumps(r) + "\n" for r in records)
        path.write_bytes(gzip.compress(text.encode()) if kind.endswith("gz") else text.encode())
    return path


@pytest.fixture
def plain(tmp_path: Path) -> SimpleNamespace:
    """The records without any rule by id: what is trained on, a score of each."""
    examples = trained(write(tmp_path, rows()))
    return SimpleNamespace(examples=examples, scores=made_up(examples))


def with_scores(folder: Path, **filters) -> RunConfig:
    return write(folder, rows(), **filters)


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "jsonl.gz", "json", "csv", "tsv"])
def test_every_kind_of_file_drops_the_same(tmp_path: Path, plain, kind: str):
    notes = ['a "quoted", text', "of\ttabs" if kind != "tsv" else "of words"]
    records = [
        {"note": notes[i % 2], "id": key.upper() if i % 3 == 0 else key, "complexity": value}
        for i, (key, value) in enumerate(plain.scores.items())
    ]
    path = write_table(tmp_path / f"scores.{kind}", records)
    config = with_scores(tmp_path, scores={"complexity": {"file": str(path), "min": 2, "max": 9}})
    kept = trained(config)
    assert set(kept) == {i for i, v in plain.scores.items() if 2 <= v <= 9}
    for key, (reason, detail) in dropped(config).items():
        if reason.startswith("score"):
            value = plain.scores[key]
            assert (reason, detail) == (
                ("score_low", f"complexity {value:.3f} < 2")
                if value < 2
                else ("score_high", f"complexity {value:.3f} > 9")
            )
    assert len(plain.scores) - len(kept) > 10


def test_a_folder_of_files_is_one_score_and_a_column_may_have_another_name(tmp_path: Path, plain):
    (tmp_path / "scores").mkdir()
    items = list(plain.scores.items())
    write_table(tmp_path / "scores" / "a.csv", [{"id": i, "Judge's score": v} for i, v in items[::2]])
    write_table(tmp_path / "scores" / "b.parquet", [{"id": i, "Judge's score": v} for i, v in items[1::2]])
    rule = {"file": str(tmp_path / "scores"), "column": "Judge's score", "max": 5}
    assert set(trained(with_scores(tmp_path, scores={"judge": rule}))) == {i for i, v in items if v <= 5}


def test_the_best_of_each_task_of_a_source_are_kept_after_the_limits(tmp_path: Path, plain):
    path = write_table(tmp_path / "s.jsonl", [{"id": i, "s": v} for i, v in plain.scores.items()])
    for best in ("high", "low"):
        config = with_scores(
            tmp_path, scores={"s": {"file": str(path), "min": 1, "keep_top": 0.4, "best": best}}
        )
        by_task: dict[tuple[str, str], list[str]] = {}
        for key, e in plain.examples.items():
            if plain.scores[key] >= 1:
                by_task.setdefault((e.source, e.task), []).append(key)
        wanted = set()
        for ids in by_task.values():
            order = sorted(ids, key=plain.scores.__getitem__, reverse=best == "high")
            wanted |= set(order[: -int(-0.4 * len(order) // 1)])
        assert len(by_task) > 1
        assert set(trained(config)) == wanted


def test_a_task_of_one_keeps_it_and_ties_stay_together():
    import numpy as np

    from sft_dist.config.filters import ScoreRule

    values = np.array([0.3, 0.3, 0.3, 0.1, 0.7, np.nan, 0.5])
    cells = np.array([0, 0, 0, 0, 1, 0, 2], np.int32)
    alive = np.array([True] * 6 + [False])
    [(hit, drop)] = judged("s", ScoreRule(keep_top=0.5), values, alive, cells)
    assert np.flatnonzero(hit & alive).tolist() == [3]
    assert drop(3).detail == "s 0.100 < 0.300, of the task's best 50% the last"


def test_examples_without_a_score_are_counted_and_kept_or_dropped(tmp_path: Path, plain, capsys):
    some = dict(list(plain.scores.items())[5:])
    records = [{"id": i, "s": v} for i, v in some.items()]
    records[0]["s"] = None  # the tool looked and found no number
    records += [{"id": "f" * 32, "s": 3.0}]  # of no record
    path = write_table(tmp_path / "s.parquet", records)
    for missing, left in (("keep", set()), ("drop", {*list(plain.scores)[:6]})):
        rule = {"file": str(path), "min": 0, "missing": missing}
        config = with_scores(tmp_path, scores={"s": rule})
        capsys.readouterr()
        assert set(trained(config)) == set(plain.scores) - left
        file = run(config)[1].id_files["scores.s"]  # read back
        assert (file.ids, file.unknown, file.examples, file.missing) == (
            len(records), 1, len(plain.scores), 6,
        )  # fmt: skip
        said = capsys.readouterr().err.splitlines()
        assert sum("1 of the" in s and "of no record" in s for s in said) == 1
        assert sum(f"6 of {len(plain.scores)} training examples have no score" in s for s in said) == 1
    assert Counter(r for r, _ in dropped(config).values())["score_missing"] == 6


def test_listed_ids_are_not_trained_on(tmp_path: Path, plain):
    wanted = list(plain.examples)[3:10]
    (tmp_path / "ids.txt").write_text("\n".join(wanted))
    write_table(tmp_path / "ids.csv", [{"id": i, "why": "seen"} for i in wanted])
    for name in ("ids.txt", "ids.csv"):
        config = with_scores(tmp_path, drop_ids=str(tmp_path / name))
        assert set(trained(config)) == set(plain.examples) - set(wanted)
        reasons = dropped(config)
        assert {i for i, (reason, _) in reasons.items() if reason == "listed"} == set(wanted)


def test_several_rules_follow_one_another_and_any_number_of_workers_decides_the_same(
    tmp_path: Path, plain, monkeypatch
):
    small_blocks(monkeypatch)
    other = made_up([i + "x" for i in plain.scores])
    records = [{"id": i, "a": v, "b": other[i + "x"]} for i, v in plain.scores.items()]
    path = str(write_table(tmp_path / "s.parquet", records))
    (tmp_path / "ids.txt").write_text("\n".join(list(plain.examples)[:4]))
    filters = {
        "drop_ids": str(tmp_path / "ids.txt"),
        "scores": {"a": {"file": path, "max": 8}, "b": {"file": path, "keep_top": 0.5}},
    }
    found = []
    for processes in (1, 2):
        (tmp_path / str(processes)).mkdir()
        config = with_processes(write(tmp_path / str(processes), rows(), **filters), processes)
        kept = trained(config)
        rejects = {
            n: (Path(config.data.dir) / "rejects" / f"{n}.jsonl").read_bytes() for n in ("main", "other")
        }
        found.append((set(kept), rejects))
    assert found[0] == found[1]
    reasons = Counter(r for r, _ in dropped(config).values())
    assert min(reasons[r] for r in ("listed", "score_high", "score_rank")) >= 4


@pytest.mark.parametrize(
    ("records", "name", "said"),
    [
        ([{"id": "{0}", "other": 1}], "s.jsonl", "has no column 's', so its rows cannot be joined; it has id, other"),
        ([{"key": "{0}", "s": 1}], "s.parquet", "has no column 'id'"),
        ([{"id": "{0}", "s": 1}, {"id": "{0}", "s": 2}], "s.csv", "several values of 's'"),
        ([{"id": "{0}", "s": 1}, {"id": "{0}", "s": None}], "s.jsonl", "several values of 's'"),
        ([{"id": "{0}", "s": "high"}], "s.csv", "cannot be read"),
        ([{"id": "{0}", "s": "high"}], "s.parquet", "cannot be read"),
        ([{"id": "record 7", "s": 1}], "s.jsonl", "'record 7', which is no content id"),
        ([{"id": 17, "s": 1}], "s.parquet", "'17', which is no content id"),
        ([{"id": "f" * 32, "s": 1}], "s.jsonl", "none of the 85 training examples has a score"),
    ],
)  # fmt: skip
def test_a_file_that_does_not_fit_is_one_sentence(tmp_path: Path, plain, records, name: str, said: str):
    first = next(iter(plain.examples))
    for r in records:
        if isinstance(r.get("id", r.get("key")), str):
            r.update({k: v.format(first) for k, v in r.items() if isinstance(v, str)})
    path = write_table(tmp_path / name, records)
    with pytest.raises(UserError) as error:
        run(with_scores(tmp_path, scores={"s": {"file": str(path), "min": 0}}))
    assert said in str(error.value)
    assert "data.filters.scores.s" in str(error.value)
    assert "\n" not in str(error.value)


def test_equal_rows_are_one_and_a_damaged_or_missing_file_is_refused(tmp_path: Path, plain):
    items = list(plain.scores.items())
    path = write_table(tmp_path / "s.jsonl", [{"id": i, "s": v} for i, v in [*items, *items[:3]]])
    config = with_scores(tmp_path, scores={"s": {"file": str(path), "min": 5}})
    assert set(trained(config)) == {i for i, v in items if v >= 5}
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"s\.jsonl cannot be read"):
        run(config)
    path.unlink()
    with pytest.raises(UserError, match=r"data\.filters\.scores\.s: .*s\.jsonl does not exist"):
        run(config)
    with pytest.raises(UserError, match="cannot be joined by id"):
        run(with_scores(tmp_path, drop_ids=str(write_table(tmp_path / "s.arrow", [{"id": "a"}]))))


def test_a_changed_score_decides_anew_and_makes_no_facts(tmp_path: Path, plain):
    path = write_table(tmp_path / "s.jsonl", [{"id": i, "s": v} for i, v in plain.scores.items()])
    config = with_scores(tmp_path, scores={"s": {"file": str(path), "min": 5}})
    run(config)
    facts = {f: f.stat().st_mtime_ns for f in (tmp_path / "data" / "facts").rglob("*.parquet")}
    write_table(path, [{"id": i, "s": 10 - v} for i, v in plain.scores.items()])
    assert set(trained(config)) == {i for i, v in plain.scores.items() if 10 - v >= 5}
    assert facts == {f: f.stat().st_mtime_ns for f in (tmp_path / "data" / "facts").rglob("*.parquet")}


def test_a_score_that_drops_nothing_is_refused(tmp_path: Path):
    (tmp_path / "c.yaml").write_text("data: {filters: {scores: {s: {file: x}}}}")
    with pytest.raises(UserError, match=r"scores\.s drops nothing"):
        load_config([], tmp_path / "c.yaml")
