"""How the documents of a packed row are kept apart in a model, decided on its skeleton before any weight is read.

In: a model without weights, `model.attention`, `model.recurrent`. Out: the attention backends, the modules that see one document at a
time, and those of them whose kernels can be told of the borders instead; or a refusal with its reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn

from sft_dist.core.errors import UserError
from sft_dist.model import attention, parts, recurrent, recurrent_kernels

# model types whose own attention code is measured exact on each document alone (tests/helpers/matrix.json)
PROVED = {
    "axk2", "bloom", "deepseek_v32", "deepseek_v4", "doge", "dots3_note", "dots3_note_text", "falcon", "glm_moe_dsa",
    "gpt_neo", "hy_v4", "inkling2_loop_text", "inkling2_text", "inkling_text", "mpt", "nemotron", "qwen4_exp",
    "qwen4_exp_text", "stablelm",
}  # fmt: skip


class Way(NamedTuple):
    """How the documents of a packed row are kept apart in a model.

    Attributes:
        attention: `auto`, a backend, or attention.ALONE.
        backends: What that comes to for the model's kinds of layers.
        reason: Why those.
        alone: Names of the modules that see one document at a time.
        state: Titles of the kinds of layers with state.
        fast: Those of `alone` that can see the whole row instead, because their kernels take its borders.
        recurrent: What the layers with state call there, or why each document is run alone.
    """

    attention: str
    backends: str
    reason: str
    alone: frozenset[str]
    state: tuple[str, ...]
    fast: frozenset[str] = frozenset()
    recurrent: str = ""


def packed_way(
    model: Any,
    backend: str,
    kinds: Sequence[attention.Needs],
    *,
    shared: bool,
    recurrent_by: str = "auto",
    device: str = "cpu",
) -> Way:
    """Return how a model's documents are kept apart.

    Args:
        model: Its skeleton.
        backend: `model.attention`.
        kinds: What its kinds of attention layers ask for.
        shared: Several ranks share each row.
        recurrent_by: `model.recurrent`.
        device: cuda or cpu.

    Raises:
        UserError: When they cannot be.
    """
    decoder = parts.decoder_of(model)
    prefix = next((f"{n}." for n, m in model.named_modules() if m is decoder and n), "")
    state = recurrent.layers_with_state(decoder)
    own = recurrent.own_attention(decoder)
    titles = tuple(sorted({kind.title for m in state.values() if (kind := recurrent.kind_of(m))}))
    if shared and (state or own):
        what = ", ".join(titles) or "attention code of its own"
        raise UserError(
            f"train.sequence_parallel shares rows among ranks, and {model.config.model_type} has layers ({what}) that need the whole row "
            "of a document on one rank; use train.sequence_parallel=1"
        )
    free = {n: m for n, m in state.items() if not any(n.startswith(f"{o}.") for o in own)}
    names = frozenset(prefix + n for n in free | own)
    fast, how = _fast_path(model.config.model_type, free, recurrent_by, device)
    fast = frozenset(prefix + n for n in fast)
    if own:
        if model.config.get_text_config().model_type not in PROVED:
            raise UserError(
                f"{type(model).__name__} has attention code of its own, which transformers offers no way to replace, and nobody has proved "
                "here that it is exact on each document alone; use a family that docs/models.md lists"
            )
        if backend not in ("auto", attention.ALONE):
            raise UserError(
                f"model.attention={backend} cannot run here: {model.config.model_type} has attention code of its own, which transformers "
                "offers no way to replace; use model.attention=auto, which calls it once for each document"
            )
        reason = "its attention code cannot be replaced, so it is called once for each document"
        return Way(attention.ALONE, attention.ALONE, reason, names, titles, fast, how)
    if not kinds:
        return Way("auto", "none", "no attention layers", names, titles, fast, how)
    backends, reason = attention.choose_backend(backend, kinds)
    return Way(backend, backends, reason, names, titles, fast, how)


def _fast_path(
    family: str, state: Mapping[str, nn.Module], asked: str, device: str
) -> tuple[frozenset[str], str]:
    """Return which layers with state can see the whole row, and by which kernels or why not.

    Raises:
        UserError: For `kernel` where some cannot.
    """
    if asked == "per_document":
        return frozenset(), "as configured" if state else ""
    lacking: dict[str, str] = {}
    called: dict[str, None] = {}
    for name, layer in state.items():
        kind = recurrent.kind_of(layer)
        assert kind is not None, "it was found by its kind"
        if why := recurrent_kernels.missing(layer, kind.kernels, device):
            lacking[name] = why
        else:
            called |= dict.fromkeys(recurrent_kernels.titles(kind.kernels, device))
    reason = "; ".join(dict.fromkeys(lacking.values()))
    if asked == "kernel" and (lacking or not state):
        raise UserError(
            f"model.recurrent=kernel cannot run here: {reason or f'{family} has no layers with state'}; nothing was started. Use "
            "model.recurrent=auto, which runs such layers on each document alone where no kernel takes the borders"
        )
    return frozenset(state) - lacking.keys(), "; ".join(x for x in (", ".join(called), reason) if x)
