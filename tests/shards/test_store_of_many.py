"""A store of 1,000 shards opens and gives its first batch in under 2 s, and is never held in memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import store_of_many


def test_a_thousand_shards_open_at_once_and_stay_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: None)  # 4,000 flushes take longer than all the rest
    store_of_many.build(tmp_path / "store")
    monkeypatch.undo()
    command = [sys.executable, store_of_many.__file__, str(tmp_path / "store")]
    seen = json.loads(subprocess.run(command, check=True, capture_output=True, timeout=120).stdout)
    assert seen["first_batch_s"] < 2.0
    assert 3000 < seen["tokens_in_batch"] <= 4096
    # every token was read; what the process holds of its own hardly grew, the rest are pages of the mapped files
    assert seen["mapped_bytes"] > seen["token_bytes"]
    assert seen["anonymous_bytes"] < seen["token_bytes"] / 8
