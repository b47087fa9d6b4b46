"""Stands in for the package in tests of the launch scripts: same commands and files, a model of one number.

What the scripts start the ranks with (cluster/agent.py, core/parent.py) is the package's own.
"""

from pathlib import Path

__path__.append(str(Path(__file__).resolve().parents[4] / "sft_dist"))
