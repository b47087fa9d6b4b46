"""train/tracker.py: whether W&B is used when the config leaves it open."""

from __future__ import annotations

import pytest

from sft_dist.train.tracker import resolve_mode


@pytest.mark.parametrize(
    ("mode", "environment", "expected"),
    [
        ("auto", {}, "disabled"),
        ("auto", {"WANDB_API_KEY": "k"}, "online"),
        ("auto", {"WANDB_API_KEY": "k", "WANDB_MODE": "disabled"}, "disabled"),
        ("auto", {"WANDB_MODE": "offline"}, "offline"),  # nodes without internet have no key either
        ("online", {"WANDB_MODE": "offline"}, "online"),
    ],
)
def test_mode(monkeypatch, mode, environment, expected):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert resolve_mode(mode) == expected
