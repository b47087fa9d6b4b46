"""A rank whose device has no memory left when training begins."""

from __future__ import annotations

import sys
from typing import Any

import torch

from sft_dist.pipelines.train import worker


def allocate(*_: Any, **__: Any) -> None:
    """Stand in for the loop."""
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


if __name__ == "__main__":
    worker.loop.run = allocate
    sys.exit(worker.main())
