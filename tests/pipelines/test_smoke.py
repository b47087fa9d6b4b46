"""`train --smoke`: two heaviest steps, saved and exported, beside the real run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from safetensors import safe_open

from sft_dist.config.load import load_config
from sft_dist.pipelines.train.smoke import small

Sft = Callable[..., tuple[int, str, str]]


def test_two_steps_are_saved_and_exported_in_a_folder_of_their_own(sft: Sft, project: Path) -> None:
    words = ("train", "--smoke", "my.yaml", "launch.nproc=1")
    code, out, err = sft(*words)
    assert code == 0, err
    assert "smoke test passed: 2 steps on the heaviest batches" in out
    (folder,) = (project / "runs").iterdir()  # the real run has not been begun
    assert folder.name.endswith("-smoke")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    trained = [m for m in lines if m["kind"] == "train"]
    assert [m["step"] for m in trained] == [1, 2]
    assert (folder / "checkpoints" / "LATEST").read_text().strip() == "step-00000002"
    with safe_open(folder / "export" / "model.safetensors", "pt") as weights:
        assert list(weights.keys())
    # again: the earlier one is replaced, not continued
    assert sft(*words)[0] == 0
    again = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [m["loss"] for m in again if m["kind"] == "train"] == [m["loss"] for m in trained]


def test_a_smoke_test_sends_nothing_out(project: Path) -> None:
    config = small(
        load_config(["wandb.mode=offline", "checkpoint.remote=file:///elsewhere"], project / "my.yaml")
    )
    assert config.wandb.mode == "disabled"
    assert config.checkpoint.remote is None
    assert (config.train.max_steps, config.train.export) == (2, True)
