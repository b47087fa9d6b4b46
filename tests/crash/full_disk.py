"""A disk without room for a checkpoint: `python full_disk.py FOLDER OUT.json`. The limit is that of a file's size."""

from __future__ import annotations

import json
import resource
import shutil
import sys
from pathlib import Path
from typing import Any

import victims
from kill_training import STEPS, ended, launch, set_up

from sft_dist.checkpoint.io import damage
from sft_dist.core.files import read_jsonl
from sft_dist.core.runfolder import RunFolder

ROOM_BYTES = 60_000  # logs and metrics fit, a rank's weights (100 kB) do not
BEFORE = STEPS - 2


def run(work: Path) -> dict[str, Any]:
    """Train, take the last checkpoint away, train the rest without room, then with room."""
    set_up(work, "reference")
    victims.finish(launch(work, "reference"))
    reference = ended(RunFolder(work / "runs" / "reference"))
    full = RunFolder(work / "runs" / "full")
    shutil.copytree(work / "runs" / "reference", full.path)
    shutil.rmtree(full.checkpoints / f"step-{STEPS:08d}")
    (full.checkpoints / "LATEST").write_text(f"step-{BEFORE:08d}\n")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM_BYTES, limits[1]))
    codes = victims.codes(launch(work, "full", log="full"))
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    seen = {
        "codes": codes,
        "status": full.status(),
        "kinds": [e["kind"] for e in read_jsonl(full.events)],
        "left": sorted(p.name for p in full.checkpoints.iterdir()),
        "damage": damage(full.checkpoints / f"step-{BEFORE:08d}"),
    }
    victims.finish(launch(work, "full", log="again"))
    return seen | {"equal": ended(full) == reference}


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(run(Path(sys.argv[1]))))
