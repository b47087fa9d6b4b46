"""The numerics that a trainer must not get wrong. Tolerances and their causes: docs/numerics.md."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_docs
import torch
from case import Case
from cases import Gradient, NativeTwin, Poison, Resume, Save, Train
from cases_more import Bf16, Clip
from loading import load
from torch.nn import functional as F

Outcome = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def plain(tiny_model: Path) -> dict[str, Any]:
    """Twenty steps and the first gradient of an independent trainer: plain torch, every document alone, one process."""
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(tiny_model, attn_implementation="eager")
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
        betas=(0.9, 0.95),
        eps=1e-8,
    )
    losses, norms, first = [], [], None
    for step in range(20):
        total, weight_sum = torch.zeros(()), 0.0
        for doc in tiny_docs.documents(step):
            logits = model(torch.tensor([doc])).logits[0]
            ce = F.cross_entropy(logits[:-1], torch.tensor(doc[1:]), reduction="none")
            w = torch.tensor(tiny_docs.weights_of(doc)[1:])
            total, weight_sum = total + (ce * w).sum(), weight_sum + float(w.sum())
        loss = total / weight_sum
        optimizer.zero_grad()
        loss.backward()
        if first is None:
            first = {n: p.grad.clone().flatten() for n, p in model.named_parameters()}
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)))
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1.0, (step + 1) / 4)
        optimizer.step()
        losses.append(float(loss.detach()))
    final = torch.cat([p.detach().flatten() for p in model.parameters()])
    return {
        "losses": losses,
        "norms": norms,
        "gradient": torch.cat(list(first.values())),
        "weights": final,
    }


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize(
    ("world", "case"),
    [
        (1, Gradient(stage=3, micro_steps=1)),
        (1, Gradient(stage=0, micro_steps=1)),
        (1, Gradient(stage=0, micro_steps=4)),
        (2, Gradient(stage=3, micro_steps=1)),
        (2, Gradient(stage=3, micro_steps=2)),
        (2, Gradient(stage=3, micro_steps=4)),
        (2, Gradient(stage=3, micro_steps=16)),  # 32 micro-batches for 16 documents: half of them are empty
        (2, Gradient(stage=0, micro_steps=2)),
        (2, Gradient(stage=3, micro_steps=3, variant="short")),
        (2, Gradient(stage=3, micro_steps=1, variant="prompts")),
        (4, Gradient(stage=3, micro_steps=1)),
        (4, Gradient(stage=3, micro_steps=2)),
        (
            4,
            Gradient(stage=3, micro_steps=3, variant="short"),
        ),  # in the last micro-step three of four ranks are idle
    ],
)
def test_gradient_and_loss_are_those_of_plain_torch_for_any_ranks_accumulation_and_stage(
    outcome: Outcome, plain: dict[str, Any], world: int, case: Case
) -> None:
    seen = outcome(case, world)
    assert relative(torch.load(seen["file"]), plain["gradient"]) < 1e-5
    assert seen["loss"] == pytest.approx(plain["losses"][0], rel=1e-6)


@pytest.mark.parametrize(
    ("world", "case"),
    [
        (2, Gradient(stage=3, micro_steps=2, sp=2)),
        (2, Gradient(stage=0, micro_steps=2, sp=2)),
        (2, Gradient(stage=3, micro_steps=2, sp=2, variant="checkpointing")),
        (4, Gradient(stage=3, micro_steps=2, sp=2)),
        (4, Gradient(stage=3, micro_steps=1, sp=2, variant="prompts")),
        (4, Gradient(stage=3, micro_steps=2, sp=4)),  # four ranks share two key-value heads
    ],
)
def test_gradient_is_the_same_when_ranks_share_rows(
    outcome: Outcome, plain: dict[str, Any], world: int, case: Case
) -> None:
    seen = outcome(case, world)
    assert relative(torch.load(seen["file"]), plain["gradient"]) < 1e-5
    assert seen["loss"] == pytest.approx(plain["losses"][0], rel=1e-6)


SHARED = Gradient(stage=3, micro_steps=2, sp=2)


@pytest.mark.cases(SHARED)
def test_wrong_scales_would_fail_the_gradient_test(plain: dict[str, Any], outcome: Outcome) -> None:
    """The planted bugs: counting only the groups that share rows, or the group twice, in the algebra."""
    g = torch.load(outcome(SHARED)["file"])
    assert relative(g / 2, plain["gradient"]) > 1e-2
    assert relative(g * 2, plain["gradient"]) > 1e-2


def test_mean_of_means_would_fail_the_gradient_test(tiny_model: Path, plain: dict[str, Any]) -> None:
    """The planted bug: averaging each micro-batch over its own targets, then over micro-batches."""
    from sft_dist.model.packed import to_inputs

    module = load(tiny_model, attention="sdpa_per_doc").module
    micro = [m[0] for m in tiny_docs.deal(0, 1, 4)]
    for batch in micro:
        loss_sum, _ = module(*to_inputs(batch, "cpu"))
        (loss_sum / float(batch.target_weights.sum()) / len(micro)).backward()
    wrong = torch.cat([p.grad.flatten() for p in module.parameters()])
    assert relative(wrong, plain["gradient"]) > 1e-2


@pytest.mark.parametrize(
    ("world", "case"),
    [
        (1, Train(stage=0, micro_steps=1)),
        (1, Train(stage=3, micro_steps=1)),
        (2, Train(stage=3)),
        (2, Train(stage=2)),
        (2, Train(stage=1)),
        (2, Train(stage=0)),
        (2, Train(stage=3, sp=2)),
        (2, Train(stage=2, sp=2)),
        (4, Train(stage=3, sp=2)),
    ],
)
def test_twenty_steps_equal_plain_torch(
    outcome: Outcome, plain: dict[str, Any], world: int, case: Case
) -> None:
    ours = outcome(case, world)
    np.testing.assert_allclose(ours["losses"], plain["losses"], rtol=1e-5)
    np.testing.assert_allclose(ours["norms"], plain["norms"], rtol=1e-5)
    final = torch.cat(list(torch.load(ours["weights"]).values()))
    assert relative(final, plain["weights"]) < 1e-5
    assert ours["lrs"] == [1e-3 * min(1.0, (step + 1) / 4) for step in range(20)]


@pytest.mark.parametrize(
    ("world", "case"),
    [
        (1, Train(stage=0, micro_steps=1)),
        (2, Train(stage=3)),
        (2, Train(stage=3, sp=2)),
        (4, Train(stage=3, sp=2)),
    ],
)
def test_what_a_step_logs_can_be_recomputed(outcome: Outcome, world: int, case: Case) -> None:
    for step, m in enumerate(outcome(case, world)["metrics"]):
        docs = tiny_docs.documents(step)
        tokens = sum(map(len, docs))
        targets = sum(w > 0 for d in docs for w in tiny_docs.weights_of(d))
        assert (m["tokens"], m["target_tokens"]) == (tokens, targets)
        assert m["tokens_per_s"] * m["step_s"] == pytest.approx(tokens)
        flops = 3.0 * tokens + 5.0 * targets + 7.0 * sum(len(d) ** 2 for d in docs)
        assert m["mfu"] * m["step_s"] * 1e9 == pytest.approx(flops)


@pytest.mark.parametrize("case", [Bf16(stage=3), Bf16(stage=2)])
def test_bf16_stays_close_and_keeps_fp32_masters(outcome: Outcome, plain: dict[str, Any], case: Case) -> None:
    seen = outcome(case)
    assert seen["states"] == ["torch.float32"]  # weights and both moments
    assert seen["forward"] == ["torch.bfloat16"]
    np.testing.assert_allclose(seen["losses"], plain["losses"], rtol=1e-2)


@pytest.mark.parametrize("case", [Clip(stage=stage, clip=0.05) for stage in (3, 2, 1, 0)])
def test_clipping_shrinks_the_gradient_to_the_limit_exactly(
    outcome: Outcome, plain: dict[str, Any], case: Case
) -> None:
    seen = outcome(case)
    norm = float(plain["gradient"].norm())
    assert norm > 0.05
    assert seen["norm"] == pytest.approx(norm, rel=1e-5)  # as it was before clipping
    moment = torch.load(seen["file"])  # (1 - beta1) x clipped gradient
    assert relative(moment, plain["gradient"] * (1 - 0.9) * 0.05 / norm) < 1e-5


ONE_RANK = Train(stage=0, micro_steps=1)


def kernels() -> dict[str, str]:
    """What decides the order of sums: torch, and the kind of CPU (as a digest: only equality matters)."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    keys = ("model name", "cpu family", "model\t", "stepping", "flags")  # a virtual machine may show any name
    kind = sorted({line for line in lines if line.startswith(keys)})
    return {
        "torch": torch.__version__,
        "cpu": hashlib.blake2b(repr(kind).encode(), digest_size=4).hexdigest(),
    }


@pytest.mark.cases(ONE_RANK, world=1)
def test_the_golden_losses(outcome: Outcome) -> None:
    """Twenty losses as they were when golden.json was written: exact with the same torch on the same CPU, else 1e-5."""
    golden = json.loads((Path(__file__).parent / "golden.json").read_text())
    losses = outcome(ONE_RANK, 1)["losses"]
    if kernels() == golden["made_with"]:
        assert losses == golden["losses"]
    np.testing.assert_allclose(losses, golden["losses"], rtol=1e-5)
    assert golden["losses"][0] == pytest.approx(
        np.log(tiny_docs.VOCAB), abs=0.2
    )  # nothing is known at the start


@pytest.mark.parametrize("case", [Resume(saved=Save(stage=stage), world=2) for stage in (3, 2, 1, 0)])
def test_resume_equals_uninterrupted_bit_for_bit(outcome: Outcome, case: Resume) -> None:
    whole, resumed = outcome(case.saved), outcome(case)
    assert resumed["losses"] == whole["losses"][4:]
    assert resumed["norms"] == whole["norms"][4:]
    assert resumed["lrs"] == whole["lrs"][4:]
    assert resumed["largest_weight_difference"] == 0.0


@pytest.mark.parametrize(
    ("world", "case"),
    [
        (4, Resume(saved=Save(stage=3), world=2)),
        (1, Resume(saved=Save(stage=3), world=2)),
        (2, Resume(saved=Save(stage=3), world=4)),
        (2, Resume(saved=Save(stage=3, sp=2), world=4)),  # two of four ranks share rows, then none
    ],
)
def test_resume_on_another_number_of_ranks(outcome: Outcome, world: int, case: Resume) -> None:
    resumed, whole = outcome(case, world), outcome(case.saved, case.world)
    np.testing.assert_allclose(resumed["losses"], whole["losses"][4:], rtol=1e-6)
    assert resumed["largest_weight_difference"] < 1e-5


@pytest.mark.parametrize("case", [NativeTwin(stage=3), NativeTwin(stage=2), NativeTwin(stage=0)])
def test_our_checkpoint_equals_deepspeeds_own(outcome: Outcome, case: Case) -> None:
    seen = outcome(case)
    assert seen["weights"] == 0.0
    assert seen["kept"] == 0.0
    assert seen["ours"] == seen["native"]


@pytest.mark.parametrize("case", [Poison(stage=3), Poison(stage=2), Poison(stage=0)])
def test_a_non_finite_step_is_skipped_named_and_forgotten(outcome: Outcome, case: Case) -> None:
    seen = outcome(case)
    assert seen["skipped"] == [True]
    assert seen["moved"] == 0.0
    (kind, facts), *_ = seen["events"]
    assert kind == "skipped_step"
    assert facts["examples"] == ["doc0"]
    assert np.isfinite(seen["next_loss"]).all()


@pytest.mark.cases(Train(stage=3))
def test_task_losses_add_up_to_the_loss(outcome: Outcome) -> None:
    seen = outcome(Train(stage=3))
    for step, (loss, tasks) in enumerate(zip(seen["losses"], seen["task_loss"], strict=True)):
        weight = {"even": 0.0, "odd": 0.0}
        for k, doc in enumerate(tiny_docs.documents(step)):
            weight["odd" if k % 2 else "even"] += sum(tiny_docs.weights_of(doc)[1:])
        assert sum(tasks[t] * w for t, w in weight.items()) / sum(weight.values()) == pytest.approx(
            loss, rel=1e-6
        )
