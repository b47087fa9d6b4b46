"""A process group of one, and an engine: enough for the store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch.distributed as dist
from plain_engine import PlainEngine


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    file = tmp_path_factory.mktemp("group") / "rendezvous"
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def engine(group: None) -> PlainEngine:
    e = PlainEngine()
    e.step()
    return e


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"
