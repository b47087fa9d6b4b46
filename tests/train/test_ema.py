"""Averaging runs beside the loop, on the weights of its own step."""

from __future__ import annotations

import threading

import pytest
import torch

from sft_dist.checkpoint import slices
from sft_dist.train.ema import Ema


def test_the_loop_waits_for_a_copy_of_the_weights_only(monkeypatch: pytest.MonkeyPatch) -> None:
    weights, state = torch.zeros(4), {}
    monkeypatch.setattr(slices, "allocate_states", lambda engine: None)
    monkeypatch.setattr(slices, "flat_states", lambda engine: [(weights, state)])
    ema = Ema(None, decay=0.5, every=2)
    go, average = threading.Event(), ema._take_in

    def late() -> None:
        assert go.wait(30)
        average()

    monkeypatch.setattr(ema, "_take_in", late)
    weights.fill_(1.0)
    ema.after(1)  # not yet
    ema.after(2)
    weights.fill_(99.0)  # the next update comes before the average is made
    assert state["ema"].tolist() == [0.0] * 4
    go.set()
    ema.settle()
    assert state["ema"].tolist() == [0.75] * 4  # two steps of 0.5


def test_what_fails_beside_the_loop_is_raised_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slices, "allocate_states", lambda engine: None)
    monkeypatch.setattr(slices, "flat_states", lambda engine: [(torch.zeros(4), {})])
    ema = Ema(None, decay=0.5, every=1)
    monkeypatch.setattr(ema, "_take_in", lambda: 1 / 0)
    ema.after(1)
    with pytest.raises(ZeroDivisionError):
        ema.after(2)
