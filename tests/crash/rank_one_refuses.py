"""A rank whose second process meets a mistake that the first does not see: its node lacks a disk, say."""

from __future__ import annotations

import os
import sys
from typing import Any

from sft_dist.core.errors import UserError
from sft_dist.pipelines.train import worker


def refuse(*_: Any) -> None:
    """Stand in for opening the stores."""
    raise UserError("the token store lies on a disk that this node does not have; mount it")


if __name__ == "__main__":
    if os.environ["RANK"] == "1":
        worker.open_corpus = refuse
    sys.exit(worker.main())
