"""A tiny base model and one torchrun launch a world size, shared by all numeric tests."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ranks import torchrun

HERE = Path(__file__).parent

# One launch a world size runs all of these; tests look at their part of the outcome.
CASES = {
    1: [
        "gradient:3:1",
        "gradient:0:1",
        "gradient:0:4",
        "train:0:20:1",
        "train:3:20:1",
        "save:3:8:4",
        "waits:3",
        "waits:1",
    ],
    2: [
        "gradient:3:1",
        "gradient:3:2",
        "gradient:3:4",
        "gradient:3:16",
        "gradient:0:2",
        "gradient:3:3:1:short",
        "gradient:3:1:1:prompts",
        "gradient:3:2:2",
        "gradient:0:2:2",
        "gradient:3:2:2:checkpointing",
        "losses:2",
        "losses:2:cut",
        "train:3:20:2:2",
        "train:2:20:2:2",
        "bf16:3:20",
        "bf16:2:20",
        "clip:3:0.05",
        "clip:2:0.05",
        "clip:1:0.05",
        "clip:0:0.05",
        "epochs:whole:9:3+4+8",
        "epochs:term:9:5:9",
        "train:3:20:2",
        "train:2:20:2",
        "train:1:20:2",
        "train:0:20:2",
        "save:3:8:4",
        "save:2:8:4",
        "save:1:8:4",
        "save:0:8:4",
        "native_twin:3",
        "native_twin:2",
        "native_twin:0",
        "poison:3",
        "poison:2",
        "poison:0",
        "bad:3:spike:skip",
        "bad:2:spike:skip",
        "bad:0:spike:skip",
        "bad:3:nonfinite:skip",
        "bad:3:spike:stop",
        "bad:3:nonfinite:stop",
        "waits:2",
    ],
    4: [
        "gradient:3:1",
        "gradient:3:2",
        "gradient:3:3:1:short",
        "gradient:3:2:2",
        "gradient:3:1:2:prompts",
        "gradient:3:2:4",
        "losses:4",
        "train:3:20:2:2",
        "resume:3:8:2",
        "save:3:8:4",
        "save:3:8:4:2",
    ],
}
# Run after the others, on their checkpoints: fewer ranks than wrote them.
LATER = {
    1: ["resume:3:8:2", "epochs_resume:whole:9:4"],
    2: [
        "resume:3:8:2",
        "resume:2:8:2",
        "resume:1:8:2",
        "resume:0:8:2",
        "resume:3:8:4",
        "resume:3:8:4:2",
        "epochs_resume:whole:9:3",
        "epochs_resume:whole:9:4",
        "epochs_resume:whole:9:8",
        "epochs_resume:term:9:5",
        "epochs_resume:whole:9:4:2",
    ],
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The first test that looks at a launch waits for all of its cases, and for the launches that it builds on."""
    for item in items:
        if item.path.parent == HERE:
            item.add_marker(pytest.mark.timeout(2700))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with two layers, grouped key-value heads and tied embeddings."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=128,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        max_position_embeddings=128,
        bos_token_id=None,
        eos_token_id=2,
    )
    folder = tmp_path_factory.mktemp("tiny") / "model"
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def launch() -> Callable[..., None]:
    """`torchrun`, for tests that launch cases of their own."""
    return torchrun


@pytest.fixture(scope="session")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all launches keep checkpoints and gradients."""
    return tmp_path_factory.mktemp("numerics")


@pytest.fixture(scope="session")
def outcome(tiny_model: Path, scratch: Path) -> Callable[[int], dict[str, Any]]:
    """Return what the launch of a world size saw; each launch runs once."""
    done: dict[Any, dict[str, Any]] = {}

    def launch(key: Any, world: int, cases: list[str]) -> dict[str, Any]:
        if key not in done:
            out = scratch / f"{key}.json"
            torchrun(world, HERE / "run_cases.py", str(out), str(tiny_model), str(scratch), *cases)
            done[key] = json.loads(out.read_text())
        return done[key]

    def of(world: int, *, later: bool = False) -> dict[str, Any]:
        if later:
            launch("4", 4, CASES[4]), launch("2", 2, CASES[2])
            return launch(f"{world}-later", world, LATER[world])
        if world == 4:
            launch("2", 2, CASES[2])
        return launch(str(world), world, CASES[world])

    return of
