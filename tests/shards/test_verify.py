"""A store that changed after it was prepared is named before anything is kept; a bus error names its file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sft_dist.core.errors import UserError
from sft_dist.core.records import Span, Tokens
from sft_dist.shards import Store
from sft_dist.shards.build import finish_store, is_whole
from sft_dist.shards.verify import StoreCheck
from sft_dist.shards.writer import ShardWriter

KEY = {"input": "x"}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    folder = tmp_path / "store"
    with ShardWriter(folder, 0, "uint16", key=KEY) as writer:
        for i in range(4):
            tokens = Tokens(ids=np.arange(9, dtype=np.int32), spans=(Span(3, 6, 1.0),))
            writer.add(f"{i:032x}", 0, 0, tokens)
    finish_store(folder, key=KEY, tasks=["t"], sources=["s"])
    return folder


def test_one_changed_token_is_found_and_named(store: Path) -> None:
    StoreCheck([store]).wait()
    shard = store / "shard-00000.arrow"
    data = bytearray(shard.read_bytes())
    at = data.index(np.arange(9, dtype=np.uint16).tobytes())
    data[at + 2] ^= 1
    shard.write_bytes(data)
    check = StoreCheck([store])
    assert check.small
    with pytest.raises(UserError, match=r"shard-00000.arrow has checksum .* --rebuild"):
        check.wait()
    with pytest.raises(UserError, match=r"shard-00000"):
        check.look()
    StoreCheck(None).wait()  # another process of the node looks


DAMAGE: dict[str, Any] = {
    "torn": lambda text: text[:100],
    "no object": lambda text: "[]",
    "binary": lambda text: "\udcff",
    "a digit": lambda text: text.replace('"tokens": 36', '"tokens": 37'),
    "a type": lambda text: text.replace('"tokens": 36', '"tokens": null'),
    "a field less": lambda text: json.dumps({k: v for k, v in json.loads(text).items() if k != "shards"}),
}


@pytest.mark.parametrize("kind", sorted(DAMAGE))
def test_a_damaged_manifest_is_one_sentence_and_no_whole_store(store: Path, kind: str) -> None:
    manifest = store / "manifest.json"
    assert is_whole(store, KEY)
    manifest.write_text(DAMAGE[kind](manifest.read_text()), errors="surrogateescape")
    with pytest.raises(UserError, match=r"manifest.json is damaged.*Rebuild it: sft-dist prepare"):
        Store.open(store)
    assert not is_whole(store, KEY)  # so that a preparation makes it anew


def test_a_bus_error_names_the_file(tmp_path: Path) -> None:
    file = tmp_path / "shard"
    file.write_bytes(bytes(1 << 16))
    script = (
        "import mmap, os, sys, numpy as np\n"
        "from sft_dist.core.bus_error import name_mapped_file\n"
        "name_mapped_file(lambda text: sys.stderr.write(text))\n"
        f"with open({str(file)!r}, 'r+b') as f:\n"
        "    mapped = np.frombuffer(mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)\n"
        "    f.truncate(0)\n"
        "print(mapped[40000])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert f"a bus error while reading {file}" in done.stderr
    assert done.stdout == ""
