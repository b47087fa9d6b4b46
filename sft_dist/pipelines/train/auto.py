"""Config with `auto` -> the config that this run trains with: chosen by rank 0, agreed on by all, frozen in the run folder.

fit.json holds the choice, its reason and the circumstances. As long as ranks, device and config stay the same, a run that is
continued takes the same; one that is continued elsewhere chooses anew.
"""

from __future__ import annotations

import importlib.util
import os
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import torch
import torch.distributed as dist

from sft_dist.config import RunConfig
from sft_dist.config.auto import Choice, asked, decided, is_decided, supposed
from sft_dist.core.errors import UserError
from sft_dist.core.files import read_object, write_checked
from sft_dist.core.process import logger
from sft_dist.core.runfolder import RunFolder
from sft_dist.pack.devices import find_device
from sft_dist.pipelines.cluster.estimate_inputs import host_memory, model_config
from sft_dist.pipelines.cluster.fit import Place, choice_of, choose, words
from sft_dist.train import zero

log = logger(__name__)


def settle(config: RunConfig, folder: RunFolder) -> RunConfig:
    """Return the config that this run trains with. Rank 0 chooses, all agree. Collective."""
    if is_decided(config):
        return config
    box: list[Any] = [None]
    if dist.get_rank() == 0:
        try:
            box = [_frozen(config, folder, _here())]
        except UserError as error:
            box = [error]
    dist.broadcast_object_list(box, src=0)
    if isinstance(box[0], UserError):
        raise box[0]
    return decided(config, Choice(**box[0]))


def settled_before(config: RunConfig, folder: RunFolder) -> RunConfig:
    """Return the config that the run of this folder trained with last; with suppositions where it had not chosen yet."""
    before = _before(folder)
    return decided(config, Choice(**before["choice"])) if before else supposed(config)


def _before(folder: RunFolder) -> dict[str, Any]:
    """Return what was written down before; nothing where there is none, or it is damaged: it is chosen anew then."""
    with suppress(UserError, TypeError):
        fields = {"choice": dict, "reason": str, "circumstances": dict}
        found = read_object(folder.path / "fit.json", "", fields)
        Choice(**found["choice"])
        return found
    return {}


def _frozen(config: RunConfig, folder: RunFolder, place: Place) -> dict[str, Any]:
    """Return what was chosen before under the same circumstances, else choose, log and write it down."""
    file = folder.path / "fit.json"
    circumstances = {
        "asked": asked(config),
        "ranks": place.ranks,
        "device": place.name,
        "memory_bytes": place.memory_bytes
        if place.device
        else None,  # a CPU's share of its machine changes a little
        "tokens_per_step": config.train.tokens_per_step,
        "seq_len": config.pack.seq_len,
    }
    if (before := _before(folder)) and before["circumstances"] == circumstances:
        log.info("as before: %s", before["reason"])
        return dict(before["choice"])
    try:
        text = model_config(config)
    except UserError as error:
        choice = choice_of(supposed(config))
        reason = f"{words(choice)}: the model's size is unknown here ({error})"
    else:
        choice, reason = choose(config, text, place)
    log.info("%s", reason)
    write_checked(file, {"circumstances": circumstances, "choice": asdict(choice), "reason": reason})
    return asdict(choice)


def _here() -> Place:
    per_node = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if zero.device_type() == "cpu":
        return Place(
            ranks=dist.get_world_size(),
            per_node=per_node,
            device=None,
            name="cpu",
            memory_bytes=host_memory() // per_node,
            can_compile=False,  # it would find a compiler or not, and runs on CPU are short
        )
    name = torch.cuda.get_device_name()
    return Place(
        ranks=dist.get_world_size(),
        per_node=per_node,
        device=find_device(name),
        name=name,
        memory_bytes=torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory,
        can_compile=importlib.util.find_spec("triton") is not None,
    )
