"""A Hugging Face folder or hub id -> a causal LM whose attention is ours, partitioned from the start under ZeRO-3."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sft_dist.core.errors import UserError
from sft_dist.model import attention
from sft_dist.model.packed import PackedLM

if TYPE_CHECKING:
    from collections.abc import Iterator

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Layers that carry a state along the row: packed documents would leak into one another through it.
STATEFUL_LAYERS = ("linear_attention", "mamba", "mamba2", "conv", "recurrent", "ssm")


@dataclass(frozen=True, kw_only=True, slots=True)
class Loaded:
    """A model ready for the engine, and how it attends."""

    module: PackedLM
    backend: str
    reason: str


def read_config(path: str, *, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """Return the transformers config of a model.

    Raises:
        UserError: When the folder or hub id cannot be read, or holds no causal language model.
    """
    from transformers import AutoConfig

    if (looks_local(path)) and not (Path(path) / "config.json").is_file():
        raise UserError(
            f"model.path={path} has no config.json, so there is no base model to start from; check the path"
        )
    try:
        return AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise UserError(
            f"model.path={path} cannot be read ({first}); give a local folder, or a hub id while the hub can be reached "
            "(download it beforehand on nodes without internet)"
        ) from None


def looks_local(path: str) -> bool:
    """True for what can only be a folder: absolute, explicitly relative, or existing."""
    return path.startswith(("/", "./", "../", "~")) or Path(path).exists() or path.count("/") > 1


def attention_needs(config: Any, dtype: torch.dtype, device: str) -> attention.Needs:
    """Read from a model's config what its attention must do.

    Raises:
        UserError: For a model whose layers carry state along the row; packing it would leak between documents.
    """
    text = config.get_text_config()
    layers = set(getattr(text, "layer_types", None) or ())
    if stateful := sorted(x for x in layers if x in STATEFUL_LAYERS) or (
        ["state space"] if hasattr(text, "ssm_cfg") else []
    ):
        raise UserError(
            f"{text.model_type} has {', '.join(stateful)} layers, which carry state from one packed document into the next; "
            "training it packed would be wrong, so it is refused. Use a model with attention layers only"
        )
    heads = text.num_attention_heads
    return attention.Needs(
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads,
        dtype=dtype,
        device=device,
        sliding_window=bool(getattr(text, "sliding_window", None)),
        softcap=bool(getattr(text, "attn_logit_softcapping", None)),
        sinks=text.model_type == "gpt_oss",
    )


def create_initial(
    folder: Path,
    *,
    shape: Mapping[str, Any],
    vocab_size: int,
    bos_id: int | None,
    eos_id: int | None,
    pad_id: int | None,
    seed: int,
) -> None:
    """Write a randomly initialised Llama-type model, a function of shape and seed alone, as a Hugging Face folder."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=shape["hidden_size"],
        intermediate_size=shape["intermediate_size"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"],
        num_key_value_heads=shape["kv_heads"] or shape["heads"],
        max_position_embeddings=shape["max_position_embeddings"],
        rope_parameters={"rope_type": "default", "rope_theta": shape["rope_theta"]},
        tie_word_embeddings=shape["tie_word_embeddings"],
        initializer_range=shape["initializer_range"],
        bos_token_id=bos_id,
        eos_token_id=eos_id,
        pad_token_id=pad_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        LlamaForCausalLM(config).float().save_pretrained(folder)


def load_packed(
    path: str,
    *,
    dtype: str,
    backend: str,
    device: str,
    zero_config: Mapping[str, Any] | None,
    gradient_checkpointing: bool,
    revision: str | None = None,
    trust_remote_code: bool = False,
    min_vocab_size: int = 0,
) -> Loaded:
    """Load a model for packed training.

    Args:
        path: Local folder or hub id.
        dtype: float32 or bfloat16, of the weights in forward and backward.
        backend: A name of `attention.BACKENDS` or auto.
        device: cuda or cpu.
        zero_config: The DeepSpeed config under ZeRO-3, else None. The weights are then partitioned while they are
            loaded, so no rank ever holds the whole model on its device.
        gradient_checkpointing: Recompute activations in the backward pass.
        revision: Hub revision.
        trust_remote_code: Run model code from the hub.
        min_vocab_size: Largest token id of the tokenizer plus one.

    Raises:
        UserError: For a missing or unfit model, missing weights, or a tokenizer with ids beyond the embedding.
    """
    from transformers import AutoModelForCausalLM

    attention.register()
    config = read_config(path, revision=revision, trust_remote_code=trust_remote_code)
    vocab_size = config.get_text_config().vocab_size
    if min_vocab_size > vocab_size:
        raise UserError(
            f"the tokenizer has ids up to {min_vocab_size - 1}, the model {path} embeds {vocab_size} tokens; "
            "training would read beyond the embedding. Use the tokenizer that belongs to the model (model.tokenizer=null)"
        )
    torch_dtype = DTYPES[dtype]
    chosen, reason = attention.choose(backend, attention_needs(config, torch_dtype, device))
    with _partitioned(zero_config):
        found: Any = AutoModelForCausalLM.from_pretrained(
            path,
            revision=revision,
            trust_remote_code=trust_remote_code,
            dtype=torch_dtype,
            attn_implementation=attention.registered_name(chosen),
            output_loading_info=True,
        )
        hf, info = found
        if zero_config is not None:
            whole = [n for n, p in hf.named_parameters() if not hasattr(p, "ds_tensor")]
            assert not whole, f"parameters are not partitioned under ZeRO-3: {whole[:3]}"
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise UserError(
            f"{path} lacks {len(missing)} weights (first: {missing[0]}), which would start random; "
            "the files do not belong to this architecture or are incomplete"
        )
    hf.config.use_cache = False
    if gradient_checkpointing:
        hf.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return Loaded(module=PackedLM(hf), backend=chosen, reason=reason)


@contextmanager
def _partitioned(zero_config: Mapping[str, Any] | None) -> Iterator[None]:
    """Let from_pretrained build under deepspeed.zero.Init: transformers looks for a live HfDeepSpeedConfig."""
    if zero_config is None:
        yield
        return
    from transformers.integrations import HfDeepSpeedConfig

    alive = HfDeepSpeedConfig(dict(zero_config))  # held by a weak reference only: it must outlive the load
    yield
    assert alive is not None
