"""Config -> what its run needs, in a table or as JSON: memory by part, time, disk; and what to change where it does not fit."""

from __future__ import annotations

import re
import shutil
import statistics
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from sft_dist.cluster.estimate.estimate import (
    Measured,
    Work,
    as_dict,
    needed,
    suggestions,
    time_of,
    with_backward,
)
from sft_dist.cluster.estimate.memory import estimate_memory
from sft_dist.cluster.local_ranks import ranks_of
from sft_dist.cluster.slurm.site import load_site
from sft_dist.config import RunConfig
from sft_dist.config.auto import asked, decided, is_decided
from sft_dist.config.cluster import SiteProfile
from sft_dist.config.load import load_run_config
from sft_dist.core.errors import UserError
from sft_dist.core.files import read_jsonl
from sft_dist.core.runfolder import RunFolder
from sft_dist.pack import devices
from sft_dist.pipelines.cluster.estimate_inputs import (
    GIB,
    checkpoint_bytes,
    ema_bytes,
    host_memory,
    kept_bytes,
    model_config,
    setup_of,
    shape_of,
    unknown_parts,
)
from sft_dist.pipelines.cluster.fit import Place, choose
from sft_dist.pipelines.cluster.prove import scale
from sft_dist.pipelines.train.planning import Summary, cost_of

WARM_UP_STEPS = 3  # the first steps of a run allocate and compile


def estimate(
    config: RunConfig,
    summary: Summary,
    *,
    ranks: int | None = None,
    device: str | None = None,
    memory_gib: float | None = None,
    like: Path | None = None,
) -> dict[str, Any]:
    """Return what a run needs, in bytes, seconds and hours.

    Args:
        config: The run's config.
        summary: What training consists of (pipelines.check).
        ranks: Of the whole run; None: from launch, or from the site profile of `cluster`.
        device: Name of a GPU in pack.devices, or cpu; None: from the site profile, else cpu.
        memory_gib: Memory of a device; None: from pack.devices.
        like: Run folder whose measured speed is taken, or a file of `doctor --prove` that scales what is calculated.

    Raises:
        UserError: For a model whose shape is not on this machine, an unknown device, or a run without measurements.
    """
    site = load_site(config.cluster) if config.cluster else None
    if (ranks is not None and ranks < 1) or (memory_gib is not None and memory_gib <= 0):
        raise UserError(
            "--ranks and --memory must be above zero, or there is nothing to compute; leave them out for the config's own"
        )
    if ranks is None:
        nproc = config.launch.nproc
        per_node = site.gpus_per_node if nproc == "auto" and site and site.gpus_per_node else ranks_of(nproc)
        ranks = per_node * config.launch.nodes
    name = device or (site and (site.device or site.gpu_type)) or "cpu"
    if site and site.gpus_per_node and not (device or site.device or site.gpu_type):
        raise UserError(
            f"the site profile {config.cluster} asks for {site.gpus_per_node} GPUs a node and does not say which, so neither their "
            "memory nor their speed is known; add device: H100 (or what they are) to it, or --device"
        )
    known = None if name == "cpu" else devices.find_device(name)
    if name != "cpu" and known is None:
        raise UserError(
            f"the device {name!r} is unknown, so neither its memory nor its speed is; use one of {', '.join(devices.DEVICES)}, or cpu"
        )
    text = model_config(config)
    share = summary.target_tokens / max(1, summary.tokens)
    per_node = -(-ranks // config.launch.nodes)
    limit = (
        round(memory_gib * GIB)
        if memory_gib
        else known.memory_bytes
        if known
        else (_host_limit(site, here=True) or host_memory()) * config.launch.nodes // ranks
    )
    place = Place(
        ranks=ranks,
        per_node=per_node,
        device=known,
        name=name,
        memory_bytes=limit,
        can_compile=known is not None,
    )
    config, chosen = _decided(config, text, place, share, summary.squares_per_token)
    shape = shape_of(config, text)
    setup = setup_of(config, share, ranks, "cuda" if known else "cpu")
    usage = estimate_memory(shape, setup)
    rows = asked(config)["micro_rows"]
    rows_per_step = config.train.tokens_per_step / config.pack.seq_len
    tokens = rows_per_step * config.pack.seq_len * summary.fill
    work = Work(
        steps=summary.steps,
        tokens=tokens,
        targets=tokens * setup.target_share,
        squares=tokens * summary.squares_per_token,
    )
    cost = with_backward(cost_of(text), shape)
    time = time_of(
        work,
        cost,
        setup,
        shape,
        fill=summary.fill,
        rows_per_step=rows_per_step,
        rows=rows,
        seq_len=config.pack.seq_len,
        ranks_per_node=per_node,
        device=known,
        measured=_measured(like) if like and like.is_dir() else None,
        slower=scale(like) if like and like.is_file() else 1.0,
    )
    need = needed(usage.peak, setup.device)
    proposals = suggestions(shape, setup, rows=rows, seq_len=config.pack.seq_len, limit_bytes=limit)
    host = per_node * (usage.host + (checkpoint_bytes(config, shape) + 2 * ema_bytes(config, shape)) // ranks)
    pinned = host if known else 0  # a GPU copies from and to pinned memory only while it computes
    host += per_node * usage.peak if not known else 0
    return {
        "parameters": shape.parameters,
        "trained_parameters": shape.trained,
        "ranks": ranks,
        "device": name,
        "exact": summary.exact,
        "memory": as_dict(usage),
        "needed_bytes": need,
        "device_bytes": limit,
        "fits": need <= limit,
        "suggestions": [asdict(s) for s in proposals],
        "steps": work.steps,
        "tokens": round(work.tokens * work.steps),
        "time": asdict(time) if time else None,
        "checkpoint_bytes": checkpoint_bytes(config, shape),
        "disk_bytes": kept_bytes(config, shape),
        "disk_free_bytes": _free(Path(config.run_root)),
        "host_bytes": host,
        "pinned_bytes": pinned,
        "chosen": chosen,
        "host_limit_bytes": _host_limit(site, here=known is None),
        "not_found": unknown_parts(config, text),
    }


def _decided(
    config: RunConfig, text: Mapping[str, Any], place: Place, share: float, squares: float
) -> tuple[RunConfig, str]:
    """Return the config with what a run there would choose, and why; nothing where nothing is left to it."""
    if is_decided(config):
        return config, ""
    choice, why = choose(config, text, place, target_share=share, squares=squares)
    return decided(config, choice), why


def show(result: Mapping[str, Any], console: Console) -> None:
    """Print the estimate as a table, and what to do where it does not fit."""
    usage, ranks = result["memory"], result["ranks"]
    console.print(
        f"{result['parameters']:,} parameters on {ranks} x {result['device']}; memory of one rank when a step holds most of it "
        f"({usage['worst_phase']}):",
        soft_wrap=True,
    )
    table = Table()
    table.add_column("part")
    table.add_column("GiB", justify="right")
    for name, size in usage["parts"].items():
        if size:
            table.add_row(name, f"{size / GIB:.2f}")
    table.add_row("all tensors", f"{usage['peak'] / GIB:.2f}", style="bold")
    if result["needed_bytes"] != usage["peak"]:
        table.add_row("with driver and fragmentation", f"{result['needed_bytes'] / GIB:.2f}")
    there = "a rank's share of a node" if result["device"] == "cpu" else f"one {result['device']} has"
    verdict = "fits" if result["fits"] else "DOES NOT FIT"
    table.add_row(f"{there} ({verdict})", f"{result['device_bytes'] / GIB:.2f}")
    console.print(table)
    if result["chosen"]:
        console.print(f"chosen: {result['chosen']}", soft_wrap=True)
    for proposal in result["suggestions"]:
        console.print(
            f"would fit: {' '.join(proposal['overrides'])} ({proposal['peak'] / GIB:.1f} GiB)", soft_wrap=True
        )
    if not result["fits"] and not result["suggestions"]:
        console.print("nothing that this estimate knows makes it fit; use more nodes or a smaller model")
    about = "" if result["exact"] else "about "
    console.print(f"{about}{result['steps']:,} steps, {result['tokens']:,} tokens", soft_wrap=True)
    if time := result["time"]:
        mfu = "" if time["mfu"] is None else f", MFU {time['mfu']:.0%}"
        console.print(
            f"{time['hours']:.2f} hours, {time['device_hours']:.1f} device-hours, {time['tokens_per_s']:,.0f} tokens/s{mfu} ({time['basis']})",
            soft_wrap=True,
        )
    else:
        console.print("time: unknown for this device; --like RUN takes the speed of an earlier run")
    free, disk = result["disk_free_bytes"], result["disk_bytes"]
    short = (
        "" if disk <= free else "; NOT ENOUGH: lower checkpoint.keep_last, or set run_root to a larger disk"
    )
    console.print(
        f"a checkpoint {result['checkpoint_bytes'] / GIB:.2f} GiB; all that is kept {disk / GIB:.2f} GiB of {free / GIB:.1f} free{short}",
        soft_wrap=True,
    )
    host, has = result["host_bytes"], result["host_limit_bytes"]
    pinned = f", {result['pinned_bytes'] / GIB:.2f} of it pinned" if result["pinned_bytes"] else ""
    of = f" of {has / GIB:.1f}" if has else ""
    more = (
        "; NOT ENOUGH: ask for more (mem of the site profile), or use more nodes"
        if has and host > has
        else ""
    )
    console.print(
        f"host memory of a node, with the copy that a checkpoint is written from: {host / GIB:.2f} GiB{of}"
        f"{pinned}{more}",
        soft_wrap=True,
    )
    for entry in result["not_found"]:
        console.print(
            f"{entry!r} of model.trainable or freeze is no name known here, so it is counted as trained",
            soft_wrap=True,
        )


def _measured(run_dir: Path) -> Measured:
    """Read the speed of an earlier run: the median of its steps after the first ones."""
    config = load_run_config(run_dir)
    lines = [m for m in read_jsonl(run_dir / "metrics.jsonl", {"kind": str}) if m["kind"] == "train"][
        WARM_UP_STEPS:
    ]
    facts = run_dir / "plan.json"
    if not lines or not facts.is_file():
        raise UserError(
            f"{run_dir} has no more than {WARM_UP_STEPS} measured steps, so its speed is unknown; name a run that went on longer"
        )
    plan = RunFolder(run_dir).plan("examples", "tokens", "target_tokens")
    share, text = plan["target_tokens"] / max(1, plan["tokens"]), model_config(config)
    # documents of that run's mean length stand in for its distribution
    mean = plan["tokens"] / max(1, plan["examples"])
    return Measured(
        name=run_dir.name,
        tokens_per_s=statistics.median(m["tokens_per_s"] for m in lines),
        ranks=int(plan["world_size"]),
        flops_per_token=with_backward(cost_of(text), shape_of(config, text)).useful_flops(1.0, mean, share),
    )


def _host_limit(site: SiteProfile | None, *, here: bool) -> int | None:
    """Memory of a node: what the profile asks for; without one that of this machine, where the run is to be here."""
    if site is None:
        return host_memory() if here else None
    found = re.fullmatch(r"(\d+)([KMGT]?)B?", (site.mem or "").upper())
    if not found or not int(found[1]):  # 0 asks for all of it, however much that is
        return None
    return int(found[1]) << {"K": 10, "": 20, "M": 20, "G": 30, "T": 40}[found[2]]


def _free(folder: Path) -> int:
    """Free bytes where a folder is or will be."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
