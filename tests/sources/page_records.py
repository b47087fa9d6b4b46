"""docs/formats.md as cases: source keys, a file, and what of its records carries loss."""

from __future__ import annotations

import bz2
import gzip
import json
import re
from pathlib import Path
from typing import NamedTuple

import yaml
from marked_text import marked
from pydantic import TypeAdapter

from sft_dist.config.sources import SourceConfig
from sft_dist.core.records import Example
from sft_dist.sources import open_source

PAGE = Path(__file__).resolve().parents[2] / "docs" / "formats.md"
_CASE = re.compile(
    r"(?:^### (?P<title>[^\n]+)\n(?P<words>(?:(?!^###|```).)*?))?```yaml\n(?P<keys>.*?)```\n\n"
    r"```(?P<kind>jsonl|json|csv|tsv|parquet|saved)\n(?P<data>.*?)```\n\n```text\n(?P<shown>.*?)```",
    re.DOTALL | re.MULTILINE,
)


class Case(NamedTuple):
    title: str
    keys: dict[str, object]
    kind: str
    data: str
    shown: list[str]


def cases(text: str) -> list[Case]:
    out: list[Case] = []
    for m in _CASE.finditer(text):
        title = m["title"] or f"{out[-1].title}, again"
        out.append(Case(title, yaml.safe_load(m["keys"]), m["kind"], m["data"], m["shown"].splitlines()))
    return out


def write(case: Case, folder: Path, how: str) -> Path:
    """Write the case's file: plain, with `bom`, with `crlf`, or compressed (`gz`, `bz2`, `zst`)."""
    if case.kind in ("parquet", "saved"):
        import datasets

        rows = datasets.Dataset.from_list([json.loads(line) for line in case.data.splitlines()])
        if case.kind == "parquet":
            rows.to_parquet(folder / "x.parquet")
            return folder / "x.parquet"
        rows.save_to_disk(str(folder / "saved"))
        return folder / "saved"
    text = case.data
    if how == "crlf":
        text = text.replace("\n", "\r\n")
    data = (b"\xef\xbb\xbf" if how == "bom" else b"") + text.encode()
    path = folder / f"x.{case.kind}"
    if how == "gz":
        path, data = path.with_name(path.name + ".gz"), gzip.compress(data)
    elif how == "bz2":
        path, data = path.with_name(path.name + ".bz2"), bz2.compress(data)
    elif how == "zst":
        import pyarrow as pa

        path, data = path.with_name(path.name + ".zst"), pa.compress(data, "zstd", asbytes=True)
    path.write_bytes(data)
    return path


def shown(case: Case, path: Path) -> list[str]:
    """What carries loss, a record a line, as the page shows it."""
    config = TypeAdapter(SourceConfig).validate_python({**case.keys, "path": str(path)})
    out = []
    for example in open_source("mine", config):
        assert isinstance(example, Example), example
        text = marked(example).replace("\n", "↵")
        if example.tools or "You are provided with function" in text:
            head, _, rest = text.partition("<end><user>")
            assert all(tool.replace("\n", "↵") in head for tool in example.tools)
            text = f"…<user>{rest}"
        out.append(text)
    return out
