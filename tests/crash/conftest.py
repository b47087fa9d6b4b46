"""Runs a script of this folder in a warm process of its own and returns what it saw."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from ranks import HELPERS

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def run_script() -> Callable[..., dict[str, Any]]:
    """Run a script with a folder, the file for its JSON, and further arguments; return the JSON."""

    def run(folder: Path, script: str, *arguments: int, timeout_s: float) -> dict[str, Any]:
        env = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONWARNINGS": "ignore",
            "GLOO_SOCKET_IFNAME": "lo",
            "PYTHONPATH": os.pathsep.join([str(HELPERS), *filter(None, [os.environ.get("PYTHONPATH")])]),
        }
        out = folder / "seen.json"
        command = [sys.executable, str(HERE / script), str(folder / "work"), str(out), *map(str, arguments)]
        done = subprocess.run(
            command, env=env, capture_output=True, text=True, timeout=timeout_s, check=False
        )
        logs = "".join(f"\n{p.name}: {p.read_text()[-1500:]}" for p in (folder / "work").glob("*.txt"))
        assert done.returncode == 0, done.stderr[-3000:] + logs
        return dict(json.loads(out.read_text()))

    return run


@pytest.fixture
def crash(run_script: Callable[..., dict[str, Any]], tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """The same in a folder of the test's own."""
    return partial(run_script, tmp_path)
