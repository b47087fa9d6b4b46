"""Licences of records: named by a field, allowed by name, every other record a drop with its licence."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from sft_dist.config import RunConfig
from sft_dist.config.load import validate
from sft_dist.config.sources import DemoSource
from sft_dist.core.errors import UserError
from sft_dist.pipelines.data.prepare import prepare
from sft_dist.selection.files import training_examples
from sft_dist.selection.query import query
from sft_dist.selection.sides import select
from sft_dist.sources import open_source

TERMS = ["CC-BY-4.0", "MIT", "cc-by-nc-4.0", "GPL-3.0"]


def write(folder: Path, *, stated: str | None = "MIT", allow: object = ("cc-by-4*", "mit")) -> RunConfig:
    def record(k: int, **more: str) -> dict[str, str]:
        return {"instruction": f"Tell of thing number {k}.", "output": f"It is thing {k}.", **more}

    files = {
        "mixed": [record(k, terms=TERMS[k % 4]) for k in range(40)] + [record(40, terms="")],
        "whole": [record(k) for k in range(100, 110)],
        "own": [record(k, license=TERMS[k % 4]) for k in range(200, 220)] + [record(220)],
    }
    for name, records in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    sources = {name: {"kind": "alpaca", "path": str(folder / f"{name}.jsonl")} for name in files}
    sources["mixed"]["license"] = "{terms}"
    if stated is not None:
        sources["whole"]["license"] = stated
    return validate(
        {
            "data": {
                "dir": str(folder / "data"),
                "sources": sources,
                "processes": 1,
                "max_bad_share": 0.1,
                "filters": {"licenses": allow},
            },
            "render": {"train_vocab_size": 300, "template": "chatml"},
            "model": {"shape": {"hidden_size": 16, "intermediate_size": 16, "layers": 1, "heads": 1}},
        }
    )


def run(config: RunConfig):
    sources = {n: open_source(n, c) for n, c in config.data.sources.items()}
    return sources, select(config.data, sources, Path(config.data.dir), lambda _: None, seed=config.seed)


def kept(config: RunConfig) -> dict[str, Counter[str | None]]:
    sources, selected = run(config)
    return {
        n: Counter(e.license for e in training_examples(s, selected.sources[n])) for n, s in sources.items()
    }


def test_only_allowed_licences_are_trained_on(tmp_path: Path):
    config = write(tmp_path)
    assert kept(config) == {
        "mixed": {"CC-BY-4.0": 10, "MIT": 10},
        "whole": {None: 10},  # its source states it
        "own": {"CC-BY-4.0": 5, "MIT": 5},
    }
    reasons = Counter()
    for name in config.data.sources:
        for line in (tmp_path / "data" / "rejects" / f"{name}.jsonl").read_text().splitlines():
            r = json.loads(line)
            reasons[r["reason"], r["detail"]] += 1
    assert reasons == {
        ("license", "'cc-by-nc-4.0' is not allowed"): 15,
        ("license", "'GPL-3.0' is not allowed"): 15,
        ("license", "no licence is stated"): 1,
        ("unreadable", reasons_of_unreadable(tmp_path)): 1,
    }
    names, rows = query(
        tmp_path / "data",
        "SELECT source, record, line, license FROM records WHERE reason = 'license' ORDER BY ALL",
    )
    found = list(rows)
    assert names == ["source", "record", "line", "license"]
    assert len(found) == 31
    assert found[0] == ("mixed", 2, 3, "cc-by-nc-4.0")


def reasons_of_unreadable(folder: Path) -> str:
    return f"{folder}/mixed.jsonl, line 41: field 'terms', which names the licence, holds '', not a name"


def test_a_licence_that_the_source_states_decides_anew(tmp_path: Path):
    kept(write(tmp_path))
    with pytest.raises(
        UserError, match=r"data\.sources\.whole: none of its 10 records is kept \(license 10\)"
    ):
        run(write(tmp_path, stated="GPL-3.0"))
    with pytest.raises(UserError, match=r"data\.sources\.whole: none"):
        run(write(tmp_path, stated=None))
    everything = kept(write(tmp_path, allow=None))
    assert sum(everything["mixed"].values()) == 40
    assert everything["own"] == {**dict.fromkeys(TERMS, 5), None: 1}


def test_the_store_of_a_source_does_not_hang_on_what_others_may(tmp_path: Path):
    first = prepare(write(tmp_path, allow=None)).keys["whole"]["input"]
    assert first == prepare(write(tmp_path), rebuild=True).keys["whole"]["input"]


def test_a_field_that_no_record_has_is_said(tmp_path: Path):
    config = write(tmp_path)
    source = config.data.sources["whole"].model_copy(update={"license": "{terms}"})
    with pytest.raises(UserError, match="field 'terms', which names the licence, is missing"):
        open_source("whole", source)
    demo = DemoSource(kind="demo", license="{x}")
    with pytest.raises(UserError, match=r"data\.sources\.d\.license='\{x\}' names a field"):
        open_source("d", demo)
