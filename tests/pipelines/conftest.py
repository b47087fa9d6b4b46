"""A user's project: a tiny base model with its tokenizer, messages.jsonl, an alpaca file, my.yaml."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

NOUNS = [
    "cat",
    "dog",
    "bird",
    "fish",
    "tree",
    "house",
    "river",
    "stone",
    "cloud",
    "lamp",
    "chair",
    "table",
    "spoon",
    "plate",
    "clock",
    "shoe",
    "hat",
    "coat",
    "door",
    "window",
]


@pytest.fixture(scope="session")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder: Llama of two layers, byte-level tokenizer with a ChatML template."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from sft_dist.render.renderer import Renderer
    from sft_dist.render.tokenizer import train_tokenizer

    folder = tmp_path_factory.mktemp("base") / "model"
    tokenizer = train_tokenizer([" ".join(NOUNS)] * 3, 300)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_id,
        pad_token_id=tokenizer.pad_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save(folder, template_text=Renderer(tokenizer, template="chatml").template_text)
    return folder


def alpaca_rows() -> list[dict[str, str]]:
    """60 records of two tasks; no two inputs are alike."""
    rows = []
    for i in range(30):
        a, b = NOUNS[i % 20], NOUNS[(i * 7 + i // 20 + 3) % 20]
        rows.append(
            {"instruction": "Which word comes first?", "input": f"{a} {b} {i}", "output": a, "task": "first"}
        )
        rows.append(
            {
                "instruction": "Which word comes second?",
                "input": f"{a} {b} {i}",
                "output": b,
                "task": "second",
            }
        )
    return rows


def message_rows() -> list[dict[str, object]]:
    """20 conversations of two rounds."""
    return [
        {"messages": [
            {"role": "user", "content": f"Tell me about the {noun}."}, {"role": "assistant", "content": f"The {noun} is old."},
            {"role": "user", "content": "Is it new?"}, {"role": "assistant", "content": "No."},
        ]}
        for noun in NOUNS
    ]  # fmt: skip


@pytest.fixture
def project(tmp_path: Path, base_model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with my.yaml; the current directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "alpaca.json").write_text(json.dumps(alpaca_rows(), indent=1))
    (tmp_path / "messages.jsonl").write_text("".join(json.dumps(r) + "\n" for r in message_rows()))
    (tmp_path / "my.yaml").write_text(f"""
name: mine
data:
  sources:
    records: {{kind: alpaca, path: alpaca.json, task: "{{task}}", share: 0.75}}
    chats: {{kind: chat, path: messages.jsonl, share: 0.25}}
  holdout: {{examples_per_task: 3}}
model: {{path: {base_model}, dtype: float32, gradient_checkpointing: false}}
pack: {{seq_len: 128}}
train: {{tokens_per_step: 512, micro_rows: 2}}
optim: {{lr: 1.0e-3}}
eval: {{max_new_tokens: 4, max_examples_per_task: 3}}
launch: {{nproc: 2}}
checkpoint: {{save_every_steps: 2}}
""")
    return tmp_path


@pytest.fixture
def sft(project: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run the command line in this process; return exit code, output, errors."""
    from sft_dist.cli import main

    def run(*words: str) -> tuple[int, str, str]:
        code = main(list(words))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture(scope="session")
def mixture(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The shipped mixture, built once (mixture_run.py)."""
    from mixture_run import build

    return build(shared_data, tmp_path_factory.mktemp("mixture"))
