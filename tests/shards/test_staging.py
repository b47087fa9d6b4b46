"""A staged store is a whole, verified copy, made once a node; a published one is whole where its manifest is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest

from sft_dist.core.errors import UserError
from sft_dist.core.records import Span, Tokens
from sft_dist.shards import ShardWriter, Store, finish_store
from sft_dist.shards.staging import contents, publish_stores, stage

KEY = {"input": "in-1"}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    folder = tmp_path / "stores" / "mine"
    for shard in range(2):
        with ShardWriter(folder, shard, "int32", key=KEY) as writer:
            tokens = Tokens(ids=np.arange(5 + shard, dtype=np.int32), spans=(Span(2, 3, 1.0),))
            writer.add(f"{shard:032x}", 0, 0, tokens)
    finish_store(folder, key=KEY, tasks=["t"], sources=["mine"])
    return folder


@pytest.fixture(params=["memory", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    yield "memory://bucket/stores/mine" if request.param == "memory" else f"file://{tmp_path}/bucket/mine"
    if request.param == "memory":
        fsspec.filesystem("memory").rm("/bucket", recursive=True)


def test_a_store_travels_over_a_url(store: Path, url: str, tmp_path: Path) -> None:
    assert publish_stores(store, url)
    assert not publish_stores(store, url)  # it is there
    copy = stage(url, tmp_path / "disk")
    staged = Store.open(copy, KEY)
    assert staged.verify() == []
    assert [staged.read(i).ids.tolist() for i in range(2)] == [[0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5]]
    assert staged.fingerprint == Store.open(store).fingerprint  # the plan of an epoch does not change


def test_a_changed_store_replaces_the_published_one_and_gets_another_copy(
    store: Path, url: str, tmp_path: Path
) -> None:
    publish_stores(store, url)
    before = stage(url, tmp_path / "disk")
    finish_store(store, key=KEY, tasks=["t"], sources=["mine"], shards=[0])
    assert publish_stores(store, url)
    after = stage(url, tmp_path / "disk")
    assert after != before
    assert len(Store.open(after)) == 1
    assert len(fsspec.core.url_to_fs(url)[0].glob(f"{fsspec.core.url_to_fs(url)[1]}/*.arrow")) == 1


def test_a_folder_is_staged_once_and_a_copy_cut_short_is_continued(store: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    copy = stage(str(store), disk)
    inodes = {p.name: p.stat().st_ino for p in copy.rglob("*") if p.is_file()}
    assert stage(str(store), disk) == copy
    assert inodes == {p.name: p.stat().st_ino for p in copy.rglob("*") if p.is_file()}
    (copy / "manifest.json").unlink()
    (copy / "shard-00001.arrow").write_bytes(b"torn")
    stage(str(store), disk)
    again = {p.name: p.stat().st_ino for p in copy.rglob("*") if p.is_file()}
    assert {n for n in inodes if inodes[n] != again[n]} <= {"shard-00001.arrow", "manifest.json"}
    assert Store.open(copy).verify() == []


def test_the_processes_of_a_node_copy_once(store: Path, tmp_path: Path) -> None:
    children = []
    for _ in range(4):
        pid = os.fork()
        if not pid:
            os._exit(0 if Store.open(stage(str(store), tmp_path / "disk")).verify() == [] else 1)
        children.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * 4
    assert len(list((tmp_path / "disk").glob("mine-*"))) == 1


def test_a_damaged_source_is_refused(store: Path, tmp_path: Path) -> None:
    file = store / "shard-00000.arrow"
    data = bytearray(file.read_bytes())
    data[-9] ^= 1
    file.write_bytes(data)
    with pytest.raises(UserError, match="its manifest says"):
        stage(str(store), tmp_path / "disk")
    assert not list((tmp_path / "disk").glob("*/manifest.json"))
    with pytest.raises(UserError, match="could not be copied"):
        stage(str(tmp_path / "nothing"), tmp_path / "disk")


def test_a_manifest_vouches_for_every_file(store: Path) -> None:
    import json

    listed = set(contents(json.loads((store / "manifest.json").read_text())))
    found = {str(p.relative_to(store)) for p in store.rglob("*") if p.is_file()}
    # the manifest itself and the records of a build
    assert found - listed == {"manifest.json", "shard-00000.json", "shard-00001.json"}


def test_missing_credentials_are_one_sentence(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class NoCredentialsError(Exception):
        """botocore's: no OSError."""

    def locked(*_: object, **__: object) -> None:
        raise NoCredentialsError("Unable to locate credentials")

    for name in ("cat_file", "exists"):
        monkeypatch.setattr(type(fsspec.filesystem("memory")), name, locked)
    with pytest.raises(
        UserError, match="could not be copied to .* .Unable to locate credentials.*training cannot start"
    ):
        stage("memory://bucket/x", tmp_path / "disk")
    with pytest.raises(UserError, match="Unable to locate credentials.*other machines would not find it"):
        publish_stores(store, "memory://bucket/x")
