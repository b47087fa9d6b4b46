"""Fixtures for the whole suite."""

from __future__ import annotations

import os
import signal
import sys
import time
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("DS_ACCELERATOR", "cpu" if os.environ.get("CUDA_VISIBLE_DEVICES", "") == "" else "cuda")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "Agg")
# rewriting the asserts of all tests takes every test process 20 s, unless it finds what another has written
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

for _signal in (
    signal.SIGINT,
    signal.SIGHUP,
):  # a background job ignores them, and so would all that tests start
    if signal.getsignal(_signal) is signal.SIG_IGN:
        signal.signal(_signal, signal.default_int_handler if _signal == signal.SIGINT else signal.SIG_DFL)

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Begin nothing that may not end before SFT_END_BY (seconds since 1970): CI counts it as skipped, and says so."""
    mark = item.get_closest_marker("takes")
    if time.time() + (mark.args[0] if mark else 480) > float(os.environ.get("SFT_END_BY", "inf")):
        pytest.skip("no time was left for it (SFT_END_BY)")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data that lies beside a checkout of the project (SFT_SHARED_DATA overrides); absent for most users."""
    root = Path(os.environ.get("SFT_SHARED_DATA", REPOSITORY.parent / "shared" / "data"))
    if not root.is_dir():
        pytest.skip("the collection of real data (SFT_SHARED_DATA) is not on this machine")
    return root


def _group_of(nodeid: str) -> str:
    """Return the name of the tests that one process takes together: those of a file, which share what its fixtures made.

    Wider groups share launches of the session; the families of the matrix share nothing.
    """
    file = Path(nodeid.split("::", maxsplit=1)[0])
    if file.parent.name in ("equivalence", "crash") and file.name != "test_kill_renames.py":
        return file.parent.name
    if file.name in ("test_kill_renames.py", "test_every_family.py"):
        return nodeid
    if file.name == "test_matrix.py":
        return f"{file}-{zlib.crc32(nodeid.encode()) % 16}"
    return "mixture" if file.name.startswith("test_mixture") else str(file)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the groups that may take longest (`pytest.mark.timeout`), then those of most tests, so that none is alone at the end."""
    limits: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for item in items:
        group, mark = _group_of(item.nodeid), item.get_closest_marker("timeout")
        limits[group] = max(limits[group], int(mark.args[0]) if mark and mark.args else 0)
        sizes[group] += 1
    items.sort(key=lambda item: (-limits[g := _group_of(item.nodeid)], -sizes[g], g))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give each process of `make test` one group of tests after another, in the order of `pytest_collection_modifyitems`."""
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _group_of(nodeid)

    config.option.loadscopereorder = False
    return Groups(config, log)
