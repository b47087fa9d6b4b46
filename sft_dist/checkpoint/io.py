"""Checkpoints on disk: written aside, checksummed, renamed, LATEST moved last. A half-written one is never resumed.

checkpoints/step-00000040/index.json      position, shapes, which slices lie in which file, checksums (checkpoint/index.py)
checkpoints/step-00000040/rank-00000.weights.safetensors     fp32 slices of weights, keys "master/<parameter>", "ema/..."
checkpoints/step-00000040/rank-00000.optimizer.safetensors   fp32 slices of its state, keys "<kind>/<parameter>"
checkpoints/LATEST, BEST                  name of the newest whole checkpoint; of the one with the lowest validation loss

Nothing in this file is collective but `newest` and `load`; `background.Saver` calls the writing parts in a thread.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file

from sft_dist.checkpoint import slices
from sft_dist.checkpoint.index import (
    FORMAT,
    OLD,
    WEIGHTS,
    DamagedError,
    Index,
    OldFormatError,
    check_file,
    file_of,
    read_index,
    write_index,
)
from sft_dist.config.train import CheckpointConfig
from sft_dist.core.collectives import from_rank_0, gather
from sft_dist.core.errors import UserError
from sft_dist.core.files import checksum, fsync_path, replace_folder, write_text
from sft_dist.core.records import Position

NAME = re.compile(r"step-(\d{8})")
WEIGHTS_ONLY = "it holds weights only (checkpoint.optimizer_keep_last dropped the optimizer's state): it can be exported, not resumed"

Parts = dict[str, dict[str, torch.Tensor]]  # tensors by kind of file ("weights", "optimizer") and key


def folder_name(step: int) -> str:
    """Return the name of the checkpoint of a step."""
    return f"step-{step:08d}"


def copy_parts(engine: Any) -> tuple[Parts, dict[str, list[int]]]:
    """Copy this rank's slices to the CPU (pinned where there is a device): what a thread may write while training goes on.

    Returns:
        The tensors, and [start, length] of the slice of each parameter.
    """
    slices.allocate_states(engine)
    if dist.get_rank() and engine.zero_optimization_stage() == 0:
        return {}, {}  # rank 0 has everything
    parts: Parts = {"weights": {}, "optimizer": {}}
    ranges = {}
    for piece in slices.local_slices(engine):
        ranges[piece.name] = [piece.start, piece.length]
        for kind, view in piece.views.items():
            copy = torch.empty(view.shape, dtype=torch.float32, pin_memory=view.is_cuda)
            copy.copy_(view.detach(), non_blocking=True)
            parts[file_of(kind)][f"{kind}/{piece.name}"] = copy
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return parts, ranges


def write_part(aside: Path, rank: int, parts: Parts, ranges: dict[str, list[int]]) -> dict[str, Any]:
    """Write the files of one rank into the folder `aside`, flushed; return their entries in the index."""
    aside.mkdir(exist_ok=True)  # not its parents: a run folder that is gone is not made again
    files = {}
    for kind, tensors in parts.items():
        name = f"rank-{rank:05d}.{kind}.safetensors"
        save_file(tensors, aside / name)
        fsync_path(aside / name)
        files[name] = {"kind": kind, "slices": ranges, "checksum": checksum(aside / name)}
    return files


def describe(engine: Any, position: Position, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the index of a checkpoint, without its files."""
    return {
        "format": FORMAT,
        "position": asdict(position),
        "optimizer_step": slices.optimizer_step(engine),
        "facts": {**facts, "world_size": dist.get_world_size()},
        "parameters": slices.parameter_shapes(engine),
        "states": slices.states_of(engine),
        "optimizer": True,
    }


def commit(aside: Path, final: Path, index: Mapping[str, Any], files: Mapping[str, Any]) -> None:
    """Make the files of all ranks a whole checkpoint, and the newest one."""
    for left in aside.iterdir():  # of an attempt with more ranks that died
        if left.name not in files:
            left.unlink()
    write_index(aside, {**index, "files": dict(files)})
    replace_folder(aside, final)
    write_text(final.parent / "LATEST", final.name + "\n")


def prune(root: Path, newest_name: str, keep: CheckpointConfig, losses: Mapping[int, float]) -> None:
    """Remove what `keep` does not want, after `newest_name` was committed.

    Args:
        root: The folder of checkpoints.
        newest_name: The one that was just written; later steps are of a run that was set back, and go.
        keep: The section `checkpoint`: keep_last, keep_best, optimizer_keep_last.
        losses: Held-out loss by step, of the steps where it was measured.
    """
    found = _whole(root)
    past = [p for p in found if p.name <= newest_name]
    measured = [p for p in past if _step(p) in losses]
    best = sorted(measured, key=lambda p: (losses[_step(p)], -_step(p)))[: keep.keep_best]
    if best:
        write_text(root / "BEST", best[0].name + "\n")
    stay = {*past[-keep.keep_last :], *best}
    for old in found:
        if old not in stay:
            gone = old.with_name(f".removing-{old.name}")
            shutil.rmtree(gone, ignore_errors=True)  # of a run that died in it, and came by here again
            old.rename(gone)  # a removal that is cut short must not leave half a checkpoint under its name
    if keep.optimizer_keep_last is not None:
        for old in past[: -keep.optimizer_keep_last]:
            if old in stay:
                drop_optimizer(old)
    for left in (*root.glob(".removing-*"), *root.glob(".saving-*")):  # also of runs that died
        shutil.rmtree(left, ignore_errors=True)
    for left in root.glob(".*.tmp"):
        left.unlink(missing_ok=True)


def drop_optimizer(folder: Path) -> None:
    """Remove the optimizer's state from a checkpoint: first from its index, then from the disk; a damaged one stays as it is."""
    try:
        index = read_index(folder)
    except (DamagedError, OldFormatError):
        return
    if index.optimizer:
        body = index.model_dump()
        body["files"] = {n: f for n, f in body["files"].items() if f["kind"] == "weights"}
        write_index(folder, {**body, "optimizer": False})
    for file in folder.glob("*.optimizer.safetensors"):
        file.unlink(missing_ok=True)


def newest(root: Path, on_bad: Callable[[Path, str], None]) -> Path | None:
    """Return the newest whole checkpoint that can be resumed, checksums verified by all ranks together. Collective.

    Args:
        root: The folder of checkpoints.
        on_bad: Called on rank 0 with one that cannot be resumed and why; the one before it is tried.

    Raises:
        UserError: When the newest one is of an earlier format: starting anew would repeat its work without a word.
    """
    for folder in from_rank_0(_whole(root)[::-1]):
        wrong = next((w for w in gather(damage(folder, dist.get_rank(), dist.get_world_size())) if w), "")
        if not wrong:
            return folder
        if wrong.startswith(OLD.partition("{")[0]):
            raise UserError(f"{folder} cannot be continued: {wrong}")
        if dist.get_rank() == 0:
            on_bad(folder, wrong)
            if wrong != WEIGHTS_ONLY:  # neither resumed nor counted among the kept
                aside = folder.with_name(f"bad-{folder.name}")
                # there may be an earlier one of this step, fetched or written again since
                shutil.rmtree(aside, ignore_errors=True)
                folder.rename(aside)
        dist.barrier()
    return None


def damage(folder: Path, part: int = 0, parts: int = 1, *, weights_only: bool = False) -> str:
    """Return why a checkpoint cannot be resumed (every `parts`-th file is looked at), or an empty string.

    With `weights_only` why it cannot be exported: the optimizer's state is neither looked at nor missed.
    """
    try:
        index = read_index(folder)
        files = [n for n, f in sorted(index.files.items()) if f.kind == "weights" or not weights_only]
        for name in files[part::parts]:
            check_file(folder, name, index)
    except (DamagedError, OldFormatError) as error:
        return str(error)
    return "" if index.optimizer or weights_only else WEIGHTS_ONLY


def load(engine: Any, folder: Path) -> tuple[Position, dict[str, Any]]:
    """Fill the engine from a checkpoint written by any number of ranks. Collective.

    Returns:
        The position to continue at, and the facts that were saved with it.

    Raises:
        UserError: When the checkpoint belongs to another model, or holds weights only.
    """
    index = _believed(folder)
    if not index.optimizer:
        raise UserError(f"{folder} cannot be continued: {WEIGHTS_ONLY}; continue a newer one")
    shapes, states = slices.parameter_shapes(engine), slices.states_of(engine)
    _refuse_other_model(folder, index, shapes, states)
    slices.allocate_states(engine)
    where = {kind: index.where(kind) for kind in ("weights", "optimizer")}
    for piece in slices.local_slices(engine):
        for kind, view in piece.views.items():
            for file, start, length in where[file_of(kind)][piece.name]:
                a, b = max(start, piece.start), min(start + length, piece.start + piece.length)
                if a < b:
                    with safe_open(folder / file, framework="pt") as f:
                        source = f.get_slice(f"{kind}/{piece.name}")[a - start : b - start]
                    view[a - piece.start : b - piece.start].copy_(source)
    slices.set_optimizer_step(engine, index.optimizer_step)
    slices.publish(engine)
    return index.at(), dict(index.facts)


def _refuse_other_model(
    folder: Path, index: Index, shapes: Mapping[str, tuple[int, ...]], states: Mapping[str, tuple[str, ...]]
) -> None:
    names = index.parameters.keys() | shapes.keys()
    if odd := sorted(n for n in names if index.parameters.get(n) != shapes.get(n)):
        raise UserError(
            f"{folder} belongs to another model (first difference: {odd[0]}), so it cannot be resumed; "
            "use another name, or checkpoint.resume=never"
        )
    if odd := sorted(n for n in names if set(index.states[n]) != set(states[n])):
        raise UserError(
            f"{folder} holds {', '.join(index.states[odd[0]]) or 'no state'} of {odd[0]}, where this optimizer keeps "
            f"{', '.join(states[odd[0]]) or 'none'}, so it cannot be resumed; restore optim.name and optim.ema_decay, or use "
            "another name"
        )


def _believed(folder: Path) -> Index:
    """Return the index of a checkpoint that must be whole.

    Raises:
        UserError: When it is not.
    """
    try:
        return read_index(folder)
    except (DamagedError, OldFormatError) as error:
        raise UserError(f"{folder} cannot be used ({error}); name another checkpoint") from None


def read_parameter(folder: Path, index: Index, name: str, kind: str = "master") -> torch.Tensor:
    """Assemble one whole fp32 parameter, or its state `kind`, from a checkpoint, on CPU.

    Raises:
        UserError: When a state is asked for that the checkpoint does not have.
    """
    if kind not in WEIGHTS and not index.optimizer:
        raise UserError(f"{folder} has no {kind} of the weights: {WEIGHTS_ONLY}; take a newer one")
    if kind not in ("master", *index.states[name]):
        raise UserError(
            f"{folder} has no {kind} of {name}, so it cannot be read; it has master, {', '.join(index.states[name])}"
        )
    pieces = [torch.zeros(0)]
    for file, _, _ in index.where(file_of(kind))[
        name
    ]:  # in order, and they cover it: `read_index` has looked
        with safe_open(folder / file, framework="pt") as f:
            pieces.append(f.get_tensor(f"{kind}/{name}"))
    return torch.cat(pieces).view(index.parameters[name])


def _whole(root: Path) -> list[Path]:
    """Return the checkpoints that lie under their own name, oldest first."""
    return sorted(p for p in root.glob("step-*") if NAME.fullmatch(p.name)) if root.is_dir() else []


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))
