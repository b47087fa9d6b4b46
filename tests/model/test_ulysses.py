"""Attention over rows that ranks share equals attention over whole rows: output and every gradient, on real gloo ranks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import families
import pytest
import tiny_docs
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from loading import load

from sft_dist.batch import sequence_shard
from sft_dist.core.records import Batch
from sft_dist.model import attention, backends, ulysses
from sft_dist.model.packed import to_inputs
from sft_dist.model.ulysses import SequenceGroup

# 12 tokens: the second document crosses the border of two slices, the third those of four; the last is one token.
CU = torch.tensor([0, 2, 7, 11, 12], dtype=torch.int32)
T, D = 12, 4
HEADS = [(4, 4), (4, 2), (4, 1), (12, 6)]  # query and key-value heads; four ranks share 2, 1 and 6
OPTIONS: list[dict[str, Any]] = [
    {},
    {"sliding_window": 3},
    {"softcap": 2.0},
    {"s_aux": True, "sliding_window": 4},
]
Shares = list[tuple[int, int, int, int]]


def tensors(heads: int, kv_heads: int) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(heads * 10 + kv_heads)
    shapes = {"q": (1, heads, T, D), "k": (1, kv_heads, T, D), "v": (1, kv_heads, T, D), "s_aux": (heads,)}
    return {n: torch.randn(s, generator=g) for n, s in shapes.items()}


def run(attend: Any, x: dict[str, torch.Tensor], options: dict[str, Any], upstream: torch.Tensor) -> Any:
    """Return the output and the gradients of q, k, v and sinks."""
    x = {n: t.clone().requires_grad_() for n, t in x.items()}
    options = options | ({"s_aux": x["s_aux"]} if "s_aux" in options else {})
    out, _ = attend(
        None, x["q"], x["k"], x["v"], None, scaling=0.3, cu_seq_lens_q=CU, max_length_q=5, **options
    )
    (out * upstream).sum().backward()
    return out.detach(), {n: t.grad for n, t in x.items() if t.grad is not None}


def compare(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=4)
    shares, worst = [], 0.0
    for size in (1, 2, 4):
        group = ulysses.join(size, timeout_minutes=1)
        shares.append((group.size, group.place, group.data_rank, group.data_ranks))
        if size == 1:
            continue
        attend = ulysses.across(backends.sdpa_per_doc, group)
        mine = slice(T // size * group.place, T // size * (group.place + 1))
        for heads, kv_heads in HEADS:
            whole = tensors(heads, kv_heads)
            upstream = torch.arange(T * heads * D).view(1, T, heads, D) / (T * heads * D)
            parts = {n: t if n == "s_aux" else t[:, :, mine] for n, t in whole.items()}
            for options in OPTIONS:
                out, grads = run(backends.sdpa_per_doc, whole, options, upstream)
                out_part, grads_part = run(attend, parts, options, upstream[:, mine])
                if "s_aux" in grads:  # a parameter: every rank adds the share of its heads
                    dist.all_reduce(grads_part["s_aux"], group=group.group)
                pairs = [(out_part, out[:, mine])] + [
                    (g, grads[n] if n == "s_aux" else grads[n][:, :, mine]) for n, g in grads_part.items()
                ]
                assert len(pairs) == 4 + ("s_aux" in options)
                worst = max(worst, *(float((a - b).abs().max()) for a, b in pairs))
    torch.save({"shares": shares, "worst": worst}, Path(folder) / f"rank{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ulysses")
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    mp.spawn(compare, (str(folder),), nprocs=4)
    return [torch.load(folder / f"rank{r}.pt") for r in range(4)]


def test_neighbours_share_rows(seen: list[dict[str, Any]]) -> None:
    """(size, place, data rank, data ranks) of ranks 0 to 3 in groups of one, two and four."""
    by_size: list[Shares] = [list(s) for s in zip(*(r["shares"] for r in seen), strict=True)]
    assert by_size == [
        [(1, 0, 0, 4), (1, 0, 1, 4), (1, 0, 2, 4), (1, 0, 3, 4)],
        [(2, 0, 0, 2), (2, 1, 0, 2), (2, 0, 1, 2), (2, 1, 1, 2)],
        [(4, 0, 0, 1), (4, 1, 0, 1), (4, 2, 0, 1), (4, 3, 0, 1)],
    ]


def test_shared_rows_equal_whole_rows_forward_and_backward(seen: list[dict[str, Any]]) -> None:
    assert max(r["worst"] for r in seen) < 1e-6


def test_a_group_has_its_own_registered_name() -> None:
    assert attention.registered_name("flex") == "sft_dist_flex"
    assert attention.registered_name("flex", 4) == "sft_dist_flex_over_4"


def loss_and_gradients(
    folder: str, batch: Batch, sequence: SequenceGroup | None
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    module = load(
        folder, attention="sdpa_per_doc", gradient_checkpointing=True, sequence=sequence
    ).module.train()
    loss, _ = module(*to_inputs(batch, "cpu"))
    loss.backward()
    grads = {n: p.grad for n, p in module.named_parameters()}
    if sequence is not None:
        for g in grads.values():
            dist.all_reduce(g)
        dist.all_reduce(loss := loss.detach())
    return loss, grads


def compare_families(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    group = ulysses.join(2, timeout_minutes=1)
    docs = tiny_docs.documents(0)
    whole = tiny_docs.pack(docs, list(range(len(docs))))
    worst: dict[str, tuple[str, float]] = {}
    for family in families.FAMILIES:
        model = f"{folder}/{family}"
        if rank == 0:
            families.save(family, Path(model))
        dist.barrier()
        loss, grads = loss_and_gradients(model, whole, None)
        shared_loss, shared = loss_and_gradients(model, sequence_shard(whole, rank, 2), group)
        apart = {n: float((shared[n] - g).norm() / (g.norm() + 1e-6)) for n, g in grads.items()}
        apart["loss"] = float((shared_loss - loss).abs() / loss)
        worst[family] = max(apart.items(), key=lambda entry: entry[1])
    torch.save(worst, Path(folder) / f"rank{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_every_family_can_share_rows(tmp_path: Path) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    mp.spawn(compare_families, (str(tmp_path),), nprocs=2)
    worst = torch.load(tmp_path / "rank0.pt")
    assert worst.keys() == families.FAMILIES.keys()
    assert {f: w for f, w in worst.items() if w[1] > 1e-4} == {}
