"""Check an image or an environment: versions and imports, one attention kernel against its slow twin, one ZeRO-3 step.

Ends with exit code 0 and one line a check, or with 1 and the checks that failed.
"""  # noqa: INP001  a script, not a package

from __future__ import annotations

import importlib
import importlib.metadata
import os
import socket
import sys
from collections.abc import Callable

NEEDED = (
    "torch",
    "deepspeed",
    "transformers",
    "datasets",
    "pyarrow",
    "numba",
    "peft",
    "pydantic",
    "wandb",
    "sft_dist",
)
OPTIONAL = ("flash_attn",)


def imports() -> str:
    """Import every package; name the versions."""
    found = []
    for name in NEEDED:
        importlib.import_module(name)
        found.append(f"{name} {importlib.metadata.version(name.replace('_', '-'))}")
    for name in OPTIONAL:
        if importlib.util.find_spec(name):
            importlib.import_module(name)
            found.append(f"{name} {importlib.metadata.version(name.replace('_', '-'))}")
    return ", ".join(found)


def devices() -> str:
    """Name what torch would compute on."""
    import torch

    if not torch.cuda.is_available():
        return f"no GPU; {torch.get_num_threads()} CPU threads"
    return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}, CUDA {torch.version.cuda}"


def kernel() -> str:
    """Run one causal attention; compare it with the same by plain matrix products."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    q, k, v = torch.randn(3, 1, 4, 256, 64, device=device, dtype=dtype)
    fast = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    hidden = torch.ones(256, 256, device=device, dtype=torch.bool).triu(1)
    scores = (q.float() @ k.float().mT / 8).masked_fill(hidden, float("-inf"))
    difference = float((fast.float() - scores.softmax(-1) @ v.float()).abs().max())
    limit = (
        3e-2 if dtype is torch.bfloat16 else 1e-5
    )  # one rounding of bfloat16 near 4; fp32 sums in another order
    if difference > limit:
        raise RuntimeError(f"attention differs by {difference:.1e}, more than {limit:.0e}")
    return f"attention on {device}, largest difference {difference:.1e}"


def step() -> str:
    """Train two steps of a small model with DeepSpeed ZeRO-3 in this one process; the loss must fall."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for name, value in {
        "RANK": 0,
        "WORLD_SIZE": 1,
        "LOCAL_RANK": 0,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }.items():
        os.environ[name] = str(value)
    import deepspeed.ops
    import torch

    gpu = torch.cuda.is_available()
    if not gpu:  # else a C++ compiler would be asked for the collective of one machine
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    torch.manual_seed(0)
    config = {
        "train_micro_batch_size_per_gpu": 8,
        "zero_optimization": {"stage": 3},
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-2, "torch_adam": True}},
        "bf16": {"enabled": gpu},
    }
    engine, *_ = deepspeed.initialize(model=torch.nn.Linear(64, 64), config=config)
    inputs = torch.randn(8, 64, device=engine.device, dtype=torch.bfloat16 if gpu else torch.float32)
    losses = []
    for _ in range(2):
        loss = engine(inputs).float().square().mean()
        engine.backward(loss)
        engine.step()
        losses.append(float(loss))
    torch.distributed.destroy_process_group()
    if not losses[1] < losses[0]:
        raise RuntimeError(f"the loss did not fall: {losses}")
    return f"ZeRO-3, loss {losses[0]:.4f} -> {losses[1]:.4f}"


CHECKS: dict[str, Callable[[], str]] = {
    "imports": imports,
    "devices": devices,
    "kernel": kernel,
    "step": step,
}


def main() -> int:
    """Run all checks; return the exit code."""
    failed = 0
    for name, check in CHECKS.items():
        try:
            sys.stdout.write(f"ok      {name}: {check()}\n")
        except Exception as error:  # noqa: BLE001  every kind of breakage is what this looks for
            failed += 1
            sys.stdout.write(f"FAILED  {name}: {type(error).__name__}: {error}\n")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
