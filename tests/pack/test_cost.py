"""The FLOP model by hand, and against published figures."""

import numpy as np
import pytest

from sft_dist.pack import CostModel

QWEN_05B = CostModel.of_shape(
    hidden_size=896,
    layers=24,
    attention_size=896,
    kv_size=128,
    intermediate_size=4864,
    vocab_size=151_936,
)
LLAMA_8B = CostModel.of_shape(
    hidden_size=4096,
    layers=32,
    attention_size=4096,
    kv_size=1024,
    intermediate_size=14336,
    vocab_size=128_256,
)


def test_by_hand():
    model = CostModel.of_shape(
        hidden_size=2, layers=3, attention_size=4, kv_size=1, intermediate_size=5, vocab_size=7
    )
    # A layer: q and o 2x2x4, k and v 2x2x1, three 2x5 matrices = 16 + 4 + 30 weights.
    assert model.linear_flops_per_token == 2 * 3 * 50
    assert model.attention_flops_per_pair == 4 * 3 * 4
    assert model.head_flops_per_target == 2 * 2 * 7
    # Two documents of 3 and 1 tokens, 2 targets: (9 + 1) / 2 pairs.
    assert model.row_cost(4, 10, 2) == 4 * 300 + 5 * 48 + 2 * 28


def test_experts_that_a_token_passes_count_and_the_router_chooses_from_all():
    dense = CostModel.of_shape(
        hidden_size=8, layers=1, attention_size=8, kv_size=8, intermediate_size=16, vocab_size=32
    )
    sparse = CostModel.of_shape(
        hidden_size=8,
        layers=1,
        attention_size=8,
        kv_size=8,
        intermediate_size=16,
        vocab_size=32,
        active_experts=2,
        experts=64,
    )
    assert sparse.linear_flops_per_token - dense.linear_flops_per_token == 2 * (3 * 8 * 16 + 8 * 64)


@pytest.mark.parametrize(
    ("model", "document", "giga_per_token"),
    # Known FLOPs a token of forward and backward with the head on every token.
    [(QWEN_05B, 1000, 3.09), (QWEN_05B, 8192, 4.02), (LLAMA_8B, 1000, 45.8), (LLAMA_8B, 8192, 51.5)],
)
def test_known_models(model, document, giga_per_token):
    flops = model.useful_flops(document, document**2, document) / document
    assert flops / 1e9 == pytest.approx(giga_per_token, rel=0.003)


def test_a_device_does_more_recomputed_scores_and_recomputed_layers():
    model = CostModel(linear_flops_per_token=10, attention_flops_per_pair=2, head_flops_per_target=100)
    assert model.useful_flops(4, 16, 1) == 3 * (40 + 16 + 100)
    assert model.on_device(recomputed=False).row_cost(4, 16, 1) == 3 * 40 + 3.5 * 16 + 300
    assert model.on_device(recomputed=True).row_cost(4, 16, 1) == 4 * 40 + 4.5 * 16 + 300


def test_frozen_weights_need_the_gradient_of_their_input_only():
    model = CostModel(
        linear_flops_per_token=10,
        attention_flops_per_pair=2,
        head_flops_per_target=100,
        linear_backward=1.0,
        head_backward=1.0,
    )
    assert model.useful_flops(4, 16, 1) == 2 * 40 + 3 * 16 + 2 * 100


def test_many_rows_at_once():
    model = CostModel(linear_flops_per_token=1, attention_flops_per_pair=2)
    assert model.row_cost(np.array([1.0, 2.0]), np.array([4.0, 6.0])).tolist() == [5.0, 8.0]
