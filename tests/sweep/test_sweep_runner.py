"""pipelines/sweep/run.py on this machine: what is due, side by side, again, interrupted. Trials are stand-ins of half a second."""

from __future__ import annotations

import io
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from planted_sweep import definition
from rich.console import Console

from sft_dist.cluster.sweep.folder import SweepFolder, Trial
from sft_dist.core.errors import UserError
from sft_dist.pipelines.sweep import run as sweep
from sft_dist.pipelines.sweep.run import due_numbers, run_sweep


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch):
    monkeypatch.setattr(sweep, "TASK", "planted_trial")
    monkeypatch.setattr(sweep, "POLL_S", 0.1)
    monkeypatch.setattr(sweep, "_data_configs", lambda *_: [])
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


def planted(path: Path, *hows: str, **changed) -> SweepFolder:
    folder = SweepFolder(path)
    path.mkdir()
    for number, how in enumerate(hows):
        folder.write(Trial(number=number, settings={"how": how}))
    folder.define(definition(space={"how": ",".join(hows)}, trials=len(hows), cwd=str(path), **changed))
    return folder


def run(folder: SweepFolder) -> tuple[int, str]:
    out = io.StringIO()
    return run_sweep(folder, Console(file=out, width=200)), out.getvalue()


def states(folder: SweepFolder) -> list[tuple[str, int]]:
    return [(t.state, t.attempts) for t in folder.trials()]


def overlap(folder: SweepFolder) -> bool:
    spans = [tuple(map(float, p.read_text().split())) for p in folder.path.glob("span-*")]
    return any(a < c < b for a, b in spans for c, _ in spans)


def test_a_failed_trial_stops_no_other_and_is_named(tmp_path):
    folder = planted(tmp_path / "s", "ok", "fatal", "shaky", "broken", "ok")
    failed, said = run(folder)
    assert failed == 2
    # a crash is tried again once (retries=1), a mistake that would repeat itself is not
    assert states(folder) == [("finished", 1), ("failed", 1), ("finished", 2), ("failed", 2), ("finished", 1)]
    assert f"trial-001  how=fatal  failed: planted fatal ({folder.path}/logs/trial-001.log)" in said
    assert "trial-003  how=broken  failed: planted broken" in said
    assert "trial-000  how=ok  finished: validation loss 0" in said
    assert not overlap(folder)


def test_the_same_command_does_what_is_left(tmp_path):
    folder = planted(tmp_path / "s", "ok", "fatal", "broken")
    run(folder)
    assert due_numbers(folder, folder.definition()) == [1]  # the fatal one: something may have been mended
    folder.write(folder.trial(1).ended(settings={"how": "ok"}))
    run(folder)
    assert states(folder) == [("finished", 1), ("finished", 2), ("failed", 2)]
    assert run(folder)[1].startswith("0 of 3 trials to do")


def test_data_that_cannot_be_prepared_are_the_matter_of_their_trials(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise UserError("no such file")

    monkeypatch.setattr(sweep, "_data_configs", lambda *_: [None])
    monkeypatch.setattr(sweep, "prepare", refuse)
    assert run(planted(tmp_path / "s", "ok"))[0] == 0


def test_side_by_side(tmp_path):
    folder = planted(tmp_path / "s", "ok", "ok", "ok", max_parallel=2)
    assert run(folder)[0] == 0
    assert states(folder) == [("finished", 1)] * 3
    assert overlap(folder)


def test_a_trial_whose_process_died_is_left_for_the_next_time(tmp_path):
    folder = planted(tmp_path / "s", "killed", "ok")
    failed, said = run(folder)
    assert failed == 0
    assert "trial-000  left as it is: its process ended with code 9" in said
    assert [t.state for t in folder.trials()] == ["running", "finished"]
    assert due_numbers(folder, folder.definition()) == [0]


def test_ctrl_c_stops_the_live_trial_begins_no_other_and_the_sweep_goes_on_later(tmp_path):
    folder = planted(tmp_path / "s", "slow", "ok")

    def press() -> None:
        while not (t := folder.trial(0)) or t.state != "running":
            time.sleep(0.1)
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)  # as Ctrl-C, which a background process does not hear

    thread = threading.Thread(target=press)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        run(folder)
    thread.join()
    assert states(folder) == [("interrupted", 1), ("waiting", 0)]
    folder.write(folder.trial(0).ended(settings={"how": "ok"}))
    run(folder)
    assert states(folder) == [("finished", 2), ("finished", 1)]
