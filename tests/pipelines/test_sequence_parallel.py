"""Rows that two ranks share, from the command line: the same run as with whole rows, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sft_dist.core.files import read_jsonl
from sft_dist.core.runfolder import RunFolder

Sft = Callable[..., tuple[int, str, str]]
SHORT = ("train.max_steps=3", "train.export=false", "train.eval_every_steps=2", "optim.warmup_steps=0")


def lines(project: Path, name: str) -> dict[tuple[str, int], dict[str, Any]]:
    """What a run logged, by kind and step."""
    metrics = read_jsonl(RunFolder(project / "runs" / name).metrics)
    return {(m["kind"], m["step"]): m for m in metrics}


@pytest.mark.slow
def test_a_run_that_shares_rows_is_the_run_that_does_not(sft: Sft, project: Path) -> None:
    for name, size in (("whole", 1), ("shared", 2)):
        code, out, err = sft("train", "my.yaml", f"name={name}", f"train.sequence_parallel={size}", *SHORT)
        assert code == 0, out + err
    whole, shared = lines(project, "whole"), lines(project, "shared")
    assert shared.keys() == whole.keys() >= {("train", 3), ("eval", 2), ("eval", 3)}
    for key, line in whole.items():
        loss = "loss" if key[0] == "train" else "set_loss"
        assert shared[key][loss] == pytest.approx(line[loss], rel=1e-5)
        assert shared[key]["task_loss"] == pytest.approx(line["task_loss"], rel=1e-5)
        if key[0] == "train":
            assert shared[key]["grad_norm"] == pytest.approx(line["grad_norm"], rel=1e-5)
            for name in ("tokens", "target_tokens", "fill"):
                assert shared[key][name] == line[name]
            assert shared[key]["imbalance"] == 1.0  # one row at a time: there is none to wait for
    log = (project / "runs" / "shared" / "logs" / "train.log").read_text()
    assert "2 ranks (2 share a row)" in log


@pytest.mark.parametrize(
    ("command", "words", "message"),
    [
        (
            "train",
            ("train.sequence_parallel=2", "launch.nproc=3"),
            "3 ranks cannot form groups of train.sequence_parallel=2",
        ),
        (
            "train",
            ("train.sequence_parallel=2", "launch.nproc=1"),
            "1 rank cannot form groups of train.sequence_parallel=2",
        ),
        (
            "train",
            ("train.sequence_parallel=4", "launch.nproc=4"),
            "the model has 2 attention heads, which 4 ranks",
        ),
        (
            "check",
            ("train.sequence_parallel=3", "launch.nproc=3"),
            "the model has 2 attention heads, which 3 ranks",
        ),
    ],
)
def test_what_cannot_be_shared_is_refused_before_anything_starts(
    sft: Sft, project: Path, command: str, words: tuple[str, ...], message: str
) -> None:
    code, out, err = sft(command, "my.yaml", *words)
    assert code == 2, out + err
    assert err.startswith("error: ")
    assert err.count("error: ") == 1
    assert message in err
    assert not (project / "runs").exists()
