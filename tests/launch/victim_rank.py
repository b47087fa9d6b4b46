"""A rank that does nothing: says that it is there, and, asked for a checkpoint, says so and ends."""

import os
import signal
import sys
import time
from pathlib import Path

folder, rank = Path(sys.argv[sys.argv.index("--run-dir") + 1]), os.environ["RANK"]


def asked(*_: object) -> None:
    (folder / f"asked-{rank}").touch()
    sys.exit(0)


signal.signal(signal.SIGUSR1, asked)
(folder / f"rank-{rank}.aside").write_text(str(os.getpid()))
(folder / f"rank-{rank}.aside").rename(folder / f"rank-{rank}.pid")
time.sleep(600)
