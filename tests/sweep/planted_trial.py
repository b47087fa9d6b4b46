"""Stands in for sft_dist.pipelines.sweep.trial: `run SWEEP NUMBER` does what the trial's setting `how` says."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

from sft_dist.cluster.sweep.folder import SweepFolder

signal.signal(signal.SIGINT, signal.default_int_handler)
folder, number = SweepFolder(Path(sys.argv[2])), int(sys.argv[3])
trial = folder.trial(number)
assert trial is not None
how, attempts = trial.settings["how"], trial.attempts + 1
began = time.time()
trial = folder.write(trial.ended(state="running", attempts=attempts))
failed = {"state": "failed", "reason": f"planted {how}", "failures": trial.failures + 1}
try:
    if how == "slow":
        time.sleep(60)
    time.sleep(0.5)
    if how == "killed":
        sys.exit(9)
    ended = {"state": "finished", "value": float(number)}
    if how == "fatal":
        ended = failed | {"fatal": True}
    elif how == "broken" or (how == "shaky" and attempts == 1):
        ended = failed
except KeyboardInterrupt:
    ended = {"state": "interrupted"}
folder.write(trial.ended(**ended))
(folder.path / f"span-{number}-{attempts}").write_text(f"{began} {time.time()}")
