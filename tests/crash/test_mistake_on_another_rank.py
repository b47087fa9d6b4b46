"""What ends a rank reaches status.json and the user's terminal, without a traceback: a mistake on rank 1, no memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sft_dist.cli import main
from sft_dist.core.runfolder import RunFolder
from sft_dist.pipelines.train import command

CONFIG = """
name: refused
data:
  processes: 1
  sources: {demo: {kind: demo, examples_per_task: 40}}
  holdout: {number: 2, examples_per_task: 5}
render: {template: chatml, train_vocab_size: 512}
model:
  shape: {hidden_size: 32, intermediate_size: 64, layers: 1, heads: 2, max_position_embeddings: 128}
  dtype: float32
pack: {seq_len: 128}
train: {max_steps: 2, tokens_per_step: 1024, export: false}
launch: {nproc: 2}
"""


@pytest.fixture
def refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[str, dict[str, Any]]]:
    """Train with a module of this folder as the rank; return what the terminal and status.json say."""

    def run(module: str, *overrides: str) -> tuple[str, dict[str, Any]]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
        monkeypatch.setattr(command, "RANK", module)
        (tmp_path / "my.yaml").write_text(CONFIG)
        assert main(["train", "my.yaml", *overrides]) == 2
        said = capsys.readouterr().err
        assert "Traceback" not in said
        status = RunFolder(tmp_path / "runs" / "refused").status()
        assert status["state"] == "fatal"
        return said, status

    return run


@pytest.mark.slow
def test_it_reaches_status_and_terminal(refused: Callable[..., tuple[str, dict[str, Any]]]) -> None:
    said, status = refused("rank_one_refuses")
    assert "error: rank 1 on " in said
    assert "the token store lies on a disk that this node does not have; mount it" in said
    assert status["reason"].startswith("rank 1 on ")


@pytest.mark.slow
def test_a_rank_without_memory_says_what_would_fit(
    refused: Callable[..., tuple[str, dict[str, Any]]],
) -> None:
    said, _ = refused("no_memory", "launch.nproc=1", "model.gradient_checkpointing=false")
    assert "ran out of memory" in said
    assert "use more nodes or a smaller model" in said  # nothing of a model as small as this can be saved
