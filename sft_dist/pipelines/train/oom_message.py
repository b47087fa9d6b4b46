"""A device that ran out of memory -> one sentence with three ways out."""

from __future__ import annotations

from sft_dist.cluster.estimate.estimate import needed, suggestions
from sft_dist.cluster.estimate.memory import estimate_memory
from sft_dist.config import RunConfig
from sft_dist.config.auto import asked
from sft_dist.core.errors import UserError
from sft_dist.pipelines.cluster.estimate_inputs import GIB, model_config, setup_of, shape_of

WAYS = 3
MARGIN = 0.9  # of what was not enough: the estimate thought that it would be


def oom_message(config: RunConfig, *, ranks: int, device_bytes: int, target_share: float) -> str:
    """Return what to tell the user of a run whose rank found no memory.

    Args:
        config: The run's config.
        ranks: Of the whole run.
        device_bytes: What the device has.
        target_share: Tokens that carry loss over all tokens.
    """
    said = f"a device of {device_bytes / GIB:.1f} GiB ran out of memory, so training ended; the last good checkpoint stays"
    try:
        shape = shape_of(config, model_config(config))
    except UserError:  # a model that only the hub knows by now
        return f"{said}. Lower train.micro_rows or pack.seq_len, or set model.gradient_checkpointing=true"
    setup = setup_of(config, target_share, ranks, "cuda")
    limit = min(device_bytes, round(MARGIN * needed(estimate_memory(shape, setup).peak, setup.device)))
    found = suggestions(
        shape, setup, rows=asked(config)["micro_rows"], seq_len=config.pack.seq_len, limit_bytes=limit
    )[:WAYS]
    if not found:
        return f"{said}. Nothing that `sft-dist estimate` knows would make it fit; use more nodes or a smaller model"
    ways = "; or ".join(f"{' '.join(s.overrides)} (about {s.peak / GIB:.1f} GiB)" for s in found)
    return f"{said}. By estimate these would fit: {ways}"
