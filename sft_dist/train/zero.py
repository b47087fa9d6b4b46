"""The only home of DeepSpeed's keys: our dozen fields -> its config, and the engine.

What is set explicitly and why (defaults of DeepSpeed 0.19): gradient_clipping defaults to 1.0, not off;
gradients accumulate in the parameter dtype unless grad_accum_dtype says fp32; the process-group timeout is 10 minutes.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from sft_dist.config.train import DeepSpeedConfig, OptimConfig
from sft_dist.core.errors import UserError, nearest

# Keys that we derive: letting `deepspeed.extra` set them would make the loss or the schedule wrong.
DERIVED = {
    "train_batch_size": "train.tokens_per_step",
    "train_micro_batch_size_per_gpu": "train.micro_rows",
    "gradient_accumulation_steps": "train.tokens_per_step",
    "managed_gradient_accumulation": "nothing: the loop owns the boundary",
    "gradient_clipping": "optim.clip",
    "optimizer": "optim",
    "scheduler": "optim.schedule",
    "bf16": "model.dtype",
    "bfloat16": "model.dtype",
    "fp16": "model.dtype",
    "torch_autocast": "model.dtype",
    "activation_checkpointing": "model.gradient_checkpointing",
    "compile": "model.compile",
    "checkpoint": "checkpoint",
    "data_efficiency": "nothing: the plan of an epoch decides what is trained on, and when",
    "tensor_parallel": "train.sequence_parallel: the loss algebra knows of no other way to share a row",
    "expert_parallel": "nothing: the loss algebra and the checkpoints know of no expert groups",
    "pipeline": "nothing: the loop runs whole models",
    "hybrid_engine": "nothing: answers are generated from the export",
    "communication_data_type": "deepspeed.communication_dtype",
    "zero_optimization.stage": "deepspeed.stage",
    "zero_optimization.overlap_comm": "deepspeed.overlap_comm",
    "zero_optimization.reduce_bucket_size": "deepspeed.reduce_bucket_size",
    "zero_optimization.reduce_scatter": "nothing: gradients of the loss algebra need it on",
    "zero_optimization.sub_group_size": "deepspeed.sub_group_size",
    "zero_optimization.stage3_prefetch_bucket_size": "deepspeed.prefetch_bucket_size",
    "zero_optimization.stage3_param_persistence_threshold": "deepspeed.persistence_threshold",
    "zero_optimization.stage3_max_live_parameters": "deepspeed.max_live_parameters",
    "zero_optimization.offload_optimizer": "deepspeed.offload_optimizer",
    "zero_optimization.cpu_offload": "deepspeed.offload_optimizer",
    "zero_optimization.offload_param": "deepspeed.offload_params",
    "zero_optimization.cpu_offload_param": "deepspeed.offload_params",
    "zero_optimization.zenflow": "nothing: it updates late, so a run would depend on where it was stopped",
    "zero_optimization.leaf_module": "nothing: whole layers are gathered",
    "zero_optimization.zero_hpz_partition_size": "deepspeed.hpz_partition_size",
    "zero_optimization.zero_quantized_weights": "deepspeed.quantized_weights",
    "zero_optimization.zero_quantized_gradients": "deepspeed.quantized_gradients",
    "prescale_gradients": "nothing: the loss algebra is exact with DeepSpeed's mean over ranks",
    "gradient_predivide_factor": "nothing: the loss algebra is exact with DeepSpeed's mean over ranks",
    "gradient_allreduce_op": "nothing: the loss algebra is exact with DeepSpeed's mean over ranks",
    "data_types": "nothing: micro-steps add up in fp32",
    "sequence_parallel_size": "train.sequence_parallel",
    "zero_force_ds_cpu_optimizer": "nothing: torch's fused AdamW updates on the host as well",
}

AHEAD = 50_000_000  # DeepSpeed's own


def zero_config(
    section: DeepSpeedConfig, *, dtype: str, clip: float | None, ahead: int = AHEAD, ranks: int = 1
) -> dict[str, Any]:
    """Return the DeepSpeed config.

    Args:
        section: `deepspeed` of the run's config.
        dtype: float32 or bfloat16, of the weights in forward and backward.
        clip: Largest global gradient norm; None: no clipping.
        ahead: Elements that are gathered ahead where the section leaves it open (stage 3).
        ranks: Of the run.

    Raises:
        UserError: When `extra` sets a key that we derive, or this machine lacks what a field needs.
    """
    check_extra(section.extra)
    _check_machine(section)
    stage, gathered_ahead = section.stage, section.prefetch_bucket_size
    assert stage != "auto", "pipelines.train.auto comes first"
    zero: dict[str, Any] = {
        "stage": stage,
        "overlap_comm": _overlaps(stage, ranks)
        if section.overlap_comm == "auto"
        else section.overlap_comm and stage >= 2,
        "contiguous_gradients": True,
        "reduce_scatter": True,
        "reduce_bucket_size": section.reduce_bucket_size,
    }
    if stage == 3:
        zero |= {
            "stage3_prefetch_bucket_size": ahead if gathered_ahead == "auto" else gathered_ahead,
            "stage3_param_persistence_threshold": section.persistence_threshold,
            "stage3_max_live_parameters": section.max_live_parameters,
            "stage3_max_reuse_distance": section.max_live_parameters,
            "sub_group_size": section.sub_group_size,
            "stage3_gather_16bit_weights_on_model_save": False,
            "zero_hpz_partition_size": section.hpz_partition_size,
            "zero_quantized_weights": section.quantized_weights,
            "zero_quantized_gradients": section.quantized_gradients,
        }
    if section.offload_optimizer != "none":
        zero["offload_optimizer"] = _offload(section.offload_optimizer, section.nvme_path)
    if section.offload_params != "none":
        zero["offload_param"] = _offload(section.offload_params, section.nvme_path)
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,  # unused: the true batch is counted in tokens
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,  # step() is the boundary, so micro-steps may vary from step to step
        "gradient_clipping": (clip or 0.0) if stage else 0.0,  # ZeRO off: `update` clips
        "steps_per_print": 1_000_000_000,
        # on by default, and it waits for the device before every forward pass (utils/timer.py); we count tokens ourselves
        "timers": {"throughput": {"enabled": False}},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # under offload too the optimizer is torch's: no compiled op
        "zero_optimization": zero,
        "checkpoint": {"tag_validation": "Fail"},
    }
    if dtype == "bfloat16":
        config["bf16"] = {"enabled": True, "check_grad_overflow": True}
        config["data_types"] = {
            "grad_accum_dtype": "fp32"
        }  # else micro-steps add up in bf16: 1e-2 error at 64 of them
    if section.communication_dtype is not None:
        config["communication_data_type"] = section.communication_dtype
    config = _merged(config, section.extra)
    _check_schema(config)
    if section.extra:
        _check_known(config, section.extra)
    return config


def _overlaps(stage: int, ranks: int) -> bool:
    """Say whether gradients are reduced by a stream of their own.

    With the caller owning the accumulation boundary, DeepSpeed overlaps under partitioned gradients only. Stage 3 without
    a second stream waits at every module for what it gathers (partition_parameters.py, NoGatherHandle), one rank or many.
    Stage 2 with one waits for the whole device in every backward pass, which only traffic between ranks can pay for.
    """
    return stage == 3 or (stage == 2 and ranks > 1)


class _Watched(dict[str, Any]):
    """A config that remembers which of its keys were looked for."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self.asked: set[Any] = set()

    def __contains__(self, key: object) -> bool:
        self.asked.add(key)
        return super().__contains__(key)

    def __getitem__(self, key: str) -> Any:
        self.asked.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.asked.add(key)
        return super().get(key, default)

    def keys(self) -> Any:
        return self  # so that `key in config.keys()` is seen as well

    def __copy__(self) -> _Watched:
        return self


def _check_known(config: Mapping[str, Any], extra: Mapping[str, Any]) -> None:
    """Refuse keys of `extra` that DeepSpeed never looks for while it reads its config: it would ignore them in silence."""
    from deepspeed.runtime.config import DeepSpeedConfig

    watched = _Watched(config)
    try:
        DeepSpeedConfig(watched)
    except Exception as error:  # assertions, pydantic's errors, its own: whatever it says of these keys
        said = " ".join(str(error).split())
        raise UserError(
            f"DeepSpeed refuses deepspeed.extra ({said}), so the engine cannot be made; correct or remove it"
        ) from error
    if unknown := [k for k in extra if k not in watched.asked]:
        known = sorted(str(k) for k in watched.asked - DERIVED.keys())
        raise UserError(
            f"deepspeed.extra.{unknown[0]} is no key that DeepSpeed knows, so it would do nothing.{nearest(unknown[0], known)} "
            "Correct or remove it"
        )


def _check_schema(config: Mapping[str, Any]) -> None:
    """Let DeepSpeed look at the part that it has a schema for, where `extra` may have put an unknown key."""
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from pydantic import ValidationError

    try:
        DeepSpeedZeroConfig(**config["zero_optimization"])
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise UserError(
            f"DeepSpeed refuses deepspeed.extra.zero_optimization.{key} ({first['msg']}), so the engine cannot be made; "
            "correct or remove it"
        ) from None


def _offload(device: str, nvme_path: str | None) -> dict[str, Any]:
    # pinned memory only speeds up copies from and to a GPU
    target: dict[str, Any] = {"device": device, "pin_memory": device_type() == "cuda"}
    return target | {"nvme_path": nvme_path} if device == "nvme" else target


def _check_machine(section: DeepSpeedConfig) -> None:
    if (section.quantized_weights or section.quantized_gradients) and device_type() == "cpu":
        name = "quantized_weights" if section.quantized_weights else "quantized_gradients"
        raise UserError(
            f"deepspeed.{name} needs DeepSpeed's CUDA quantiser, and this run has no GPU, so nothing could be sent; "
            f"set deepspeed.{name}=false"
        )
    if section.offload_optimizer == "nvme":
        from deepspeed.ops.op_builder import AsyncIOBuilder

        if not AsyncIOBuilder().is_compatible(verbose=False):
            raise UserError(
                "nvme offload reads and writes through libaio, which DeepSpeed cannot build here (library or headers are "
                "missing), so nothing can be offloaded to disk; install libaio-dev (libaio-devel) and a C++ compiler, or use cpu"
            )


def check_extra(extra: Mapping[str, Any], path: str = "") -> None:
    """Refuse keys of `deepspeed.extra` that we derive, and values in the place of sections that we fill."""
    for key, value in extra.items():
        full = f"{path}{key}"
        if full in DERIVED:
            raise UserError(
                f"deepspeed.extra.{full} is derived, so two values would contradict each other; set {DERIVED[full]} instead"
            )
        if isinstance(value, Mapping):
            check_extra(value, f"{full}.")
        elif any(derived.startswith(f"{full}.") for derived in DERIVED):
            raise UserError(
                f"deepspeed.extra.{full}={value!r} would replace a whole section that is derived; give the keys in it that you mean"
            )


def _merged(base: dict[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    out = dict(base)
    for key, value in extra.items():
        out[key] = (
            _merged(out[key], value)
            if isinstance(value, Mapping) and isinstance(out.get(key), dict)
            else value
        )
    return out


def device_type() -> str:
    """Return cuda where there is a device and DS_ACCELERATOR does not say cpu, else cpu."""
    import torch

    return "cuda" if os.environ.get("DS_ACCELERATOR") != "cpu" and torch.cuda.is_available() else "cpu"


def init_distributed(timeout_minutes: int) -> None:
    """Join the process group, before any model is made: zero.Init needs it."""
    on_cpu = device_type() == "cpu"
    if on_cpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed
    import deepspeed.ops
    import torch

    if on_cpu:
        # else the first collective compiles a shared-memory op for minutes, with a compiler that may not be there
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    else:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    for key, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}.items():
        os.environ.setdefault(key, value)
    deepspeed.init_distributed(
        dist_backend="gloo" if on_cpu else "nccl",
        timeout=timedelta(minutes=timeout_minutes),
        auto_mpi_discovery=False,
    )


def make_engine(
    module: Any,
    config: Mapping[str, Any],
    groups: Sequence[Mapping[str, Any]],
    optim: OptimConfig,
) -> Any:
    """Return the DeepSpeed engine; the optimizer is torch's own, so no compiled op is needed, offload to NVMe excepted."""
    import deepspeed

    from sft_dist.train.optim import make_optimizer  # torch, which `check` does without

    optimizer = make_optimizer(groups, optim)
    engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=dict(config))
    if engine.zero_optimization_stage() == 0:
        engine.enable_backward_allreduce = False  # `update` reduces, so that it can look before it steps
    return engine


def update(engine: Any, clip: float | None) -> tuple[bool, float]:
    """Clip and apply the optimizer step unless a gradient is not finite. Collective.

    DeepSpeed skips a non-finite gradient by itself under ZeRO 1 to 3, in every dtype; with ZeRO off nothing would.

    Returns:
        Whether the step was applied, and the global gradient norm before clipping.
    """
    import torch

    if engine.zero_optimization_stage():
        engine.step()
        norm = engine.get_global_grad_norm()
        return bool(engine.was_step_applied()), float("nan") if norm is None else float(norm)
    engine.buffered_allreduce_fallback()
    total = float(torch.nn.utils.clip_grad_norm_(engine.module.parameters(), clip or float("inf")))
    if not math.isfinite(total):
        engine.module.zero_grad(set_to_none=True)
        return False, total
    engine.step()
    return True, total
