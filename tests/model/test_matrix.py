"""Every causal language model of transformers, tiny and random: packed documents are what eager attention computes for each alone."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import matrix
import pytest
import tiny
import torch
from loading import load
from torch import Tensor

from sft_dist.core.errors import UserError
from sft_dist.model import isolation_check, recurrent, separation
from sft_dist.model.packed import to_inputs

# twenty families of weight, one of each way to keep documents apart; the others are in the slow suite
OFTEN = [
    "deepseek_v3", "deepseek_v32", "falcon", "falcon_h1", "gemma4_text", "glm4_moe", "gpt_oss", "granite_swa", "granitemoehybrid", "jamba",
    "kimi_linear", "lfm2", "llama4_text", "minimax", "nemotron_h", "olmo_hybrid", "phi", "qwen3_5_moe_text", "qwen3_5_text", "qwen3_next",
]  # fmt: skip
KNOWN = matrix.KNOWN


@pytest.mark.parametrize("model_type", OFTEN)
def test_families_of_weight_are_exact(model_type: str) -> None:
    result = matrix.measure(model_type)
    assert result.state == "exact", result
    assert not result.fast.startswith("wrong"), result


@pytest.mark.slow
@pytest.mark.parametrize("model_type", sorted(set(KNOWN) - set(OFTEN)))
def test_every_other_family_is_what_the_page_says(model_type: str) -> None:
    result = matrix.measure(model_type)
    assert result.state == KNOWN[model_type]["state"], result
    assert result.fast.partition(": ")[0] == KNOWN[model_type]["fast"].partition(": ")[0], result


def test_the_table_holds_no_wrong_type_and_none_that_is_gone() -> None:
    """After a release of transformers: `python tests/helpers/matrix.py --measure TYPE` measures a family anew, or adds one."""
    assert not set(KNOWN) - set(tiny.causal_types())
    assert not [t for t, r in KNOWN.items() if r["state"] in ("wrong", "traceback")]
    assert {t for t, r in KNOWN.items() if r["backends"] == "own_per_doc"} == separation.PROVED


def test_encoders_are_refused() -> None:
    """BERT as a language model would see the answers."""
    from transformers import BertConfig, BertLMHeadModel

    model = BertLMHeadModel(
        BertConfig(
            num_hidden_layers=1, hidden_size=16, num_attention_heads=2, intermediate_size=16, vocab_size=32
        )
    )
    with pytest.raises(UserError, match="BertLMHeadModel has attention code of its own"):
        separation.packed_way(model, "auto", [], shared=False)


def test_the_page_shows_the_table() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "models.md").read_text()
    assert matrix.table() in page, "run: python tests/helpers/matrix.py --page"


def _whole_row(forward: Any, borders: Any, *positional: Any, **named: Any) -> Any:
    return forward(*positional, **{n: x for n, x in named.items() if n not in recurrent.HANDED_DOWN})


def _loss_of(module: Any, batch: Any) -> Tensor:
    return module(*to_inputs(batch, "cpu"))[1]


@pytest.mark.parametrize("model_type", ["qwen3_5_text", "lfm2", "nemotron_h", "bloom", "rwkv"])
def test_a_layer_that_sees_the_whole_row_is_caught(
    model_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """State that is carried over: by the measurement above and by the check before the first step."""
    model = tiny.build(model_type)
    reference = matrix.alone(model)
    model.zero_grad()
    model.save_pretrained(tmp_path)
    module = load(tmp_path).module
    right = isolation_check.measure_isolation(partial(_loss_of, module.eval()), tiny.VOCAB)
    assert right <= isolation_check.TOLERANCE[torch.float32]  # products of experts are of other sizes
    monkeypatch.setattr(recurrent, "_each_alone", _whole_row)
    leaky = load(tmp_path).module
    assert matrix.differences(leaky.train(), *reference)[0] > matrix.LOSS
    assert (
        isolation_check.measure_isolation(partial(_loss_of, leaky.eval()), tiny.VOCAB)
        > isolation_check.TOLERANCE[torch.float32]
    )


@pytest.mark.parametrize("kernel", ["causal_conv1d_fn", "torch_chunk_gated_delta_rule"])
def test_one_operator_that_does_not_begin_anew_is_caught(
    kernel: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The convolution alone, or the recurrence alone, reads across the border."""
    from transformers.models.qwen3_5 import modeling_qwen3_5

    tiny.save("qwen3_5_text", tmp_path)
    module = load(tmp_path).module.eval()
    right = getattr(modeling_qwen3_5, kernel)
    before: list[Tensor] = []

    def leaks(x: Tensor, *rest: Any, **named: Any) -> Any:
        """Add a little of what the layer saw in the document before."""
        trace = before[-1] if before else x.new_zeros(())
        before.append(x.detach().abs().flatten()[0])
        return right(x + 10 * trace, *rest, **named)

    monkeypatch.setattr(modeling_qwen3_5, kernel, leaks)
    moved = isolation_check.measure_isolation(partial(_loss_of, module), tiny.VOCAB)
    assert moved > isolation_check.TOLERANCE[torch.float32]


def test_layers_are_computed_again_with_the_borders_that_they_had(tmp_path: Path) -> None:
    """Two forward passes over different documents, then both backward passes, recomputing."""
    import tiny_docs

    tiny.save("qwen3_5_text", tmp_path)
    batches = [tiny_docs.pack(docs, list(range(len(docs)))) for docs in (matrix.DOCS[:2], matrix.DOCS[2:5])]
    found = []
    for checkpointing in (False, True):
        module = load(tmp_path, gradient_checkpointing=checkpointing).module.train()
        totals = [module(*to_inputs(batch, "cpu"))[0] for batch in batches]
        for total in totals:
            total.backward()
        found.append({n: p.grad for n, p in module.hf.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"attention": "sdpa_dense"},
            "falcon has attention code of its own, which transformers offers no way to replace",
        )
    ],
)
def test_a_named_backend_is_refused_where_attention_cannot_be_replaced(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    tiny.save("falcon", tmp_path)
    with pytest.raises(UserError, match=message):
        load(tmp_path, **options)


def test_layers_with_state_cannot_share_rows_among_ranks(tmp_path: Path) -> None:
    model = tiny.build("qwen3_5_text")
    with pytest.raises(
        UserError,
        match=r"qwen3_5_text has layers \(gated delta net\) that need the whole row.*sequence_parallel=1",
    ):
        separation.packed_way(model, "auto", [], shared=True)


def test_a_convolution_that_nobody_knows_is_refused() -> None:
    class Strange(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = torch.nn.Conv1d(4, 4, 3)

    with pytest.raises(UserError, match="Strange convolves along the row and is no layer that is known here"):
        recurrent.layers_with_state(torch.nn.Sequential(Strange()))
