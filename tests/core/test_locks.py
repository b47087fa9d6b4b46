"""Folders on a file system without locks: Lustre is often mounted so."""

from __future__ import annotations

import errno
import fcntl
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
