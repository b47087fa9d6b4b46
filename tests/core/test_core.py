"""Nouns, seeds, atomic files, the run folder."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from sft_dist.core.errors import UserError, nearest
from sft_dist.core.files import (
    append_jsonl,
    atomic_path,
    checksum,
    fingerprint,
    read_jsonl,
    replace_folder,
    write_json,
)
from sft_dist.core.process import logger
from sft_dist.core.records import (
    Message,
    ToolCall,
    example_from_dict,
    example_to_dict,
    make_example,
    single_turn,
)
from sft_dist.core.rng import derive, generator
from sft_dist.core.runfolder import RunFolder


def test_the_three_part_view_of_a_single_turn() -> None:
    e = single_turn(task="t", source="s", instruction="Reverse the words.", input="a b", output="b a")
    assert (e.instruction, e.input, e.output) == ("Reverse the words.", "a b", "b a")
    assert e.messages[0].content == "Reverse the words.\n\na b"
    bare = single_turn(task="t", source="s", instruction="Say hi.", output="hi")
    assert (bare.instruction, bare.input, bare.answers) == ("Say hi.", "", ("hi",))


def test_an_id_is_the_address_of_the_content() -> None:
    a, b = (single_turn(task="t", source=s, instruction="x", output="y") for s in ("one", "two"))
    assert a.id == b.id  # the source is not content
    assert a.id[:16] != single_turn(task="t", source="one", instruction="x", output="z").id[:16]
    other = single_turn(task="u", source="one", instruction="x", output="y")
    assert a.id != other.id
    assert a.id[:16] == other.id[:16]  # nor is the task, in the first half


def test_an_example_survives_json() -> None:
    e = make_example(
        task="t",
        source="s",
        messages=(
            Message(role="user", content="q"),
            Message(
                role="assistant",
                content="",
                reasoning_content="r",
                tool_calls=(ToolCall(name="f", arguments='{"a":1}', id="1"),),
                weight=0.5,
            ),
            Message(role="tool", content="2", tool_call_id="1"),
        ),
        tools=('{"name":"f"}',),
        references=("a", "b"),
        origin=("dataset:squad",),
    )
    assert example_from_dict(example_to_dict(e)) == e


def test_seeds_depend_on_every_name_and_on_nothing_else() -> None:
    assert derive(0, "a", 1) == derive(0, "a", 1) == 5295354729880077902
    assert len({derive(0, "a", 1), derive(1, "a", 1), derive(0, "b", 1), derive(0, "a", 2)}) == 4
    assert generator(3, "x").integers(1000) == generator(3, "x").integers(1000)


def test_a_file_is_whole_or_absent(tmp_path: Path) -> None:
    path = tmp_path / "a" / "x.json"
    with pytest.raises(RuntimeError), atomic_path(path) as aside:
        aside.write_text("half")
        raise RuntimeError
    assert list(path.parent.iterdir()) == []
    write_json(path, {"b": 1, "a": 2})
    assert path.read_text() == '{\n "b": 1,\n "a": 2\n}\n'


def test_two_writers_of_one_process_number_do_not_meet(tmp_path: Path) -> None:
    """Slices of an array in containers: each has a numbering of its own, all share the folder."""
    path = tmp_path / "x"
    with atomic_path(path) as late:
        late.write_text("first ")
        with atomic_path(path) as early:
            early.write_text("whole")
        assert path.read_text() == "whole"
        with late.open("a") as file:
            file.write("and last")
        assert path.read_text() == "whole"
    assert path.read_text() == "first and last"


def test_only_files_are_replaced(tmp_path: Path) -> None:
    """Anything else stays what it is: `--html /dev/null`, run by root, once left a page where the device had been."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (tmp_path / "link").symlink_to(pipe)
    for path in (pipe, tmp_path / "link", tmp_path):
        with pytest.raises(UserError, match="writing would replace it; name a file"):
            write_json(path, {})
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "pipe"]
    (tmp_path / "new").mkdir()
    with pytest.raises(UserError, match="is no folder"):
        replace_folder(tmp_path / "new", pipe)
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_link_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "file")
    write_json(tmp_path / "link", 1)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "1\n"


def test_a_torn_line_is_left_out_and_the_next_append_starts_a_new_one(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    append_jsonl(path, {"a": 1})
    with path.open("ab") as f:
        f.write('{"a": "é'.encode()[:-1])  # the tear lies inside a character
    assert read_jsonl(path) == [{"a": 1}]
    append_jsonl(path, {"a": 3})
    assert read_jsonl(path) == [{"a": 1}, {"a": 3}]
    assert read_jsonl(tmp_path / "none") == []


def test_checksum_and_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")
    assert checksum(tmp_path / "f") == "06b05ab6733a618578af5f94892f3950"
    assert fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})


def test_nearest_names_a_close_choice_only() -> None:
    assert nearest("epoch", ["epochs", "lr"]) == " Did you mean 'epochs'?"
    assert nearest("zzz", ["epochs", "lr"]) == ""


def test_a_second_run_on_one_folder_refuses(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    code = (
        "import sys; from pathlib import Path; from sft_dist.core.runfolder import RunFolder\n"
        f"held = RunFolder(Path({str(tmp_path)!r})).lock(); print('held', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    with pytest.raises(UserError, match=f"in use by another run .process {other.pid} on"):
        folder.lock()
    other.communicate("")
    folder.lock().close()


def test_status_and_controls(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.status() == {}
    folder.set_status("running", step=3)
    assert folder.status()["state"] == "running"
    assert not folder.asked("stop")
    (tmp_path / "control").mkdir()
    (tmp_path / "control" / "stop").touch()
    assert folder.asked("stop")
    folder.clear("stop")
    assert not folder.asked("stop")


def test_a_module_that_is_run_logs_under_its_own_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """`python -m sft_dist.x` calls it __main__, and a logger of that name would show nothing."""
    monkeypatch.setitem(sys.modules, "__main__", SimpleNamespace(__spec__=SimpleNamespace(name="sft_dist.x")))
    assert logger("__main__").name == "sft_dist.x"
    monkeypatch.setitem(sys.modules, "__main__", SimpleNamespace(__spec__=None))
    assert logger("__main__").name == "__main__"
