"""Fixtures for the whole suite."""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("DS_ACCELERATOR", "cpu" if os.environ.get("CUDA_VISIBLE_DEVICES", "") == "" else "cuda")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "Agg")

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data that lies beside a checkout of the project (SFT_SHARED_DATA overrides); absent for most users."""
    root = Path(os.environ.get("SFT_SHARED_DATA", REPOSITORY.parent / "shared" / "data"))
    if not root.is_dir():
        pytest.skip("the collection of real data (SFT_SHARED_DATA) is not on this machine")
    return root


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep tests together that share what a fixture made: `make test` runs several processes, each takes one group after another.

    A group is a file. Wider ones share launches of the session; the families of the matrix share nothing.
    """
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = Path(nodeid.split("::", maxsplit=1)[0])
            if file.parent.name in ("equivalence", "crash"):
                return file.parent.name
            if file.name == "test_matrix.py":
                return f"{file}-{zlib.crc32(nodeid.encode()) % 16}"
            return "mixture" if file.name.startswith("test_mixture") else str(file)

    return Groups(config, log)
