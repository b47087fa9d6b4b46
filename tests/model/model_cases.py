"""Train adapted, partly frozen, grown and routed models on this rank: `python model_cases.py OUT MODE ...`.

Started by torchrun (test_partly_trained.py). For each mode: four steps with a checkpoint after the second, then a new
engine that resumes it and goes on. On one rank, a mode that two ranks trained before is resumed only.
Leaves OUT/<mode>/: initial.pt, final-<ranks>.pt (trained weights by name), losses-<ranks>.json, checkpoint/.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import deepspeed
import tiny_docs
import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_fp32_param
from loading import load

from sft_dist.checkpoint import io as store
from sft_dist.config.model import LoraConfig
from sft_dist.core.records import Position
from sft_dist.model.packed import to_inputs
from sft_dist.train import zero

STEPS, SAVE_AT, LR = 4, 2, 1e-2
# mode -> (family, options of load)
MODES: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("llama", {"lora": LoraConfig(rank=4, alpha=8.0), "gradient_checkpointing": True}),
    "dora": (
        "qwen3",
        {"lora": LoraConfig(rank=4, alpha=8.0, dora=True, target_modules=("q_proj", "down_proj"))},
    ),
    "saved": (
        "qwen3",
        {
            "lora": LoraConfig(rank=4, alpha=8.0, rslora=True, modules_to_save=("lm_head",)),
            "vocab_multiple": 100,
        },
    ),
    "tied": (
        "llama",
        {"lora": LoraConfig(rank=4, alpha=8.0, modules_to_save=("lm_head",)), "vocab_multiple": 100},
    ),
    "frozen": ("qwen3", {"freeze": ("embeddings", "layers[:1]")}),
    "grown": ("llama", {"vocab_multiple": 48, "min_vocab_size": 130}),
    "moe": ("qwen3_moe", {}),
}


def ds_config() -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1, "managed_gradient_accumulation": False,
        "gradient_clipping": 0.0, "steps_per_print": 10**9, "zero_allow_untested_optimizer": True,
        "zero_optimization": {
            "stage": 3, "reduce_scatter": True, "reduce_bucket_size": 5000, "stage3_prefetch_bucket_size": 5000,
            "stage3_param_persistence_threshold": 100, "sub_group_size": 20000,
        },
    }  # fmt: skip


def engine_of(model: str, options: dict[str, Any]) -> Any:
    module = load(model, zero_config=ds_config(), **{"seed": 3, **options}).module
    trained = [p for p in module.parameters() if p.requires_grad]
    group = {"params": trained, "states": ("exp_avg", "exp_avg_sq"), "counts_steps": True}
    optimizer = torch.optim.AdamW([group], lr=LR, weight_decay=0.0)
    return deepspeed.initialize(model=module, optimizer=optimizer, config=ds_config())[0]


def trained_weights(engine: Any) -> dict[str, torch.Tensor]:
    found = ((n.removeprefix("hf."), p) for n, p in engine.module.named_parameters() if p.requires_grad)
    return {n: safe_get_full_fp32_param(p).clone() for n, p in found}


def train(engine: Any, first: int, folder: Path) -> list[float]:
    """Steps `first` to STEPS on the documents that every world size shares; the loss of each."""
    rank, world = dist.get_rank(), dist.get_world_size()
    losses = []
    for step in range(first, STEPS):
        docs = tiny_docs.documents(step)
        total = sum(sum(tiny_docs.weights_of(d)) for d in docs)
        mine = tiny_docs.pack(docs[rank::world], list(range(rank, len(docs), world)))
        loss, _ = engine(*to_inputs(mine, "cpu"))
        engine.backward(loss * world / total, scale_wrt_gas=False)
        engine.step()
        summed = loss.detach() / total
        dist.all_reduce(summed)
        losses.append(float(summed))
        if step + 1 == SAVE_AT and first == 0:
            save(engine, folder)
    return losses


def save(engine: Any, folder: Path) -> None:
    parts, ranges = store.copy_parts(engine)
    files: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(files, store.write_part(folder / ".aside", dist.get_rank(), parts, ranges))
    index = store.describe(engine, Position(step=SAVE_AT, epoch=0, epoch_step=SAVE_AT), {})
    if dist.get_rank() == 0:
        store.commit(
            folder / ".aside", folder / "checkpoint", index, {k: v for f in files for k, v in f.items()}
        )
    dist.barrier()


def run(mode: str, out: Path) -> None:
    world = dist.get_world_size()
    family, options = MODES[mode]
    folder, model = out / mode, str(out / f"model-{family}")
    folder.mkdir(exist_ok=True)
    seen: dict[str, Any] = {}
    if not (folder / "checkpoint").exists():
        engine = engine_of(model, options)
        whole = [n for n, p in engine.module.named_parameters() if not hasattr(p, "ds_tensor")]
        assert not whole, whole
        initial = trained_weights(engine)
        seen["losses"] = train(engine, 0, folder)
        final = trained_weights(engine)
        if dist.get_rank() == 0:
            torch.save(initial, folder / "initial.pt")
            torch.save(final, folder / "final.pt")
    dist.barrier()
    engine = engine_of(model, options)
    store.load(engine, folder / "checkpoint")
    seen["resumed"] = train(engine, SAVE_AT, folder)
    again, whole_run = trained_weights(engine), torch.load(folder / "final.pt")
    seen["difference"] = max(float((again[n] - whole_run[n]).abs().max()) for n in again)
    if dist.get_rank() == 0:
        (folder / f"seen-{world}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    zero.init_distributed(timeout_minutes=2)
    torch.set_num_threads(1)
    for name in sys.argv[2:]:
        run(name, Path(sys.argv[1]))
    dist.barrier()
    dist.destroy_process_group()
