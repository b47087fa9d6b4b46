"""A store gives back what was written, says what is wrong with it, and never opens half-built."""

import multiprocessing
import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from sft_dist.core.errors import UserError
from sft_dist.core.files import read_json, read_object, write_checked
from sft_dist.core.records import Span, Tokens
from sft_dist.shards import (
    ShardWriter,
    Store,
    finish_store,
    finished_shards,
    is_whole,
    open_build,
    token_dtype,
)

KEY = {"input": "in-1", "tokenizer": "tok-1", "template": "chatml"}

# (id, task, ids, spans): three documents over two shards, checked by eye below.
SHARDS = [
    [("a" * 32, 0, [5, 6, 7, 8], [(2, 2, 1.0)]), ("b" * 32, 1, [9, 10], [])],
    [("c" * 32, 0, [1, 2, 3, 4, 5], [(1, 1, 0.5), (3, 2, 1.0)])],
]


@pytest.fixture(autouse=True)
def disk(monkeypatch):
    """What is flushed, in order, by path, with the renames between. Not truly flushed: hundreds take a minute, and a
    dying process (unlike a dying machine) loses nothing that it wrote."""
    events = []
    monkeypatch.setattr(
        os, "fsync", lambda fd: events.append(("flush", str(Path(f"/proc/self/fd/{fd}").readlink())))
    )
    for name in ("replace", "rename"):
        plain = getattr(Path, name)

        def move(self, target, plain=plain):
            events.append(("move", str(self), str(target)))
            return plain(self, target)

        monkeypatch.setattr(Path, name, move)
    return events


def tokens(ids, spans):
    return Tokens(ids=np.array(ids, np.int32), spans=tuple(Span(*s) for s in spans))


def write_shard(folder, number, docs, dtype="uint16", key=KEY):
    with ShardWriter(folder, number, dtype, key=key) as writer:
        for id_hex, task, ids, spans in docs:
            writer.add(id_hex, task, 0, tokens(ids, spans))
        return writer.close(note={"slice": number})


def build(folder, dtype="uint16", key=KEY):
    """What a preparation does: the missing shards, then the store."""
    done = open_build(folder, key)
    for number, docs in enumerate(SHARDS):
        if number not in done:
            write_shard(folder, number, docs, dtype, key)
    finish_store(folder, key=key, tasks=["sum", "copy"], sources=["demo"], shards=range(len(SHARDS)))
    return sorted(done)


@pytest.mark.parametrize("dtype", ["uint16", "int32"])
def test_reads_back_what_was_written(tmp_path, dtype):
    build(tmp_path, dtype)
    store = Store.open(tmp_path, KEY)
    assert len(store) == 3
    assert store.read(0).ids.tolist() == [5, 6, 7, 8]
    assert store.read(0).ids.dtype == np.int32
    assert store.read(2).spans == (Span(1, 1, 0.5), Span(3, 2, 1.0))
    assert store.read(2).target_weight == 2.5
    assert store.token_ids(2, start=1, length=3).tolist() == [2, 3, 4]
    assert store.lengths.tolist() == [4, 2, 5]
    assert store.tasks.tolist() == [0, 1, 0]
    assert store.span_offsets.tolist() == [0, 1, 1, 3]
    assert [store.id_hex(i)[0] for i in range(3)] == ["a", "b", "c"]
    assert (store.task_names, store.source_names) == (["sum", "copy"], ["demo"])
    assert (store.n_tokens, store.n_target_tokens) == (11, 5)
    assert store.verify() == []


def test_a_shard_is_a_plain_arrow_stream_with_integer_codes_and_binary_ids(tmp_path):
    build(tmp_path)
    with (tmp_path / "shard-00001.arrow").open("rb") as f:
        table = pa.ipc.open_stream(f).read_all()
    assert table.to_pylist() == [
        {
            "id": bytes.fromhex("c" * 32),
            "task": 0,
            "source": 0,
            "input_ids": [1, 2, 3, 4, 5],
            "spans": [{"start": 1, "length": 1, "weight": 0.5}, {"start": 3, "length": 2, "weight": 1.0}],
        }
    ]
    assert table.schema.field("input_ids").type.value_type == pa.uint16()


def test_a_shard_opens_with_datasets(tmp_path):
    datasets = pytest.importorskip("datasets")
    build(tmp_path)
    rows = datasets.Dataset.from_file(str(tmp_path / "shard-00000.arrow"))
    assert rows["input_ids"][:] == [[5, 6, 7, 8], [9, 10]]


def test_two_bytes_hold_ids_of_small_vocabularies_only(tmp_path):
    assert token_dtype(65536) == "uint16"
    assert token_dtype(65537) == "int32"
    write_shard(tmp_path, 0, [("a" * 32, 0, [0, 65535], [])])
    with pytest.raises(ValueError, match="do not fit uint16"):
        write_shard(tmp_path, 1, [("a" * 32, 0, [0, 65536], [])])
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["shard-00000.arrow", "shard-00000.json"]


def test_many_batches_and_many_shards_keep_their_order(tmp_path):
    rng = np.random.default_rng(0)
    docs = [rng.integers(0, 60000, int(rng.integers(1, 9))) for _ in range(9500)]
    for number, part in (
        (7, docs[6000:]),
        (2, docs[:6000]),
    ):  # more than a record batch each, written out of order
        with ShardWriter(tmp_path, number, "uint16", key=KEY) as writer:
            for i, ids in enumerate(part):
                spans = [(len(ids) - 1, 1, 1.0)] if len(ids) > 1 else []
                writer.add(f"{number * 10000 + i:032x}", i % 5, 0, tokens(ids, spans))
    finish_store(tmp_path, key=KEY, tasks=list("abcde"), sources=["demo"])
    store = Store.open(tmp_path)
    assert all(store.token_ids(i).tolist() == ids.tolist() for i, ids in enumerate(docs))
    assert [store.spans(i)[0].start for i in range(9500) if len(docs[i]) > 1] == [
        len(d) - 1 for d in docs if len(d) > 1
    ]
    assert store.tasks[6000:6003].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "spans",
    [
        [(0, 1, 1.0)],
        [(1, 0, 1.0)],
        [(2, 3, 1.0)],
        [(1, 2, 1.0), (2, 1, 1.0)],
        [(1, 1, -1.0)],
        [(1, 1, float("nan"))],
    ],
    ids=["first token", "empty", "past the end", "overlap", "negative", "nan"],
)
def test_wrong_spans_are_refused(tmp_path, spans):
    with pytest.raises(ValueError, match="spans start at 1"):
        write_shard(tmp_path, 0, [("a" * 32, 0, [1, 2, 3, 4], spans)])
    assert list(tmp_path.iterdir()) == []


def test_spans_without_weight_are_not_stored(tmp_path):
    write_shard(tmp_path, 0, [("a" * 32, 0, [1, 2, 3], [(1, 1, 0.0), (2, 1, 1.0)])])
    finish_store(tmp_path, key=KEY, tasks=["sum"], sources=["demo"])
    assert Store.open(tmp_path).spans(0) == (Span(2, 1, 1.0),)


def test_another_key_is_refused_with_what_changed_and_the_command(tmp_path):
    build(tmp_path)
    wanted = {"input": "in-1", "tokenizer": "tok-2", "template": "chatml", "filters": "f"}
    with pytest.raises(UserError) as error:
        Store.open(tmp_path, wanted, rebuild="sft-dist prepare my.yaml")
    message = str(error.value)
    assert "tokenizer (tok-1 -> tok-2)" in message
    assert "filters (new: f)" in message
    assert "input" not in message
    assert "template" not in message
    assert "sft-dist prepare my.yaml" in message
    assert len(Store.open(tmp_path)) == 3  # no expectation, no complaint


def test_a_key_is_compared_as_json(tmp_path):
    build(tmp_path, key={"roles": ("user", "system")})
    assert len(Store.open(tmp_path, {"roles": ["user", "system"]})) == 3


def test_absent_unfinished_and_empty_stores_are_refused(tmp_path):
    with pytest.raises(UserError, match="holds no token store"):
        Store.open(tmp_path / "absent")
    write_shard(tmp_path / "half", 0, SHARDS[0])
    with pytest.raises(UserError, match="unfinished"):
        Store.open(tmp_path / "half")
    write_shard(tmp_path / "empty", 0, [])
    finish_store(tmp_path / "empty", key=KEY, tasks=[], sources=["demo"])
    with pytest.raises(UserError, match="holds no examples"):
        Store.open(tmp_path / "empty")


def test_another_format_version_is_refused(tmp_path):
    build(tmp_path)
    manifest = read_object(tmp_path / "manifest.json", "")
    write_checked(tmp_path / "manifest.json", {**manifest, "format": 99})
    with pytest.raises(UserError, match="format 99"):
        Store.open(tmp_path)


@pytest.mark.parametrize("name", ["shard-00001.arrow", "index/length.npy"])
def test_damage_is_found(tmp_path, name):
    build(tmp_path)
    path = tmp_path / name
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert [name in problem for problem in Store.open(tmp_path).verify()] == [True]
    path.write_bytes(content[:-1])
    with pytest.raises(UserError, match="bytes instead of"):
        Store.open(tmp_path)
    path.unlink()
    with pytest.raises(UserError, match="missing"):
        Store.open(tmp_path)


def test_a_relaunch_does_only_what_is_missing(tmp_path):
    record = write_shard(tmp_path, 0, SHARDS[0])
    assert finished_shards(tmp_path, KEY) == {0: record}
    with pytest.raises(UserError, match="1 of its shards are not finished"):
        finish_store(tmp_path, key=KEY, tasks=["sum", "copy"], sources=["demo"], shards=[0, 1])
    assert build(tmp_path) == [0]
    assert build(tmp_path) == [0, 1]
    assert len(Store.open(tmp_path)) == 3


def test_a_shard_of_another_key_does_not_count_and_is_removed(tmp_path):
    write_shard(tmp_path, 0, SHARDS[0], key={"input": "old"})
    write_shard(tmp_path, 9, SHARDS[0], key={"input": "old"})
    assert finished_shards(tmp_path, KEY) == {}
    build(tmp_path)
    assert not list(tmp_path.glob("shard-00009*"))


def test_a_new_key_takes_the_old_store_away_at_once(tmp_path):
    build(tmp_path)
    new = {**KEY, "input": "in-2"}
    assert is_whole(tmp_path, KEY)
    assert not is_whole(tmp_path, new)
    assert open_build(tmp_path, new) == {}
    with pytest.raises(UserError, match="unfinished"):
        Store.open(tmp_path)


def test_an_old_record_never_vouches_for_a_new_file(tmp_path, monkeypatch):
    write_shard(tmp_path, 0, SHARDS[0])
    with monkeypatch.context() as patch:
        patch.setattr("sft_dist.shards.format.write_record", lambda *_: None)  # it died just before
        write_shard(tmp_path, 0, [("d" * 32, 0, [8, 7, 6, 5], [(2, 2, 1.0)]), ("b" * 32, 1, [9, 10], [])])
    assert finished_shards(tmp_path, KEY) == {}


def test_writing_into_a_whole_store_makes_it_unfinished(tmp_path):
    build(tmp_path)
    write_shard(tmp_path, 1, SHARDS[1])
    with pytest.raises(UserError, match="unfinished"):
        Store.open(tmp_path)


def test_an_exception_while_writing_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), ShardWriter(tmp_path, 0, "uint16", key=KEY) as writer:
        writer.add("a" * 32, 0, 0, tokens([1, 2], []))
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_another_process_maps_the_files_itself(tmp_path):
    build(tmp_path)
    store = pickle.loads(pickle.dumps(Store.open(tmp_path)))
    assert store.read(2).ids.tolist() == [1, 2, 3, 4, 5]


FILE_EVENTS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree"}


def build_and_die(folder, survive):
    """Build in a child process that dies, as by SIGKILL, at its file operation number `survive`. True if it lived."""
    child = os.fork()
    if child == 0:
        left = survive

        def count(event, args):
            nonlocal left
            if event in FILE_EVENTS and str(folder) in str(args[0]):
                if left == 0:
                    os._exit(9)
                left -= 1

        sys.addaudithook(count)
        build(folder)
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0


def test_killed_at_any_file_operation_it_never_opens_half_built_and_a_relaunch_completes_it(tmp_path):
    build(tmp_path / "reference")
    reference = read_json(tmp_path / "reference" / "manifest.json")
    for survive in range(200):
        folder = tmp_path / f"killed-{survive}"
        lived = build_and_die(folder, survive)
        before = sorted(finished_shards(folder, KEY)) if folder.is_dir() else []
        if is_whole(folder, KEY):
            assert Store.open(folder, KEY).verify() == []
        else:
            assert not lived
            with pytest.raises(UserError):
                Store.open(folder, KEY)
        assert build(folder) == before
        assert Store.open(folder, KEY).verify() == []
        assert read_json(folder / "manifest.json") == reference
        assert not [p for p in folder.rglob("*") if p.name.endswith(".tmp")]
        if lived:
            break
    assert 20 < survive < 199  # the build has so many points to die at, and all were tried


def test_every_file_is_flushed_before_it_gets_its_name_and_the_manifest_comes_last(tmp_path, disk):
    build(tmp_path)
    moves = [i for i, event in enumerate(disk) if event[0] == "move"]
    names = [Path(disk[i][2]).name for i in moves]
    assert names == [
        "shard-00000.arrow",
        "shard-00000.json",
        "shard-00001.arrow",
        "shard-00001.json",
        "index",
        "manifest.json",
    ]
    for i in moves:
        flushed = {event[1] for event in disk[:i] if event[0] == "flush"}
        aside = disk[i][1]
        inside = (
            {f"{aside}/{p.name}" for p in Path(disk[i][2]).iterdir()}
            if disk[i][2].endswith("index")
            else {aside}
        )
        assert inside <= flushed
        assert disk[i + 1] == ("flush", str(tmp_path))  # the name itself


def test_several_processes_write_shards_of_one_store(tmp_path):
    children = []
    for number, docs in enumerate(SHARDS):
        child = os.fork()
        if child == 0:
            open_build(tmp_path, KEY)
            write_shard(tmp_path, number, docs)
            os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    assert build(tmp_path) == [0, 1]
    assert [Store.open(tmp_path).read(i).ids[0] for i in range(3)] == [5, 9, 1]


def close_together(folder, barrier):
    barrier.wait()
    finish_store(folder, key=KEY, tasks=["sum", "copy"], sources=["demo"], shards=range(len(SHARDS)))


def test_several_processes_close_one_store_at_the_same_moment(tmp_path):
    """The slices of an array that end together all find the shards whole. Without a lock they took each other's files away."""
    for number, docs in enumerate(SHARDS):
        write_shard(tmp_path, number, docs)
    forked = multiprocessing.get_context("fork")
    for _ in range(5):
        barrier = forked.Barrier(4)
        closing = [forked.Process(target=close_together, args=(tmp_path, barrier)) for _ in range(4)]
        for process in closing:
            process.start()
        for process in closing:
            process.join(30)
        assert [process.exitcode for process in closing] == [0] * 4
        (tmp_path / "manifest.json").unlink()
        close_together(tmp_path, forked.Barrier(1))
        assert not Store.open(tmp_path).verify()


def test_killed_while_a_whole_store_is_closed_again(tmp_path):
    for survive in range(0, 200, 3):
        folder = tmp_path / f"killed-{survive}"
        build(folder)
        lived = build_and_die(folder, survive)
        if is_whole(folder, KEY):
            assert Store.open(folder, KEY).verify() == []
        else:
            with pytest.raises(UserError):
                Store.open(folder, KEY)
        assert build(folder) == [0, 1]
        if lived:
            break
    assert 10 < survive < 199
