"""The heartbeat of a run, and what its ranks say when they make no progress.

Rank 0 writes the heartbeat every few seconds: it counts how often the run has moved, and says for how long it has not. Who
watches times these counts by a clock of its own that nobody can set, so a step of the wall clock neither ends a run nor excuses
one.
"""

from __future__ import annotations

import json
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sft_dist.core.errors import UserError
from sft_dist.core.files import read_object

BEAT_S = 5.0
GONE_S = 120.0
"""Nothing writes the heartbeat any more after this time: the process, its node or its disk is gone."""
SILENT_S = 900.0
"""A running run is taken for dead after this time without progress: a step, a checkpoint or an evaluation may be long. The batch
script ends it later, after HEARTBEAT_MAX."""
NAMED = 4  # ranks that a sentence names


def _boot() -> str:
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


BOOT = _boot()  # processes that have it in common have their monotonic clock in common, too


def write_beat(run_dir: Path, moved: int, silent_s: float) -> None:
    """Write the heartbeat: one writer a run. Not flushed to disk: the next one follows soon."""
    beat = {"moved": moved, "silent_s": round(silent_s, 3), "boot": BOOT, "up_s": round(time.monotonic(), 3)}
    aside = run_dir / ".heartbeat.tmp"
    aside.write_text(json.dumps(beat, indent=1) + "\n")
    aside.replace(run_dir / "heartbeat")


def begin_beat(run_dir: Path) -> None:
    """Empty the heartbeat: an attempt begins, and that of an earlier one says nothing about it."""
    (run_dir / "heartbeat").write_text("")


@dataclass(frozen=True, slots=True)
class Silence:
    """Seconds without progress, and seconds of these in which nothing wrote the heartbeat."""

    still_s: float
    gone_s: float


class Pulse:
    """Times the heartbeat of a run by the clock of this process."""

    def __init__(self, run_dir: Path) -> None:
        self._file = run_dir / "heartbeat"
        self._seen: tuple[int, str] | None = None
        self._since = time.monotonic()

    def look(self) -> Silence | None:
        """Return for how long the run has not moved, as far as this process can tell; None without a heartbeat."""
        try:
            seen = self._file.stat().st_mtime_ns, self._file.read_text(errors="replace")
        except OSError:
            return None
        if seen != self._seen:
            self._seen, self._since = seen, time.monotonic()
        beat = _beat(seen[1])
        gone_s = time.monotonic() - self._since
        if BOOT and beat.get("boot") == BOOT:
            gone_s = max(0.0, time.monotonic() - beat["up_s"])
        return Silence(beat.get("silent_s", 0.0) + gone_s, gone_s)


def silent_s(run_dir: Path) -> float | None:
    """Return the seconds without progress for who looks only once; None without a heartbeat.

    Where the run is on another machine, the wall clocks of both are all there is: for display, never for a decision.
    """
    silence = Pulse(run_dir).look()
    if silence is None:
        return None
    with suppress(OSError):
        text = (run_dir / "heartbeat").read_text(errors="replace")
        beat = _beat(text)
        if not (BOOT and beat.get("boot") == BOOT):
            age_s = max(0.0, time.time() - (run_dir / "heartbeat").stat().st_mtime)
            return float(beat.get("silent_s", 0.0)) + age_s
    return silence.still_s


def _beat(text: str) -> dict[str, Any]:
    with suppress(ValueError, RecursionError):
        beat = json.loads(text)
        if isinstance(beat, dict) and all(type(beat.get(k)) in (int, float) for k in ("silent_s", "up_s")):
            return beat
    return {}


def stall_file(run_dir: Path, rank: int) -> Path:
    """Return the file in which a rank says that it makes no progress; slurm/train.sbatch reads it."""
    return run_dir / "logs" / f"silent-rank-{rank}.json"


STALL_FIELDS: dict[str, type | tuple[type, ...]] = {
    "rank": int, "host": str, "phase": str, "at": str, "waits": bool, "silent_s": (int, float),
}  # fmt: skip


def who_stalls(run_dir: Path) -> str:
    """Return which rank the others wait for, from what the ranks say of themselves; empty while none says anything.

    A rank that stands outside of a collective is what those inside wait for; one that says nothing is frozen as a whole.
    """
    said: dict[int, dict[str, Any]] = {}
    for file in (run_dir / "logs").glob("silent-rank-*.json"):
        with suppress(UserError, OSError):
            found = read_object(file, "", STALL_FIELDS)
            said[found["rank"]] = found
    if not said:
        return ""
    world = max(max(said) + 1, _environment(run_dir)["world_size"])
    mute = [rank for rank in range(world) if rank not in said]
    at_work = [rank for rank in sorted(said) if not said[rank]["waits"]]
    waiting = [rank for rank in sorted(said) if said[rank]["waits"]]
    least_s = max(s["silent_s"] for s in said.values())
    least = f"{least_s:.0f} s" if least_s < 120 else f"{least_s / 60:.0f} min"
    parts = [
        f"rank {r} on {host_of(run_dir, r) or 'an unknown host'} says nothing: it is frozen, or its node is"
        for r in mute[:NAMED]
    ]
    parts += [
        f"rank {r} on {s['host']} stands in {s['phase']} ({s['at']})"
        for r in at_work[:NAMED]
        for s in [said[r]]
    ]
    if (more := len(mute) + len(at_work) - len(parts)) > 0:
        parts.append(f"and {more} more")
    if waiting:
        phase = said[waiting[0]]["phase"]
        who = (
            "1 rank waits"
            if len(waiting) == 1
            else f"{'all' if len(waiting) == world else len(waiting)} ranks wait"
        )
        parts.append(f"{who} for others in {phase}")
    return f"no progress for {least} or more: " + "; ".join(parts)


def host_of(run_dir: Path, rank: int) -> str:
    """Return the host of a rank; empty where env.json does not say it."""
    env = _environment(run_dir)
    hosts, world = env["hosts"], env["world_size"]
    return str(hosts[rank * len(hosts) // world]) if hosts and rank < world else ""


def _environment(run_dir: Path) -> dict[str, Any]:
    with suppress(UserError, OSError):
        return read_object(run_dir / "env.json", "", {"world_size": int, "hosts": list})
    return {"world_size": 0, "hosts": []}
