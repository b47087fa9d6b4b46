"""What other trainers do where a file says nothing, as keys of our config."""

from __future__ import annotations

from typing import Any

# Defaults of ours that differ, by trainer: written out whenever the file says nothing.
HF = {
    "seed": 42,
    "optim.lr": 5e-5,
    "optim.betas": [0.9, 0.999],
    "optim.eps": 1e-8,
    "optim.weight_decay": 0.0,
    "optim.clip": 1.0,
    "optim.schedule": "linear",
    "optim.warmup_share": 0.0,
    "train.epochs": 3,
    "pack.packing": False,
    "pack.seq_len": 2048,
    "model.gradient_checkpointing": False,
    "checkpoint.keep_last": 2,
}
DEFAULTS: dict[str, dict[str, Any]] = {
    "axolotl": HF
    | {"optim.schedule": "cosine", "train.epochs": 1, "pack.seq_len": 512, "pack.too_long": "drop"},
    "llama-factory": HF | {"pack.too_long": "truncate_answer", "model.gradient_checkpointing": True},
    "trl": HF
    | {
        "optim.lr": 2e-5,
        "pack.seq_len": 1024,
        "pack.too_long": "truncate_answer",
        "model.gradient_checkpointing": True,
    },
    "ms-swift": HF
    | {
        "optim.lr": 1e-4,
        "optim.weight_decay": 0.1,
        "optim.betas": [0.9, 0.95],
        "optim.schedule": "cosine",
        "optim.warmup_share": 0.05,
        "train.epochs": 3,
        "pack.too_long": "drop",
        "model.gradient_checkpointing": True,
    },
}
LORA = {
    "axolotl": (8, 16, 0.0),
    "llama-factory": (8, 16, 0.0),
    "trl": (16, 32, 0.05),
    "ms-swift": (8, 32, 0.05),
}
