"""`sft-dist query`: what it counts is what the selection says; mistakes are one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

Sft = Callable[..., tuple[int, str, str]]


def test_it_counts_what_the_selection_counts(sft: Sft, project: Path) -> None:
    assert sft("prepare", "my.yaml", "data.holdout.examples_per_task=2")[0] == 0
    sources = json.loads((project / "data/selection.json").read_text())["sources"]
    code, out, _ = sft(
        "query",
        "data",
        "SELECT source, outcome, count(*) AS n, count(DISTINCT id) AS ids FROM records GROUP BY ALL ORDER BY ALL",
    )
    assert code == 0
    head, *lines = out.splitlines()
    assert head == "source\toutcome\tn\tids"
    found = {(s, o): int(n) for s, o, n, _ in (line.split("\t") for line in lines)}
    for name, selection in sources.items():
        assert sum(n for (s, _), n in found.items() if s == name) == selection["read"]
        assert found.get((name, "evaluated"), 0) == selection["evaluation"] > 0
        assert found.get((name, "dropped"), 0) == sum(selection["dropped"].values())
    evaluated = [
        json.loads(line)["id"] for line in (project / "data/eval/seen.jsonl").read_text().splitlines()
    ]
    _, out, _ = sft("query", "data", "SELECT DISTINCT id FROM records WHERE outcome = 'evaluated'")
    assert sorted(out.split()[1:]) == sorted(evaluated)


def test_columns_stand_in_the_documentation(sft: Sft, project: Path) -> None:
    assert sft("prepare", "my.yaml")[0] == 0
    _, out, _ = sft("query", "data", "SELECT column_name FROM (DESCRIBE records)")
    page = (Path(__file__).parents[2] / "docs/data.md").read_text()
    told = {
        "source",
        "record",
        "outcome",
        "id",
        "task",
        "license",
        "origin",
        "prompt_chars",
        "answer_chars",
        "input_key",
    }
    assert told <= set(out.split())
    assert all(f"`{name}`" in page for name in told)


@pytest.mark.parametrize(
    ("folder", "sql", "said"),
    [
        ("data", "SELECT nothing FROM records", "the question cannot be answered"),
        ("data", "SELEC 1", "the question cannot be answered"),
        ("data", "SELECT CAST(id AS INTEGER) FROM records", "the question cannot be answered"),
        ("data", "", "there is no statement"),
        ("elsewhere", "SELECT 1", "holds no selection.json"),
    ],
)
def test_a_mistake_is_one_sentence(sft: Sft, project: Path, folder: str, sql: str, said: str) -> None:
    assert sft("prepare", "my.yaml")[0] == 0
    code, _, err = sft("query", folder, sql)
    assert (code, len(err.strip().splitlines())) == (2, 1)
    assert said in err
    assert "Traceback" not in err


def test_facts_that_are_gone_are_named(sft: Sft, project: Path) -> None:
    assert sft("prepare", "my.yaml")[0] == 0
    next((project / "data/facts/records").glob("*.parquet")).unlink()
    code, _, err = sft("query", "data", "SELECT 1")
    assert (code, "so the records of records are unknown; remove data/selection.json" in err) == (2, True)
    (project / "data/selection.json").unlink()
    assert sft("prepare", "my.yaml")[0] == 0
    assert sft("query", "data", "SELECT 1")[0] == 0


@pytest.mark.parametrize("file", ["facts/records/*.parquet", "selection-records.npy", "selection.json"])
@pytest.mark.parametrize("content", [b"", b"PAR1", b'{"sources": {"records": {"blocks": [3]}}}'])
def test_a_damaged_data_folder_is_one_sentence(sft: Sft, project: Path, file: str, content: bytes) -> None:
    assert sft("prepare", "my.yaml")[0] == 0
    next((project / "data").glob(file)).write_bytes(content)
    code, _, err = sft("query", "data", "SELECT count(*) FROM records")
    assert (code, err.count("\n"), "Traceback" in err) == (2, 1, False)
    assert "remove data/selection.json and run sft-dist prepare" in err
