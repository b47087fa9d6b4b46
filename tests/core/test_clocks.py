"""Wall clocks are read for people, for the text of templates and to know a file again, and for no duration."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
READS = re.compile(
    r"time\.time\(|st_mtime|getmtime|datetime\.(?:now|utcnow|today)|date\.today|date \+%s|\bSECONDS\b|EPOCH(?:SECONDS|REALTIME)|stat -c ['\"]?%Y|find .*-(?:mmin|newer)"
)
# what is read -> how often
ALLOWED = {
    # time stamps that people read
    "sft_dist/cluster/agent.py": 1,
    "sft_dist/core/runfolder.py": 2,
    "sft_dist/pipelines/cluster/doctor.py": 2,
    "sft_dist/pipelines/data/construct.py": 1,
    "sft_dist/train/environment.py": 1,
    "sft_dist/train/run_log.py": 1,
    "launch/node.sh": 1,
    "slurm/train.sbatch": 1,
    # the dates that a template writes
    "sft_dist/render/compiled_template.py": 1,
    "sft_dist/render/renderer.py": 1,
    # how far the clocks of nodes are apart
    "sft_dist/cluster/doctor/rendezvous.py": 3,
    # whether a file is the same as before, or has changed
    "sft_dist/evals/generate.py": 1,
    "sft_dist/sources/base.py": 1,
    "sft_dist/core/heartbeat.py": 2,
    # of a run on another machine, which a report shows and nothing decides by; the first of several errors, likewise
    "sft_dist/cluster/sweep/run_metric.py": 1,
}


def test_no_duration_is_taken_from_a_wall_clock() -> None:
    found: Counter[str] = Counter()
    for folder in ("sft_dist", "launch", "slurm"):
        for file in sorted((ROOT / folder).rglob("*")):
            if file.suffix in (".py", ".sh", ".sbatch"):
                code = [line.split("#", 1)[0] for line in file.read_text(encoding="utf-8").splitlines()]
                name = file.relative_to(ROOT).as_posix()
                found[name] += sum(bool(READS.search(line)) for line in code)
    assert {name: count for name, count in found.items() if count} == ALLOWED
