"""What a config allows and hardly means: said by `check` and at the start of a run, never refused."""

from __future__ import annotations

from sft_dist.config import RunConfig
from sft_dist.config.auto import asked, supposed
from sft_dist.core.errors import UserError, nearest
from sft_dist.core.files import expanded
from sft_dist.train.schedule import decay_steps, warmup_steps


def config_warnings(config: RunConfig, *, ranks: int, steps: int) -> tuple[str, ...]:
    """Return what is allowed and hardly meant: ranks without work, a rate that never arrives, a trace of no step.

    Args:
        config: The run's config.
        ranks: Of the whole run.
        steps: Optimizer steps of the whole run.
    """
    optim, window = config.optim, config.train.profile
    found = [_thin_batch(config, ranks)]
    rise = warmup_steps(optim, total_steps=steps, tokens_per_step=config.train.tokens_per_step)
    fall = decay_steps(optim, total_steps=steps)
    if rise > 1 and rise >= steps:
        field = next(
            (f for f in ("warmup_steps", "warmup_tokens") if getattr(optim, f) is not None), "warmup_share"
        )
        found.append(
            f"optim.{field} fills {rise} steps of {steps}, so the learning rate never leaves its warm-up; use optim.warmup_share=0.03"
        )
    if optim.schedule == "wsd" and rise < steps < rise + fall:
        found.append(
            f"optim.schedule=wsd rises over {rise} and falls over {fall} of {steps} steps, so the two overlap and the learning rate jumps "
            "where the first ends; use shares of the run, such as optim.warmup_share=0.03 and optim.decay_share=0.2"
        )
    if window is not None and window[0] > steps:
        found.append(
            f"train.profile={list(window)} begins after the last of {steps} steps, so nothing is recorded; use earlier steps"
        )
    found.append(_far_gathers(config, ranks))
    return tuple(text for text in found if text)


def refuse_misspelt_model(config: RunConfig) -> None:
    """Refuse a model.path that is no folder while one of nearly this name lies beside it: else the hub would be asked.

    Raises:
        UserError: With the folder that is meant.
    """
    path = expanded(config.model.path or ".")
    if path.exists() or not path.parent.is_dir():
        return
    models = [
        p.parent.name for p in path.parent.glob("*/config.json") if not (p.parent / "status.json").exists()
    ]
    if hint := nearest(path.name, models):
        raise UserError(
            f"model.path={config.model.path} is no folder, so there is no model to start from.{hint}"
        )


def _far_gathers(config: RunConfig, ranks: int) -> str:
    """Say that ZeRO-3 gathers all weights from other nodes for every micro-step; an empty string where it does not."""
    zero, nodes = config.deepspeed, config.launch.nodes
    if (
        zero.stage != 3
        or nodes == 1
        or zero.hpz_partition_size > 1
        or asked(supposed(config))["micro_rows"] >= 4
    ):
        return ""
    return (
        f"deepspeed.stage=3 on {nodes} nodes gathers all weights over the network twice for every micro-step, which takes longer than "
        f"a row of a few thousand tokens; use deepspeed.hpz_partition_size={max(2, ranks // nodes)} with train.micro_rows=4, or "
        "deepspeed.stage=2 where it fits (docs/cluster.md has the arithmetic)"
    )


def _thin_batch(config: RunConfig, ranks: int) -> str:
    """Say that a global batch has fewer rows than the ranks run side by side; an empty string where it has enough."""
    rows = config.train.tokens_per_step // config.pack.seq_len
    groups = max(1, ranks // config.train.sequence_parallel)
    micro_rows = asked(supposed(config))["micro_rows"]
    side_by_side = groups * micro_rows
    if rows >= side_by_side:
        return ""
    idle = (
        f"{groups - rows} of {groups} have none in every step"
        if rows < groups
        else "micro-steps are not full"
    )
    return (
        f"train.tokens_per_step={config.train.tokens_per_step} is {rows} row{'s' * (rows > 1)} of pack.seq_len={config.pack.seq_len}, "
        f"but {groups} {'ranks' if groups == ranks else 'groups of ranks'} x train.micro_rows={micro_rows} run "
        f"{side_by_side} side by side, so {idle}; use train.tokens_per_step={side_by_side * config.pack.seq_len}, fewer ranks or "
        "fewer micro_rows"
    )
