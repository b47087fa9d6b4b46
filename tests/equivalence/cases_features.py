"""Cases of single features: twenty steps with the feature on, saved half-way and continued by a new engine."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import cases
import numpy as np
import tiny_docs
import torch
import torch.distributed as dist
from case import Case
from deepspeed.runtime.swap_tensor import optimizer_utils
from deepspeed.utils import groups
from waits import Waits

from sft_dist.checkpoint import io as store
from sft_dist.checkpoint import slices
from sft_dist.config.root import RunConfig
from sft_dist.config.train import LossConfig
from sft_dist.core.records import Position, Span, Tokens
from sft_dist.model import activation_memory
from sft_dist.model.loss import LossHead
from sft_dist.model.neftune import add_noise
from sft_dist.model.packed import to_inputs, upload
from sft_dist.pack import CostModel
from sft_dist.shards import ShardWriter, finish_store
from sft_dist.train import loop, zero
from sft_dist.train.ema import Ema
from sft_dist.train.evaluate import set_losses
from sft_dist.train.metrics import Meter

STEPS, HALF = 20, 10


def smooth(module: Any) -> None:
    for head in (m for m in module.modules() if isinstance(m, LossHead)):
        head.options = LossConfig(label_smoothing=0.1, z_loss=1e-3, dft=True)


# Name -> what engine_of gets. `nvme_path` is filled in.
FEATURES: dict[str, dict[str, Any]] = {
    "plain": {},
    "offload_optimizer": {"offload_optimizer": "cpu"},
    "offload_params": {"offload_optimizer": "cpu", "offload_params": "cpu"},
    # what is smaller than a block stays in memory, and the model of these tests is, by the default (see MIN_AIO_BYTES too)
    "nvme": {"offload_optimizer": "nvme", "extra": {"aio": {"block_size": 4096}}},
    "hpz": {"hpz_partition_size": 2},
    "full": {"checkpointing": True},
    "second": {"checkpointing": 2},
    "selective": {"checkpointing": "selective"},
    "offload_activations": {
        "checkpointing": True,
        "change": lambda module: activation_memory.offload_layer_inputs(module.hf),
    },
    "tiles": {"change": lambda module: activation_memory.tile_mlp(module.hf, 3)},
    "tiles_full": {
        "checkpointing": True,
        "change": lambda module: activation_memory.tile_mlp(module.hf, 3),
    },
    # aot_eager: the graphs of dynamo and autograd, each operation as it is
    "compiled": {"change": lambda module: activation_memory.compile_layers(module.hf, "aot_eager")},
    "compiled_full": {
        "checkpointing": True,
        "change": lambda module: activation_memory.compile_layers(module.hf, "aot_eager"),
    },
    "neftune": {"change": lambda module: add_noise(module, 5.0)},
    "loss_options": {"change": smooth},
    "layer_decay": {"optim": {"layer_lr_decay": 0.5}},
    "muon": {"optim": {"name": "muon"}},
}


@dataclass(frozen=True, kw_only=True)
class Feature(Case):
    """Losses and norms of an uninterrupted run, of the second half continued from a checkpoint, and the weights' distance."""

    group: ClassVar[str] = "features"
    name: str
    stage: int

    def run(self, model: str, scratch: Path) -> dict[str, Any]:
        options = dict(FEATURES[self.name])
        if "nvme" in options.values():
            options["nvme_path"] = str(scratch / "nvme")
            optimizer_utils.MIN_AIO_BYTES = 4096
        folder = scratch / f"feature-{self.name}-{self.stage}"
        engine = cases.engine_of(model, stage=self.stage, **options)
        whole = cases.train(engine, folder, steps=STEPS, save_at=(HALF,))
        final = cases.weights(engine)
        swapped = len(list((scratch / "nvme").rglob("*.swp"))) if "nvme_path" in options else 0
        groups._ZERO_PARAM_INTRA_PARALLEL_GROUP = None  # of hpZ: DeepSpeed makes it once a process
        engine = cases.engine_of(model, stage=self.stage, **options)
        found = store.newest(folder / "checkpoints", lambda path, why: None)
        assert found is not None
        position, _ = store.load(engine, found)
        assert position == Position(step=HALF, epoch=0, epoch_step=HALF)
        rest = cases.train(engine, folder, steps=STEPS, start=position)
        apart = max(float((v - final[n]).abs().max()) for n, v in cases.weights(engine).items())
        return {
            "losses": whole["losses"],
            "norms": whole["norms"],
            "resumed": rest["losses"],
            "apart": apart,
            "swapped": swapped,
        }


@dataclass(frozen=True, kw_only=True)
class DiskFeature(Feature):
    """In a launch of its own: not every machine can run it."""

    group: ClassVar[str] = "disk"


@dataclass(frozen=True, kw_only=True)
class EmaStates(Case):
    """Whether an average is saved, read by an export and restored, and what one update makes of it."""

    group: ClassVar[str] = "features"
    stage: int

    def run(self, model: str, scratch: Path) -> dict[str, Any]:
        folder = scratch / f"ema-{self.stage}"
        engine = cases.engine_of(model, stage=self.stage)
        Ema(engine, decay=0.5, every=1)
        for _, state in slices.flat_states(engine):
            state["ema"].fill_(3.0)
        cases.train(engine, folder, steps=2, save_at=(2,))
        found = store.newest(folder / "checkpoints", lambda path, why: None)
        assert found is not None
        index = store.read_index(found)
        exported = [store.read_parameter(found, index, n, "ema") for n in index.parameters]
        engine = cases.engine_of(model, stage=self.stage)
        ema = Ema(engine, decay=0.5, every=2)
        store.load(engine, found)
        ema.after(1)  # not yet
        restored = [s.views["ema"].unique().tolist() for s in slices.local_slices(engine)]
        ema.after(2)
        ema.settle()
        apart = [
            float((s.views["ema"] - (0.25 * 3.0 + 0.75 * s.views["master"])).abs().max())
            for s in slices.local_slices(engine)
        ]
        return {
            "exported": all(bool((x == 3.0).all()) for x in exported),
            "restored": all(values == [3.0] for values in restored),
            "apart": max(apart),
        }


@dataclass(frozen=True, kw_only=True)
class HeldOut(Case):
    """The held-out loss of so many documents, by the trainer's evaluation and of one document after the other."""

    group: ClassVar[str] = "features"
    documents: int

    def run(self, model: str, scratch: Path) -> dict[str, Any]:
        folder = scratch / f"held-out-{self.documents}"
        docs = tiny_docs.documents(0)[: self.documents]
        if dist.get_rank() == 0:
            with ShardWriter(folder, 0, "int32", key={}) as writer:
                for i, doc in enumerate(docs):
                    spans = (Span(1, len(doc) - 1, 1.0),)
                    writer.add(f"{i:032x}", i % 2, 0, Tokens(ids=np.array(doc, np.int32), spans=spans))
            finish_store(folder, key={}, tasks=["even", "odd"], sources=["a"])
        dist.barrier()
        config = RunConfig.model_validate({
            "model": {"path": model}, "pack": {"seq_len": 64}, "train": {"tokens_per_step": 128, "micro_rows": 1},
        })  # fmt: skip
        engine = cases.engine_of(model, stage=3)
        cost = CostModel(linear_flops_per_token=1.0, attention_flops_per_pair=0.1)
        found = set_losses(config, engine, {"seen": str(folder)}, cost, cases.group(1), moved=lambda: None)()
        sums = {"even": [0.0, 0.0], "odd": [0.0, 0.0]}
        engine.eval()
        for i, doc in enumerate(docs):
            batch = replace(
                tiny_docs.pack([doc], [i]),
                target_positions=np.arange(len(doc) - 1),
                target_ids=np.array(doc[1:]),
                target_weights=np.ones(len(doc) - 1, np.float32),
            )
            with torch.no_grad():
                nll = engine(*to_inputs(batch, engine.device))[1]
            sums["odd" if i % 2 else "even"][0] += float(nll.sum())
            sums["odd" if i % 2 else "even"][1] += len(nll)
        whole = [sum(x) for x in zip(*sums.values(), strict=True)]
        return {
            "found": found,
            "expected": {
                "loss": whole[0] / whole[1],
                "task_loss": {t: a / b for t, (a, b) in sums.items() if b},
            },
        }


@dataclass(frozen=True, kw_only=True)
class WaitingCalls(Case):
    """The calls of a third step that would wait for a GPU: in its two micro-steps, and between them and the next step."""

    stage: int

    def run(self, model: str, scratch: Path) -> dict[str, dict[str, int]]:
        engine = cases.engine_of(model, stage=self.stage, dtype="bfloat16")
        engine.train()
        meter = Meter(["even", "odd"], engine.device)
        found: dict[str, dict[str, int]] = {}
        for step in range(3):
            micro = tiny_docs.deal(step, dist.get_world_size(), 2)
            scale = dist.get_world_size() / cases.plan_of(step, micro).target_weight
            batches = [upload(b, engine.device, meter.codes(b)) for b in cases.own(micro, 1)]
            with Waits() as inside:
                for batch in batches:
                    loop.micro_step(engine, batch, scale, meter)
            with Waits() as between:
                meter.reduce()
                zero.update(engine, 1.0)
            found = {"micro-steps": dict(inside.seen), "update": dict(between.seen)}
        return found
