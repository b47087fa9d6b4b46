"""A Hugging Face folder or hub id -> a causal LM whose attention is ours, partitioned from the start under ZeRO-3."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import nn

from sft_dist.config.model import LoraConfig, ModelConfig
from sft_dist.core.errors import UserError
from sft_dist.core.files import is_local
from sft_dist.core.process import logger
from sft_dist.model import (
    activation_memory,
    adapters,
    attention,
    config_json,
    partition,
    parts,
    recurrent,
    rope,
    separation,
    support,
    vocabulary,
)
from sft_dist.model.packed import PackedLM
from sft_dist.model.recurrent_kernels import Borders
from sft_dist.model.trainable import set_trainable
from sft_dist.model.ulysses import SequenceGroup
from sft_dist.model.weight_files import BaseFiles, auto_class, commit_of, meta_model

if TYPE_CHECKING:
    from collections.abc import Iterator

log = logger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True, slots=True)
class Loaded:
    """A model ready for the engine, and how it keeps documents apart.

    Attributes:
        module: The model.
        backend: The attention backends of its kinds of layers, joined by a plus sign.
        reason: Why those.
        state: The kinds of layers with state that it has.
        recurrent: What kernels of theirs can be told of the borders of a row (`isolation_check` decides whether they are called), or
            why each document is run alone; empty: it has no such layers.
        commit: Of the hub repository that was read; None for a folder.
    """

    module: PackedLM
    backend: str
    reason: str
    state: tuple[str, ...]
    recurrent: str
    commit: str | None


def read_config(path: str, *, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """Return the transformers config of a model.

    Raises:
        UserError: When the folder or hub id cannot be read, or holds no causal language model.
    """
    from transformers import AutoConfig

    if is_local(path) and config_json.located(path) is None:
        raise UserError(
            f"model.path={path} has no config.json, so there is no base model to start from; check the path"
        )
    try:
        return AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        from huggingface_hub.constants import HF_HUB_OFFLINE

        name = path if revision is None else f"{path} --revision {revision}"
        remedy = (
            f"HF_HUB_OFFLINE is set, so only the cache was asked; run `hf download {name}` where there is internet, with the same "
            "HF_HOME, or give a local folder"
            if HF_HUB_OFFLINE
            else "give a local folder, or a hub id while the hub can be reached (download it beforehand on nodes without internet)"
        )
        raise UserError(
            f"model.path={path} cannot be read ({str(error).splitlines()[0]}); {remedy}"
        ) from None


def attention_needs(model: Any, dtype: torch.dtype, device: str) -> list[attention.Needs]:
    """Read from a model (its skeleton) what each kind of its attention layers must do, most frequent first."""
    text = model.config.get_text_config()
    decoder = parts.decoder_of(model)
    found: dict[attention.Needs, int] = {}
    for module in decoder.modules():
        if not type(module).__name__.endswith("Attention") or recurrent.kind_of(module) is not None:
            continue
        heads = getattr(module, "num_heads", None) or getattr(text, "num_attention_heads", None) or 1
        size = getattr(module, "qk_head_dim", None) or getattr(module, "head_dim", None)
        needs = attention.Needs(
            head_dim=size or text.hidden_size // heads,
            value_dim=getattr(module, "v_head_dim", None),
            dtype=dtype,
            device=device,
            sliding_window=bool(getattr(module, "sliding_window", None)),
            softcap=bool(getattr(text, "attn_logit_softcapping", None)),
            sinks=any(n in ("sinks", "sink", "attention_sink_bias") for n, _ in module.named_parameters()),
        )
        found[needs] = found.get(needs, 0) + 1
    return sorted(found, key=lambda needs: -found[needs])


def load_packed(
    path: str,
    model: ModelConfig,
    *,
    device: str,
    zero_config: Mapping[str, Any] | None = None,
    lora: LoraConfig | None = None,
    seed: int = 0,
    sequence: SequenceGroup | None = None,
    seq_len: int = 0,
    min_vocab_size: int = 0,
) -> Loaded:
    """Load a model for packed training.

    Args:
        path: Local folder or hub id: `model.path`, or where the initial weights of `model.shape` were written.
        model: The section of that name; `gradient_checkpointing` is decided. Layers with state run each document alone until
            `isolation_check.kernel_fault` has found nothing.
        device: cuda or cpu.
        zero_config: The DeepSpeed config under ZeRO-3, else None. The weights are then partitioned while they are
            loaded, so no rank ever holds the whole model on its device.
        lora: Train adapters instead.
        seed: Of the adapters' initial values.
        sequence: The ranks that share rows with this one; None: whole rows.
        seq_len: Longest document in tokens, checked against the model's positions.
        min_vocab_size: Largest token id of the tokenizer plus one.

    Raises:
        UserError: For a missing or unfit model, missing weights, or a tokenizer with ids beyond the embedding.
    """
    assert model.gradient_checkpointing != "auto"
    attention.register(sequence)
    shared = sequence is not None and sequence.size > 1
    config = base_config(path, model, seq_len)
    old_rows = config.get_text_config().vocab_size
    rows = support.rows_for(old_rows, min_vocab_size, model.vocab_multiple, path)
    dtype = DTYPES[model.dtype]
    # this imports the model's module before zero.Init is entered: DeepSpeed patches `__init__` of every class and puts back what it
    # saw, and a class that was decorated meanwhile (fused experts) would lose its decoration
    skeleton = meta_model(config, trust_remote_code=model.trust_remote_code)
    way = separation.packed_way(
        skeleton,
        model.attention,
        attention_needs(skeleton, dtype, device),
        shared=shared,
        recurrent_by=model.recurrent,
        device=device,
    )
    if lora is not None:
        adapters.refuse_unmerged(skeleton, lora, BaseFiles.find(path, model.revision))
    quantisation = adapters.quantisation(lora, dtype, device)
    source = (
        None if zero_config is None else partition.find_weights(path, skeleton, zero_config, model.revision)
    )
    borders = Borders() if way.alone else None
    with _partitioned(zero_config):
        hf = _weights(
            path,
            config,
            model,
            attention.registered_name(way.attention, sequence.size if sequence else 1),
            zero_config,
            source,
            quantisation,
        )
        vocabulary.grow(hf, rows, zero_config)
        module = PackedLM(hf, borders)
        if lora is None:
            set_trainable(hf, model.trainable, model.freeze)
        else:
            adapters.add(hf, lora, seed)
        alone: list[nn.Module] = []
        if borders is not None:
            named = [(adapters.base_name(n), m) for n, m in hf.named_modules()]
            alone = [m for n, m in named if n in way.alone]
            assert len(alone) == len(way.alone), "layers of the skeleton are those of the model"
            fast = [m for n, m in named if n in way.fast]
            recurrent.keep_apart(alone, borders, fast=fast, device=device)
        if zero_config is not None:
            _partition_rest(hf, zero_config, {type(m) for m in alone})
    _tell_untrained(hf, min_vocab_size - old_rows)
    hf.config.use_cache = False
    activation_memory.checkpoint_layers(hf, model.gradient_checkpointing)
    if borders is not None:
        recurrent.keep_for_recomputation(hf, borders)
    return Loaded(
        module=module,
        backend=way.backends,
        reason=way.reason,
        state=way.state,
        recurrent=way.recurrent,
        commit=commit_of(path, model.revision),
    )


def base_config(path: str, model: ModelConfig, seq_len: int = 0) -> Any:
    """Return the config to train with: the model's own, its positions rescaled where that is asked for.

    Raises:
        UserError: When it cannot be read or cannot be trained packed, or `seq_len` is out of its reach.
    """
    config = read_config(path, revision=model.revision, trust_remote_code=model.trust_remote_code)
    support.check_supported(config, path)
    text = config.get_text_config()
    limit = getattr(text, "max_position_embeddings", None)  # some families store it under another name
    rope.check_reach({**text.to_dict(), "max_position_embeddings": limit}, model.rope_scaling, seq_len)
    rope.rescale(config, model.rope_scaling)
    return config


def _weights(
    path: str,
    config: Any,
    model: ModelConfig,
    attn: str,
    zero_config: Mapping[str, Any] | None,
    source: partition.WeightSource | None,
    quantisation: Any,
) -> Any:
    """Return the model with the base's weights."""
    dtype = DTYPES[model.dtype]
    if zero_config is not None and source is not None:
        _refuse_missing(path, source.missing)
        _tell_unused(path, source.unused)
        empty = partition.build(config, zero_config, dtype, attn, trust_remote_code=model.trust_remote_code)
        partition.fill(empty, source)
        return empty.eval()
    BaseFiles.find(path, model.revision)  # names a file that is torn or absent better than transformers does
    try:
        found: Any = auto_class(config).from_pretrained(
            path,
            config=config,
            revision=model.revision,
            trust_remote_code=model.trust_remote_code,
            dtype=dtype,
            attn_implementation=attn,
            output_loading_info=True,
            use_safetensors=True,  # pytorch_model.bin is a pickle, which may run code
            **({"quantization_config": quantisation} if quantisation else {}),
        )
    except torch.OutOfMemoryError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"the weights of {path} cannot be loaded ({str(error).strip().splitlines()[0]}), so there is nothing to start from; "
            "its files are missing or torn, or do not belong to its config.json: download or copy it again"
        ) from error
    hf, info = found
    _refuse_missing(path, sorted(info["missing_keys"]))
    _tell_unused(path, sorted(info["unexpected_keys"]))
    return hf


def _refuse_missing(path: str, missing: list[str]) -> None:
    if missing:
        raise UserError(
            f"{path} lacks {len(missing)} weights (first: {missing[0]}), which would start random; "
            "the files do not belong to this architecture or are incomplete"
        )


def _tell_unused(path: str, unused: list[str]) -> None:
    if unused:
        log.info(
            "%s holds %d tensors that are no part of the model by its config.json (first: %s): they are not trained, the export "
            "has them as they are",
            path,
            len(unused),
            unused[0],
        )


def _tell_untrained(hf: Any, new_tokens: int) -> None:
    if new_tokens > 0 and not any(p.requires_grad for p in hf.get_input_embeddings().parameters()):
        log.warning(
            "%d tokens of the tokenizer are new to the model, and nothing trains their embeddings: all of them stay the mean of the old "
            "ones, and the model cannot tell them apart. Add embed_tokens and lm_head to lora.modules_to_save, or train all weights",
            new_tokens,
        )


def _partition_rest(hf: Any, zero_config: Mapping[str, Any], alone: set[type[nn.Module]]) -> None:
    """Partition what was added after loading (adapters), and mark modules that are gathered as a whole.

    `alone`: the classes that see one document of the row at a time.
    """
    import deepspeed
    from deepspeed.utils import set_z3_leaf_modules

    if any(not hasattr(p, "ds_tensor") for p in hf.parameters()):
        deepspeed.zero.Init(module=hf, config_dict_or_path=dict(zero_config))
    whole = [n for n, p in hf.named_parameters() if not hasattr(p, "ds_tensor")]
    assert not whole, f"parameters are not partitioned under ZeRO-3: {whole[:3]}"
    # A leaf is gathered as a whole, whatever runs inside. Layers: one gather in the place of nine, and hooks in Python around
    # the layer only, so that it can be compiled. Experts, in a model without layers of its own: one that is a module of its
    # own runs only when a token of this rank needs it, and ranks would gather different weights and wait for ever. What sees
    # one document at a time: ranks have different numbers of them. Weights that peft replaces while their module runs.
    # A layer below which nothing is trained has inputs without a gradient, and DeepSpeed then frees a leaf's weights before its
    # backward pass has used them: where parts are frozen, layers stay as they are.
    trained = all(p.requires_grad for p in hf.parameters())
    layers = {type(layer) for layer in activation_memory.layers(hf)} if trained else set()
    routed = {type(m) for m in hf.modules() if isinstance(getattr(m, "experts", None), nn.ModuleList)}
    routed |= adapters.wrappers(hf)
    if whole_modules := layers | routed | alone:
        set_z3_leaf_modules(hf, sorted(whole_modules, key=lambda kind: kind.__name__))
        for leaf in partition.outermost(hf, whole_modules):
            partition.end_with_input(leaf)


@contextmanager
def _partitioned(zero_config: Mapping[str, Any] | None) -> Iterator[None]:
    """Let models be built under deepspeed.zero.Init; for from_pretrained, transformers looks for a live HfDeepSpeedConfig."""
    if zero_config is None:
        yield
        return
    import deepspeed
    from transformers.integrations import HfDeepSpeedConfig

    alive = HfDeepSpeedConfig(dict(zero_config))  # held by a weak reference only: it must outlive the load
    init = deepspeed.zero.Init
    deepspeed.zero.Init = partial(init, **partition.only_device())
    try:
        yield
    finally:
        deepspeed.zero.Init = init
    assert alive is not None
