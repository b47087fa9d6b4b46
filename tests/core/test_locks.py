"""Folders on a file system without locks: Lustre is often mounted so."""

from __future__ import annotations

import errno
import fcntl
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sft_dist.cluster.sweep.folder import SweepFolder
from sft_dist.core import locks
from sft_dist.core.runfolder import BusyError, RunFolder


def test_a_folder_without_locks_is_used_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    def unknown(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    class Log:
        def warning(self, text: str, *values: Any) -> None:
            said.append(text % values)

    monkeypatch.setattr(fcntl, "flock", unknown)
    monkeypatch.setattr(locks, "logger", Log)
    RunFolder(tmp_path).lock().close()
    with SweepFolder(tmp_path).lock(), SweepFolder(tmp_path).hold(3):
        pass
    assert len(said) == 3
    assert "cannot be locked (Function not implemented)" in said[0]


def test_any_other_failure_of_a_lock_is_none_of_these(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", broken)
    with pytest.raises(OSError, match="Input/output error"):
        RunFolder(tmp_path).lock()


def test_one_command_evaluates_a_run_at_a_time(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    with folder.evaluating():
        left = folder.path / "eval" / "others" / ".scores.json.1.tmp"
        left.parent.mkdir()
        left.touch()
        with pytest.raises(BusyError, match="is being evaluated by another command"), folder.evaluating():
            pass
        assert left.exists()  # it has touched nothing
    with folder.evaluating():
        assert not left.exists()


READER = """
import sys, pathlib
from sft_dist.core.locks import begin_reading
begin_reading(pathlib.Path(sys.argv[1]))
print("reads", flush=True)
sys.stdin.read()
"""


def alone(folder: Path) -> bool:
    """Whether no other process reads a folder."""
    with locks.without_readers(folder) as found:
        return found


def test_what_another_process_reads_is_known_without_a_clock(tmp_path: Path) -> None:
    assert not alone(tmp_path)  # it does not read it itself
    locks.begin_reading(tmp_path)
    assert alone(tmp_path)
    command = [sys.executable, "-c", READER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "reads\n"
        assert not alone(tmp_path)
        other.kill()
        other.wait()
    assert alone(tmp_path)


def test_nobody_begins_to_read_what_is_being_removed(tmp_path: Path) -> None:
    locks.begin_reading(tmp_path)
    command = [sys.executable, "-c", READER, str(tmp_path)]
    with locks.without_readers(tmp_path) as alone:
        assert alone
        other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        with pytest.raises(subprocess.TimeoutExpired):
            other.wait(1.0)
    with other:
        assert other.stdout is not None
        assert other.stdout.readline() == "reads\n"
        other.kill()
