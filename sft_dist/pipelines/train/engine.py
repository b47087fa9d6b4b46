"""Config -> the engine: initial weights, packed model, ZeRO, and the proof that documents do not see one another."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError

from sft_dist.batch import sequence_shard
from sft_dist.checkpoint.export_plan import Base
from sft_dist.cluster.estimate.memory import Shape
from sft_dist.config import RunConfig
from sft_dist.config.auto import is_decided
from sft_dist.core.collectives import from_rank_0, gather
from sft_dist.core.errors import UserError
from sft_dist.core.files import read_object, replace_folder, write_json
from sft_dist.core.process import logger
from sft_dist.core.records import Batch
from sft_dist.core.rng import derive
from sft_dist.core.runfolder import RunFolder
from sft_dist.model import activation_memory, isolation_check, ulysses, weight_files
from sft_dist.model.adapter_folder import check_base
from sft_dist.model.initial import create_initial
from sft_dist.model.load import Loaded, load_packed, read_config
from sft_dist.model.loss import LossHead
from sft_dist.model.neftune import add_noise
from sft_dist.model.packed import PackedLM, to_inputs
from sft_dist.model.router_balance import RouterBalance, own_coefficient
from sft_dist.model.trainable import numel
from sft_dist.model.ulysses import SequenceGroup
from sft_dist.pipelines.train.planning import check_ranks
from sft_dist.render.tokenizer import TextTokenizer
from sft_dist.train import zero
from sft_dist.train.ema import Ema
from sft_dist.train.optim import parameter_groups

log = logger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingSetup:
    """What a rank trains with.

    Attributes:
        engine: The DeepSpeed engine around model.packed.PackedLM.
        model_path: Folder or hub id that training started from.
        parameters: Of the whole model.
        backend: The attention backend.
        reason: Why that one.
        sequence: The ranks that share rows with this one.
        ema: The average of the weights, where one is kept.
        base: Fingerprint of the model that training started from; None with `model.shape`, whose weights are all here.
    """

    engine: Any
    model_path: str
    parameters: int
    backend: str
    reason: str
    recurrent: str
    sequence: SequenceGroup
    ema: Ema | None
    base: str | None


def build_engine(config: RunConfig, folder: RunFolder, tokenizer: TextTokenizer) -> TrainingSetup:
    """Build the engine. Collective.

    Raises:
        UserError: For a model that is missing, unfit, or leaks between packed documents.
    """
    assert is_decided(config), "pipelines.train.auto comes first"
    assert config.model.gradient_checkpointing != "auto"
    device = zero.device_type()
    model_path = _initial_model(config, folder, tokenizer)
    sequence = _share_rows(config, model_path)
    settings = zero.zero_config(
        config.deepspeed,
        dtype=config.model.dtype,
        clip=config.optim.clip,
        ahead=_ahead(config, model_path),
        ranks=dist.get_world_size(),
    )
    loaded = load_packed(
        model_path,
        config.model,
        device=device,
        zero_config=settings if config.deepspeed.stage == 3 else None,
        lora=config.lora,
        seed=derive(config.seed, "lora"),
        sequence=sequence,
        seq_len=config.pack.seq_len,
        min_vocab_size=tokenizer.vocab_size,
    )
    _set_loss(loaded.module, config)
    _save_memory(loaded.module, config, device)
    base = None if config.model.shape else _base_of(model_path, config.model.revision)
    if config.lora is not None:
        check_base(config.lora, base)
    ratio = config.lora.lr_ratio if config.lora else 1.0
    groups = parameter_groups(loaded.module, config.optim, lr_ratio=ratio)
    engine = zero.make_engine(loaded.module, settings, groups, config.optim)
    recurrent = _check_documents(engine, loaded, config, device, sequence)
    _note(folder, loaded, model_path, base, recurrent)
    optim = config.optim
    ema = (
        Ema(engine, decay=optim.ema_decay, every=optim.ema_every_steps)
        if optim.ema_decay is not None
        else None
    )
    return TrainingSetup(
        engine=engine,
        model_path=model_path,
        parameters=sum(numel(p) for p in engine.module.parameters()),
        backend=loaded.backend,
        reason=loaded.reason,
        recurrent=recurrent,
        sequence=sequence,
        ema=ema,
        base=base,
    )


def _ahead(config: RunConfig, model_path: str) -> int:
    """Return the elements that ZeRO-3 gathers ahead: it gathers whole layers, so two of them, or none would be ahead."""
    text = read_config(
        model_path, revision=config.model.revision, trust_remote_code=config.model.trust_remote_code
    ).get_text_config()
    try:
        return 2 * Shape.of(text.to_dict()).layer_parameters
    except UserError:  # a family without the fields of a decoder
        return zero.AHEAD


def _base_of(model_path: str, revision: str | None) -> str:
    """Return the fingerprint of the base, taken by rank 0. Collective."""
    return from_rank_0(weight_files.base_fingerprint(model_path, revision) if dist.get_rank() == 0 else "")


def _note(folder: RunFolder, loaded: Loaded, model_path: str, base: str | None, recurrent: str) -> None:
    """Write which base it is and how its documents are kept apart into env.json, and log what of it is trained."""
    if dist.get_rank():
        return
    env = folder.path / "env.json"
    known: dict[str, Any] = {}
    with suppress(UserError):
        known = read_object(env, "")
    model = {
        "path": model_path,
        "commit": loaded.commit,
        "fingerprint": base,
        "attention": loaded.backend,
        "recurrent": recurrent or None,
    }
    write_json(env, {**known, "model": model})
    sizes = [(numel(p), p.requires_grad) for p in loaded.module.parameters()]
    trained = sum(n for n, trains in sizes if trains)
    log.info(
        "%s%s: %s of %s parameters are trained",
        model_path,
        f" at {loaded.commit}" if loaded.commit else "",
        f"{trained:,}",
        f"{sum(n for n, _ in sizes):,}",
    )


def _set_loss(module: PackedLM, config: RunConfig) -> None:
    for head in (m for m in module.modules() if isinstance(m, LossHead)):  # two, with lora.modules_to_save
        head.options = config.loss
    balance = config.loss.router_balance
    if balance == "model":
        balance = own_coefficient(module.hf)
    if balance is not None:
        module.balance = RouterBalance(module.hf, balance)
    if config.loss.neftune_alpha is not None:
        add_noise(module, config.loss.neftune_alpha)


def _save_memory(module: PackedLM, config: RunConfig, device: str) -> None:
    if config.model.mlp_tiles > 1:
        activation_memory.tile_mlp(module.hf, config.model.mlp_tiles)
    if config.model.offload_activations:
        if device == "cpu":
            raise UserError(
                "model.offload_activations moves activations to host memory, but this run has no GPU, so they lie there "
                "already; set it to false"
            )
        activation_memory.offload_layer_inputs(module.hf)
    if config.model.compile:
        activation_memory.compile_layers(module.hf)


def export_base(config: RunConfig, model_path: str) -> Base:
    """Return what an export needs to know of the model that training started from."""
    return Base(
        path=model_path,
        revision=config.model.revision,
        trust_remote_code=config.model.trust_remote_code,
        rope_scaling=config.model.rope_scaling,
        vocab_multiple=config.model.vocab_multiple,
        lora=config.lora,
        kind="ema" if config.train.export_ema else "master",
    )


def exports_adapter(config: RunConfig) -> bool:
    """Say whether the run's export is a peft folder."""
    return config.lora is not None and config.lora.export == "adapter"


def _initial_model(config: RunConfig, folder: RunFolder, tokenizer: TextTokenizer) -> str:
    """Return the folder or hub id that training starts from; a shape is first written as a model folder."""
    shape = config.model.shape
    if shape is None:
        assert config.model.path is not None
        return config.model.path
    initial = folder.path / "init"
    if dist.get_rank() == 0 and not (initial / "config.json").is_file():
        aside = initial.with_name(".init.partial")
        try:
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
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"{initial} cannot be written ({error}), so there are no weights to start from; make room there, or set run_root to "
                "another disk, and run the same command again"
            ) from None
    dist.barrier()
    return str(initial)


def _share_rows(config: RunConfig, model_path: str) -> SequenceGroup:
    """Form the groups of ranks that share rows."""
    heads = None
    if config.train.sequence_parallel > 1:
        text = read_config(
            model_path, revision=config.model.revision, trust_remote_code=config.model.trust_remote_code
        ).get_text_config()
        heads = _heads(text.to_dict())
    check_ranks(config, ranks=dist.get_world_size(), heads=heads)
    return ulysses.join(config.train.sequence_parallel, config.deepspeed.timeout_minutes)


def _heads(text: Mapping[str, Any]) -> int | None:
    """Return what ranks can share: the greatest common divisor of the heads of all layers; None of a model without heads."""
    apart = text.get("per_layer_config") or []
    parts = [text, *(apart.values() if isinstance(apart, Mapping) else apart)]
    found = [p["num_attention_heads"] for p in parts if p.get("num_attention_heads")]
    return math.gcd(*found) if found and all(isinstance(n, int) for n in found) else None


def _check_documents(
    engine: Any, loaded: Loaded, config: RunConfig, device: str, sequence: SequenceGroup
) -> str:
    """Refuse to train when a packed document can see another, or the loss is not the model's own; choose for layers with state.

    Returns:
        How layers with state begin anew at every document; empty: there are none. Collective.
    """
    where = (
        torch.device(device, int(os.environ.get("LOCAL_RANK", "0")))
        if device == "cuda"
        else torch.device(device)
    )
    engine.eval()
    vocab = isolation_check.tokens_of(engine.module.hf)

    def loss_of(batch: Batch, *, by_model: bool = False) -> torch.Tensor:
        mine = sequence_shard(batch, sequence.place, sequence.size)
        return engine(*to_inputs(mine, where), by_model=by_model)[1]

    recurrent = isolation_check.settle_kernels(
        loaded, loss_of, config.model.recurrent, config.pack.seq_len, gather=gather
    )
    own = isolation_check.head_error(loss_of, partial(loss_of, by_model=True), vocab)
    moved, off = zip(*gather((isolation_check.measure_isolation(loss_of, vocab), own)), strict=True)
    engine.train()
    if not all(m <= isolation_check.TOLERANCE[engine.module.hf.dtype] for m in moved):  # NaN must not pass
        raise UserError(
            f"packed documents see one another with model.attention={loaded.backend} (replacing one document moved the loss of "
            f"another by {max(moved):.2g}), so training would be wrong; use model.attention=sdpa_dense, or another model"
        )
    if not all(e <= isolation_check.HEAD_TOLERANCE[engine.module.hf.dtype] for e in off):
        raise UserError(
            f"the loss differs from that of the model's own forward pass by {max(off):.2g} at a token, so this family does something "
            "between decoder and logits that is not known here, and training would be wrong; use another model"
        )
    return recurrent
