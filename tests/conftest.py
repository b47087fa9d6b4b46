"""Fixtures for the whole suite."""

from __future__ import annotations

import os
from pathlib import Path

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


@pytest.hookimpl(tryfirst=True)  # before the plugin reads the mark
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep tests together that share what a fixture made: `make test` runs several processes, each takes one group after another.

    A group is a file. Wider ones share launches of the session; the families of the matrix share nothing.
    """
    if not config.pluginmanager.hasplugin("xdist"):
        return
    for i, item in enumerate(items):
        folder = item.path.parent.name
        if folder in ("equivalence", "crash"):
            group = folder
        elif "mixture" in getattr(item, "fixturenames", ()):
            group = "mixture"
        elif item.path.name == "test_matrix.py":
            group = f"{item.path.name}-{i % 16}"
        else:
            group = str(item.path)
        item.add_marker(pytest.mark.xdist_group(group))
