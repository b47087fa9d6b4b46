"""Config -> the engine: initial weights, packed model, ZeRO, and the proof that documents do not see one another."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from sft_dist.config import RunConfig
from sft_dist.core.errors import UserError
from sft_dist.core.runfolder import RunFolder
from sft_dist.core.seeds import derive
from sft_dist.core.store import replace_folder
from sft_dist.model import leak
from sft_dist.model.load import create_initial, load_packed
from sft_dist.model.packed import to_inputs
from sft_dist.render.tokenizer import TextTokenizer
from sft_dist.train import zero
from sft_dist.train.optim import parameter_groups


@dataclass(frozen=True, kw_only=True, slots=True)
class Assembled:
    """What a rank trains with.

    Attributes:
        engine: The DeepSpeed engine around model.packed.PackedLM.
        model_path: Folder or hub id that training started from.
        parameters: Of the whole model.
        backend: The attention backend.
        reason: Why that one.
    """

    engine: Any
    model_path: str
    parameters: int
    backend: str
    reason: str


def assemble(config: RunConfig, folder: RunFolder, tokenizer: TextTokenizer) -> Assembled:
    """Build the engine. Collective.

    Raises:
        UserError: For a model that is missing, unfit, or leaks between packed documents.
    """
    device = zero.device_type()
    model_path = _initial_model(config, folder, tokenizer)
    settings = zero.zero_config(
        dtype=config.model.dtype,
        clip=config.optim.clip,
        **config.deepspeed.model_dump(exclude={"timeout_minutes"}),
    )
    loaded = load_packed(
        model_path,
        dtype=config.model.dtype,
        backend=config.model.attention,
        device=device,
        zero_config=settings if config.deepspeed.stage == 3 else None,
        gradient_checkpointing=config.model.gradient_checkpointing,
        revision=config.model.revision,
        trust_remote_code=config.model.trust_remote_code,
        min_vocab_size=tokenizer.vocab_size,
    )
    groups = parameter_groups(loaded.module, config.optim.weight_decay)
    engine = zero.make_engine(loaded.module, settings, groups, betas=config.optim.betas, eps=config.optim.eps)
    _check_leak(engine, loaded.backend, device)
    return Assembled(
        engine=engine,
        model_path=model_path,
        parameters=sum(math.prod(getattr(p, "ds_shape", p.shape)) for p in engine.module.parameters()),
        backend=loaded.backend,
        reason=loaded.reason,
    )


def _initial_model(config: RunConfig, folder: RunFolder, tokenizer: TextTokenizer) -> str:
    """Return the folder or hub id that training starts from; a shape is first written as a model folder."""
    shape = config.model.shape
    if shape is None:
        assert config.model.path is not None
        return config.model.path
    initial = folder.path / "init"
    if dist.get_rank() == 0 and not (initial / "config.json").is_file():
        aside = initial.with_name(".init.partial")
        create_initial(
            aside,
            shape=shape.model_dump(),
            vocab_size=tokenizer.vocab_size,
            bos_id=tokenizer.bos_id,
            eos_id=tokenizer.eos_id,
            pad_id=tokenizer.pad_id,
            seed=derive(config.seed, "init"),
        )
        replace_folder(aside, initial)
    dist.barrier()
    return str(initial)


def _check_leak(engine: Any, backend: str, device: str) -> None:
    """Refuse to train when a packed document can see another."""
    where = (
        torch.device(device, int(os.environ.get("LOCAL_RANK", "0")))
        if device == "cuda"
        else torch.device(device)
    )
    engine.eval()
    vocab = engine.module.hf.config.get_text_config().vocab_size
    moved = leak.measure(lambda batch: engine(*to_inputs(batch, where))[1], vocab)
    engine.train()
    if not moved <= leak.TOLERANCE[engine.module.hf.dtype]:  # NaN must not pass
        raise UserError(
            f"packed documents see one another with model.attention={backend} (replacing one document moved the loss of "
            f"another by {moved:.2g}), so training would be wrong; use model.attention=sdpa_dense, or another model"
        )
