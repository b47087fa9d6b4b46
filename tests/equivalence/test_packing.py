"""Packed documents are what they are alone, in every backend; planted leaks are caught."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_docs
import torch
from case import Case
from cases_more import Losses
from loading import load
from torch.nn import functional as F

from sft_dist.core.errors import UserError
from sft_dist.model import attention, backends, isolation_check
from sft_dist.model.packed import PackedLM, to_inputs

DOCS = tiny_docs.documents(0)


def packed(model: Path, backend: str, *, checkpointing: bool = False) -> PackedLM:
    return load(model, attention=backend, gradient_checkpointing=checkpointing).module


def losses(module: PackedLM, docs: list[list[int]]) -> torch.Tensor:
    """Loss of every target of packed documents."""
    return module(*to_inputs(tiny_docs.pack(docs, list(range(len(docs)))), "cpu"))[1]


def alone(model: Path) -> torch.Tensor:
    """The same by transformers itself, one document at a time."""
    from transformers import LlamaForCausalLM

    plain = LlamaForCausalLM.from_pretrained(model, attn_implementation="eager")
    out = []
    with torch.no_grad():
        for doc in DOCS:
            logits = plain(torch.tensor([doc])).logits[0]
            ce = F.cross_entropy(logits[:-1], torch.tensor(doc[1:]), reduction="none")
            out.append(ce[torch.tensor(tiny_docs.weights_of(doc)[1:]) > 0])
    return torch.cat(out)


@pytest.mark.parametrize("backend", ["sdpa_per_doc", "sdpa_dense"])
def test_packed_is_alone(tiny_model: Path, backend: str) -> None:
    difference = (losses(packed(tiny_model, backend), DOCS) - alone(tiny_model)).abs()
    assert float(difference.max()) <= 1e-5


@pytest.mark.parametrize(("world", "case"), [(2, Losses(sp=2)), (4, Losses(sp=4))])
def test_packed_is_alone_when_ranks_share_the_row(
    tiny_model: Path, outcome: Callable[..., dict[str, Any]], world: int, case: Case
) -> None:
    """Documents cross the borders of the slices; four ranks share two key-value heads."""
    difference = (torch.tensor(outcome(case, world)) - alone(tiny_model)).abs()
    assert float(difference.max()) <= 1e-5


@pytest.mark.cases(Losses(sp=2, cut=True))
def test_attention_that_stays_in_its_slice_is_caught(
    tiny_model: Path, outcome: Callable[..., dict[str, Any]]
) -> None:
    difference = (torch.tensor(outcome(Losses(sp=2, cut=True))) - alone(tiny_model)).abs()
    assert float(difference.max()) > 1e-2


def test_gradient_does_not_depend_on_backend_order_or_checkpointing(tiny_model: Path) -> None:
    def gradient(module: PackedLM, docs: list[list[int]]) -> torch.Tensor:
        loss, _ = module(*to_inputs(tiny_docs.pack(docs, list(range(len(docs)))), "cpu"))
        loss.backward()
        return torch.cat([p.grad.flatten() for p in module.parameters()])

    reference = gradient(packed(tiny_model, "sdpa_dense"), DOCS)
    for other in (
        gradient(packed(tiny_model, "sdpa_per_doc"), DOCS),
        gradient(packed(tiny_model, "sdpa_per_doc"), DOCS[::-1]),
        gradient(packed(tiny_model, "sdpa_per_doc", checkpointing=True), DOCS),
    ):
        assert float((other - reference).norm() / reference.norm()) < 1e-5


@pytest.mark.parametrize("backend", ["sdpa_per_doc", "sdpa_dense"])
def test_changing_a_document_moves_no_other(tiny_model: Path, backend: str) -> None:
    module = packed(tiny_model, backend)
    before = losses(module, DOCS)
    owner = torch.repeat_interleave(
        torch.arange(len(DOCS)), torch.tensor([sum(w > 0 for w in tiny_docs.weights_of(d)) for d in DOCS])
    )
    for i in range(len(DOCS)):
        changed = [[(t + 1) % tiny_docs.VOCAB for t in d] if k == i else d for k, d in enumerate(DOCS)]
        after = losses(module, changed)
        assert torch.equal(before[owner != i], after[owner != i])
        assert not torch.equal(before[owner == i], after[owner == i])


def test_masked_labels_never_matter(tiny_model: Path) -> None:
    module = packed(tiny_model, "sdpa_per_doc")
    batch = tiny_docs.pack(DOCS, list(range(len(DOCS))))

    def gradient(b: Any) -> torch.Tensor:
        module.zero_grad()
        module(*to_inputs(b, "cpu"))[0].backward()
        return torch.cat([p.grad.flatten() for p in module.parameters()])

    import dataclasses

    none = np.zeros_like(batch.target_weights)
    half = np.where(np.arange(len(none)) % 2 == 0, batch.target_weights, 0).astype(np.float32)
    other_labels = np.where(half == 0, (batch.target_ids + 17) % tiny_docs.VOCAB, batch.target_ids)
    a = gradient(dataclasses.replace(batch, target_weights=half))
    b = gradient(dataclasses.replace(batch, target_weights=half, target_ids=other_labels))
    assert torch.equal(a, b)
    changed = gradient(
        dataclasses.replace(batch, target_weights=half, target_ids=(batch.target_ids + 17) % tiny_docs.VOCAB)
    )
    assert not torch.equal(a, changed)


def causal_across_documents(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: Any,
    *,
    scaling: float,
    **_: Any,
) -> Any:
    return F.scaled_dot_product_attention(
        query, key, value, is_causal=True, scale=scaling, enable_gqa=True
    ).transpose(1, 2), None


@pytest.mark.parametrize("bug", ["causal across documents", "all-ones mask"])
def test_a_planted_leak_is_caught(tiny_model: Path, monkeypatch: pytest.MonkeyPatch, bug: str) -> None:
    """Both bugs leave the mean loss alone; the packed-alone test and the start-up check must see them."""
    from transformers import LlamaForCausalLM

    if bug == "causal across documents":
        monkeypatch.setitem(
            backends.BACKENDS, "sdpa_per_doc", backends.Backend(attend=causal_across_documents)
        )
        module = packed(tiny_model, "sdpa_per_doc")
    else:
        module = packed(tiny_model, "sdpa_per_doc")
        plain = LlamaForCausalLM.from_pretrained(tiny_model, attn_implementation="sdpa")
        decoder = plain.get_decoder()

        def with_ones(**inputs: Any) -> Any:
            ones = torch.ones_like(inputs["input_ids"])
            return decoder(
                input_ids=inputs["input_ids"], position_ids=inputs["position_ids"], attention_mask=ones
            )

        monkeypatch.setattr(module.hf, "get_decoder", lambda: with_ones)
    leaked = (losses(module, DOCS) - alone(tiny_model)).abs()
    assert float(leaked.max()) > 1e-2
    moved = isolation_check.measure_isolation(
        lambda batch: module(*to_inputs(batch, "cpu"))[1], tiny_docs.VOCAB
    )
    assert moved > isolation_check.TOLERANCE[torch.float32]
    attention.register()


def test_the_start_up_check_passes_on_a_right_backend(tiny_model: Path) -> None:
    module = packed(tiny_model, "sdpa_per_doc")
    assert (
        isolation_check.measure_isolation(lambda batch: module(*to_inputs(batch, "cpu"))[1], tiny_docs.VOCAB)
        == 0.0
    )


def test_attention_without_document_borders_is_refused(tiny_model: Path) -> None:
    module = packed(tiny_model, "sdpa_per_doc")
    with pytest.raises(UserError, match="documents would see one another"):
        module.hf.get_decoder()(input_ids=torch.ones(1, 4, dtype=torch.long), use_cache=False)
