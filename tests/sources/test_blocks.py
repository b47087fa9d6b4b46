"""Blocks of a source: read one by one, in any order, they give the records of the whole."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sft_dist.core.records import BadRecord
from sft_dist.sources.alpaca import AlpacaReader
from sft_dist.sources.base import FileSource
from sft_dist.sources.files import blocks
from sft_dist.sources.flan.reader import FlanReader

ROWS = [
    {"instruction": f"Say \u00fc {i}.", "input": "", "output": "word " * (i % 23) + str(i)}
    for i in range(300)
]
LINES = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in ROWS)


def lines(path: Path) -> None:
    path.write_text(LINES)


def odd_lines(path: Path) -> None:
    """A mark at the beginning, both ends of lines, empty and unreadable lines, one much longer than a part, no end at the end."""
    text = LINES.replace("\n", "\r\n", 40).replace("\n", "\n\n \n", 60)
    long = json.dumps({"instruction": "long", "output": "x" * 9000})
    whole = "\ufeff" + text + "no json\n" + long + "\n" + text[:-3] + '"}'
    path.write_bytes(whole.encode() + b'\n{"instruction": "\xff"}')


def table(path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=20)


def array(path: Path) -> None:
    path.write_text(json.dumps(ROWS))


def packed(path: Path) -> None:
    path.write_bytes(gzip.compress(LINES.encode()))


def cells(path: Path) -> None:
    path.write_text("instruction,output\n" + "".join(f'"a ""{i}""\n b",{i}\n' for i in range(500)))


KINDS: dict[str, tuple[Callable[[Path], None], bool]] = {
    "a.jsonl": (lines, True),
    "b.jsonl": (odd_lines, True),
    "c.parquet": (table, True),
    "d.json": (array, False),
    "e.jsonl.gz": (packed, False),
    "f.csv": (cells, False),
}


def by_blocks(source: FileSource) -> list[object]:
    """What the blocks hold, in the order of the blocks, read in the other one; lines as they count them."""
    found = {
        i: [r for read in source.read(b) for r in read.made]
        for i, b in reversed(list(enumerate(source.blocks())))
    }
    return [r for i in sorted(found) for r in found[i]]


def without_line(record: object) -> object:
    return (record.reason, record.text) if isinstance(record, BadRecord) else record


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("least", [700, 2000])
def test_blocks_give_the_records_of_the_whole(tmp_path: Path, monkeypatch, name: str, least: int) -> None:
    monkeypatch.setattr(blocks, "LEAST_BYTES", least)
    monkeypatch.setattr(blocks, "PARTS", 10**6)
    write, cut = KINDS[name]
    write(tmp_path / name)
    source = AlpacaReader("s", path=str(tmp_path / name))
    assert (len(source.blocks()) > 3) == cut
    assert [without_line(r) for r in by_blocks(source)] == [without_line(r) for r in source]
    assert len(set(map(source.block_fingerprint, source.blocks()))) == len(source.blocks())


@pytest.mark.parametrize("name", KINDS)
def test_wanted_records_come_alone_and_under_their_numbers(tmp_path: Path, monkeypatch, name: str) -> None:
    monkeypatch.setattr(blocks, "LEAST_BYTES", 2000)
    KINDS[name][0](tmp_path / name)
    source = AlpacaReader("s", path=str(tmp_path / name))
    for block in source.blocks():
        every = {r.number: r.made for r in source.read(block)}
        wanted = set(list(every)[1::3])
        assert {r.number: r.made for r in source.read(block, wanted)} == {n: every[n] for n in wanted}


def test_small_files_share_a_block_and_a_new_file_moves_none_before_it(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(blocks, "LEAST_BYTES", 1000)
    for i in range(9):
        (tmp_path / f"{i}.jsonl").write_text(json.dumps({"instruction": str(i), "output": "x" * 300}) + "\n")
    source = AlpacaReader("s", path=str(tmp_path), task="{__file__}")
    assert [len(b) for b in source.blocks()] == [2, 2, 2, 2, 1]
    assert by_blocks(source) == list(source)
    before = list(map(source.block_fingerprint, source.blocks()))
    (tmp_path / "9.jsonl").write_text(LINES)
    grown = AlpacaReader("s", path=str(tmp_path), task="{__file__}")
    assert list(map(grown.block_fingerprint, grown.blocks()))[:4] == before[:4]
    (tmp_path / "3.jsonl").write_text(json.dumps({"instruction": "3", "output": "y" * 300}) + "\n")
    changed = list(map(grown.block_fingerprint, grown.blocks()))
    assert [a == b for a, b in zip(changed, before, strict=False)][:4] == [True, False, True, True]


def test_a_source_whose_first_records_are_exemplars_is_one_block(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(blocks, "LEAST_BYTES", 100)
    rows = [{"question": f"Is {i} even?", "answer": "yes", "rationale": f"{i} halves."} for i in range(60)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    source = FlanReader("s", path=str(tmp_path / "q.jsonl"), variants={"few_shot": 1.0}, exemplar_pool=4)
    assert source.blocks() == [()]
    assert by_blocks(source) == list(source)
