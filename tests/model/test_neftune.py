"""Noise on the embeddings: bounded by each document's own length, drawn from the step's seed, absent in evaluation."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor, nn

from sft_dist.model.neftune import add_noise

WIDTH = 25


class Embeds(nn.Module):
    """Stands in for PackedLM: returns the embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, WIDTH)
        self.hf = SimpleNamespace(get_input_embeddings=lambda: self.embedding)

    def forward(self, input_ids_1T: Tensor, cu_seqlens_S1: Tensor) -> Tensor:
        return self.embedding(input_ids_1T)


def noise(module: Embeds, seed: int) -> Tensor:
    ids = torch.arange(8)[None] % 10
    torch.manual_seed(seed)
    return (module(ids, torch.tensor([0, 4, 5, 8])) - module.embedding.weight[ids])[0].detach()


def test_noise_is_scaled_by_the_length_of_each_document() -> None:
    module = Embeds()
    add_noise(module, 10.0)
    peak = torch.stack([noise(module, s) for s in range(200)]).abs().amax(dim=(0, 2))
    # documents of 4, 1 and 3 tokens: 10 / sqrt(25 * L)
    bound = torch.tensor([1.0] * 4 + [2.0] + [2 / 3**0.5] * 3)
    assert (peak <= bound + 1e-5).all()
    assert (peak > 0.98 * bound).all()


def test_noise_is_a_function_of_the_seed_and_leaves_evaluation_alone() -> None:
    module = Embeds()
    add_noise(module, 10.0)
    assert torch.equal(noise(module, 1), noise(module, 1))
    assert not torch.equal(noise(module, 1), noise(module, 2))
    module.eval()
    assert not noise(module, 1).any()
