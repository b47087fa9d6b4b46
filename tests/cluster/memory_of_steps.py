"""Measure one rank's live tensor bytes by part over real steps: `memory_of_steps.py OUT.json CASES.json`, under torchrun.

Every storage that an operator sees is counted from its first sight until it is freed, forward, backward and optimizer
step alike: what an allocator would hold without fragmentation. Buffers inside a kernel are not seen.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import weakref
from pathlib import Path
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sft_dist.config.model import ModelConfig
from sft_dist.config.train import DeepSpeedConfig, OptimConfig
from sft_dist.core.records import Batch
from sft_dist.model.load import load_packed
from sft_dist.model.packed import to_inputs
from sft_dist.train import zero
from sft_dist.train.optim import parameter_groups


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of live storages, and the most since `reset`."""

    def __init__(self) -> None:
        super().__init__()
        self.live, self.peak, self._seen = 0, 0, {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves((args, kwargs, out)):
            if isinstance(leaf, torch.Tensor):
                self._see(leaf.untyped_storage())
        self.peak = max(self.peak, self.live)
        return out

    def _see(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        known = self._seen.get(key)
        if known is None:
            self._seen[key] = size
            self.live += size
            weakref.finalize(storage, self._forget, key)
        elif known != size:  # resized in place
            self._seen[key] = size
            self.live += size - known

    def _forget(self, key: int) -> None:
        self.live -= self._seen.pop(key, 0)

    def reset(self) -> None:
        self.peak = self.live


def batch_of(lengths: list[int], vocab: int, targets: int) -> Batch:
    """Documents of these lengths; the last `targets` tokens of the row carry loss."""
    rng = np.random.default_rng(0)
    T = sum(lengths)
    return Batch.of_documents(rng.integers(1, vocab, T), lengths, np.arange(T - targets, T))


def measure(case: dict[str, Any]) -> dict[str, int]:
    section = DeepSpeedConfig(
        stage=case["stage"],
        overlap_comm=False,
        reduce_bucket_size=case["reduce_bucket_size"],
        prefetch_bucket_size=case["prefetch_bucket_size"],
        persistence_threshold=case["persistence_threshold"],
        sub_group_size=case["sub_group_size"],
        extra=case.get("extra", {}),
    )
    settings = zero.zero_config(section, dtype=case["dtype"], clip=1.0)
    loaded = load_packed(
        case["model"],
        ModelConfig(
            dtype=case["dtype"],
            gradient_checkpointing=case["gradient_checkpointing"],
            trainable=case.get("trainable", ()),
            freeze=case.get("freeze", ()),
        ),
        device="cpu",
        zero_config=settings if case["stage"] == 3 else None,
    )
    with LiveBytes() as memory:
        groups = parameter_groups(loaded.module, OptimConfig())
        engine = zero.make_engine(loaded.module, settings, groups, OptimConfig())
        vocab = loaded.module.hf.config.vocab_size
        inputs = to_inputs(batch_of(case["lengths"], vocab, case["targets"]), "cpu")
        engine.train()  # gradient checkpointing acts in training mode only
        out: dict[str, int] = {"ranks": torch.distributed.get_world_size()}
        for step in range(3):  # the first allocates the moments
            if step == 2:
                settle()
                memory.reset()
                out["start"] = memory.live
            for micro_step in range(2):  # gradients of the first are there when the second runs
                loss, nll = engine(*inputs)
                if micro_step == 0:
                    out["forward_end"], out["forward_peak"] = memory.live, memory.peak
                engine.backward(loss * 1e-3, scale_wrt_gas=False)
                del loss, nll
            out["backward_peak"] = memory.peak
            settle()
            out["backward_end"] = memory.live
            out["gradients"] = out["backward_end"] - out.get("start", 0)
            memory.reset()
            for group in engine.optimizer.param_groups:
                group["lr"] = 1e-3
            zero.update(engine, 1.0)
            out["step_peak"], out["end"] = memory.peak, memory.live
        # what the loss keeps beside the activations: hidden states of targets, their gradient, that of the head
        head = loaded.module.hf.get_output_embeddings().weight
        rows, width = head.ds_shape if hasattr(head, "ds_shape") else head.shape
        size = head.element_size()
        out["head"] = 2 * case["targets"] * width * size + 4 * rows * width
        out["weights"] = sum(_bytes(getattr(p, "ds_tensor", p)) for p in engine.module.parameters())
        out["parameters"] = sum(getattr(p, "ds_numel", p.numel()) for p in engine.module.parameters())
    return out


def settle() -> None:
    """Let go of what only other threads and cycles still hold: communication that has just ended."""
    torch.distributed.barrier()
    gc.collect()


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


if __name__ == "__main__":
    zero.init_distributed(5)
    found = []
    for case in json.loads(Path(sys.argv[2]).read_text()):
        found.append(measure(case))
        gc.collect()
    if torch.distributed.get_rank() == 0:
        Path(sys.argv[1]).write_text(json.dumps(found))
