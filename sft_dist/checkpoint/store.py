"""Checkpoints on disk: written aside, checksummed, renamed, LATEST moved last. A half-written one is never resumed.

checkpoints/step-00000040/index.json            position, parameter shapes, which slices lie in which file, checksums
checkpoints/step-00000040/rank-00000.safetensors   fp32 slices, keys "<kind>/<parameter>"
checkpoints/LATEST                              name of the newest whole checkpoint
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from sft_dist.checkpoint import slices
from sft_dist.core.errors import UserError
from sft_dist.core.store import checksum, fsync_path, read_json, replace_folder, write_json, write_text

FORMAT = 1
NAME = re.compile(r"step-(\d{8})")


@dataclass(frozen=True, kw_only=True, slots=True)
class Position:
    """Where a run stands: optimizer steps done, and the next global batch as (epoch, step inside it)."""

    step: int
    epoch: int
    epoch_step: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Saved:
    """What a save did: the folder, or why there is none."""

    folder: Path | None
    error: str = ""


def save(engine: Any, root: Path, position: Position, facts: dict[str, Any], keep_last: int) -> Saved:
    """Write a checkpoint. Collective; all ranks return the same outcome.

    A failure on any rank (a full disk, say) removes what was written, leaves older checkpoints alone and is returned.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    aside, final = root / f".saving-{_name(position.step)}", root / _name(position.step)
    error = ""
    if rank == 0:
        try:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
        except OSError as e:
            error = str(e)
    dist.barrier()
    part: dict[str, Any] = {}
    if not error:
        try:
            part = _write_rank(engine, aside, rank)
        except (OSError, SafetensorError) as e:
            error = str(e)
    parts = _gather({"part": part, "error": error})
    failed = next((f"rank {r}: {p['error']}" for r, p in enumerate(parts) if p["error"]), "")
    if rank == 0 and not failed:
        try:
            files = {p["part"]["file"]: p["part"]["body"] for p in parts if p["part"]}
            _commit(engine, root, aside, final, position, {**facts, "world_size": world}, files, keep_last)
        except OSError as e:
            failed = str(e)
    failed = _broadcast(failed)
    if failed and rank == 0:
        shutil.rmtree(aside, ignore_errors=True)
    dist.barrier()
    return Saved(folder=None, error=failed) if failed else Saved(folder=final)


def newest(root: Path, on_bad: Callable[[Path, str], None]) -> Path | None:
    """Return the newest whole checkpoint, checksums verified by all ranks together. Collective.

    Args:
        root: The folder of checkpoints.
        on_bad: Called on rank 0 with a damaged checkpoint and what is wrong with it; the one before it is tried.
    """
    found = (
        sorted((p for p in root.glob("step-*") if NAME.fullmatch(p.name)), reverse=True)
        if root.is_dir()
        else []
    )
    for folder in _broadcast(found):
        wrong = next((w for w in _gather(damage(folder, dist.get_rank(), dist.get_world_size())) if w), "")
        if not wrong:
            return folder
        if dist.get_rank() == 0:
            on_bad(folder, wrong)
            folder.rename(
                folder.with_name(f"bad-{folder.name}")
            )  # neither resumed nor counted among the kept
        dist.barrier()
    return None


def damage(folder: Path, part: int = 0, parts: int = 1) -> str:
    """Return what is wrong with every `parts`-th file of a checkpoint, or an empty string."""
    try:
        index = read_json(folder / "index.json")
        if index["format"] != FORMAT:
            return f"format {index['format']} is not the {FORMAT} of this version"
        for name in sorted(index["files"])[part::parts]:
            if checksum(folder / name) != index["files"][name]["checksum"]:
                return f"{name} does not match its checksum"
    except (OSError, ValueError, KeyError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def load(engine: Any, folder: Path) -> tuple[Position, dict[str, Any]]:
    """Fill the engine from a checkpoint written by any number of ranks. Collective.

    Returns:
        The position to continue at, and the facts that were saved with it.

    Raises:
        UserError: When the checkpoint belongs to another model.
    """
    index = read_json(folder / "index.json")
    shapes = {n: list(s) for n, s in slices.parameter_shapes(engine).items()}
    if shapes != index["parameters"]:
        odd = sorted(set(shapes) ^ set(index["parameters"])) or [
            n for n in shapes if shapes[n] != index["parameters"][n]
        ]
        raise UserError(
            f"{folder} belongs to another model (first difference: {odd[0]}), so it cannot be resumed; "
            "use another name, or checkpoint.resume=never"
        )
    slices.allocate_states(engine)
    where = _locate(index)
    for piece in slices.local_slices(engine):
        for file, start, length in where[piece.name]:
            a, b = max(start, piece.start), min(start + length, piece.start + piece.length)
            if a < b:
                with safe_open(folder / file, framework="pt") as f:
                    for kind, view in piece.views.items():
                        source = f.get_slice(f"{kind}/{piece.name}")[a - start : b - start]
                        view[a - piece.start : b - piece.start].copy_(source)
    slices.set_optimizer_step(engine, index["optimizer_step"])
    slices.publish(engine)
    return Position(**index["position"]), index["facts"]


def read_parameter(folder: Path, index: dict[str, Any], name: str, kind: str = "master") -> torch.Tensor:
    """Assemble one whole fp32 parameter from a checkpoint, on CPU."""
    shape = index["parameters"][name]
    whole = torch.empty(torch.Size(shape).numel(), dtype=torch.float32)
    for file, start, length in _locate(index)[name]:
        with safe_open(folder / file, framework="pt") as f:
            whole[start : start + length].copy_(f.get_tensor(f"{kind}/{name}"))
    return whole.view(shape)


def _write_rank(engine: Any, aside: Path, rank: int) -> dict[str, Any]:
    slices.allocate_states(engine)
    if rank and engine.zero_optimization_stage() == 0:
        return {}
    tensors, ranges = {}, {}
    for piece in slices.local_slices(engine):
        ranges[piece.name] = [piece.start, piece.length]
        for kind, view in piece.views.items():
            tensors[f"{kind}/{piece.name}"] = view.detach().to("cpu", torch.float32, copy=True)
    name = f"rank-{rank:05d}.safetensors"
    save_file(tensors, aside / name)
    fsync_path(aside / name)
    return {"file": name, "body": {"slices": ranges, "checksum": checksum(aside / name)}}


def _commit(
    engine: Any,
    root: Path,
    aside: Path,
    final: Path,
    position: Position,
    facts: dict[str, Any],
    files: dict[str, Any],
    keep_last: int,
) -> None:
    write_json(
        aside / "index.json",
        {
            "format": FORMAT,
            "position": {"step": position.step, "epoch": position.epoch, "epoch_step": position.epoch_step},
            "optimizer_step": slices.optimizer_step(engine),
            "facts": facts,
            "parameters": {n: list(s) for n, s in slices.parameter_shapes(engine).items()},
            "files": files,
        },
    )
    replace_folder(aside, final)
    write_text(root / "LATEST", final.name + "\n")
    found = sorted(p for p in root.glob("step-*") if NAME.fullmatch(p.name))
    past = [p for p in found if p.name <= final.name]
    future = [p for p in found if p.name > final.name]  # of a run that was set back: not what training is now
    for old in [*past[:-keep_last], *future]:
        shutil.rmtree(old, ignore_errors=True)


def _locate(index: dict[str, Any]) -> dict[str, list[tuple[str, int, int]]]:
    where: dict[str, list[tuple[str, int, int]]] = {}
    for file, body in index["files"].items():
        for name, (start, length) in body["slices"].items():
            where.setdefault(name, []).append((file, start, length))
    return where


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _gather(value: Any) -> list[Any]:
    out: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(out, value)
    return out


def _broadcast(value: Any) -> Any:
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]
