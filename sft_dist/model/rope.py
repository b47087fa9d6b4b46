"""How far a model's positions reach, and the rescaled rotary frequencies that let it reach further.

Works on the dictionary of a config.json, old (`rope_scaling`) or new (`rope_parameters`), and needs no torch: the same
functions serve the check before a run, the load and the export. The frequencies themselves are computed by transformers
from what is written here: `yarn` is arXiv 2309.00071, `linear` is position interpolation (arXiv 2306.15595).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sft_dist.config.model import RopeScalingConfig
from sft_dist.core.errors import UserError

DEPENDS_ON_ROW = ("longrope", "dynamic")  # frequencies change with the longest position of a forward pass


def reach(text: Mapping[str, Any]) -> int | None:
    """Return how many positions a text config covers; None where it states no limit."""
    limit = text.get("max_position_embeddings")
    if limit is None:
        return None
    scaling = _own(text)
    if scaling.get("rope_type") in ("yarn", "linear") and scaling.get("factor"):
        original = scaling.get("original_max_position_embeddings") or limit
        return max(int(limit), int(original * scaling["factor"]))
    return int(limit)


def check_reach(text: Mapping[str, Any], scaling: RopeScalingConfig | None, seq_len: int) -> None:
    """Refuse rows whose documents may be longer than the model's positions.

    Args:
        text: The text config as a dictionary.
        scaling: `model.rope_scaling`.
        seq_len: Longest document in tokens.

    Raises:
        UserError: When positions would be out of reach, or would mean something else in a longer row.
    """
    limit = reach(text)
    kind = _own(text).get("rope_type", "default")
    if scaling is not None:
        if kind != "default":
            raise UserError(
                f"model.rope_scaling is set, but this model already rescales its positions ({kind}), so the two would multiply; "
                "set model.rope_scaling=null, or start from a model without rescaling"
            )
        if limit is None:
            raise UserError(
                "model.rope_scaling is set, but this model has no limit of positions to rescale; set model.rope_scaling=null"
            )
        limit = int(limit * scaling.factor)
    short = _own(text).get("original_max_position_embeddings") or text.get("original_max_position_embeddings")
    if kind in DEPENDS_ON_ROW and seq_len > (short := int(short or limit or seq_len)):
        raise UserError(
            f"the rotary frequencies of this model ({kind}) depend on the longest document of a row beyond {short} tokens, so a short "
            f"document would be computed differently beside a long one; use pack.seq_len={short}"
        )
    if limit is not None and seq_len > limit:
        factor = -(-seq_len // limit)
        remedy = (
            f"raise model.rope_scaling.factor to {scaling.factor * factor:g}"
            if scaling is not None
            else f"set model.rope_scaling.type=yarn and model.rope_scaling.factor={factor}"
        )
        raise UserError(
            f"pack.seq_len={seq_len} is more than the {limit} positions that this model covers, so late tokens would be read at "
            f"positions it never saw; use pack.seq_len={limit}, or {remedy}"
        )


def rescale(config: Any, scaling: RopeScalingConfig | None) -> None:
    """Write `model.rope_scaling` into a transformers config, in place, as transformers itself reads it.

    Raises:
        UserError: For a model without rotary positions.
    """
    if scaling is None:
        return
    text = config.get_text_config()
    if not getattr(text, "rope_parameters", None):
        raise UserError(
            f"model.rope_scaling is set, but {text.model_type} has no rotary positions to rescale; set model.rope_scaling=null"
        )
    original = text.max_position_embeddings
    extra = {
        "rope_type": scaling.type,
        "factor": scaling.factor,
        "original_max_position_embeddings": original,
    }
    parameters = text.rope_parameters
    if "full_attention" in parameters:  # sliding layers never look further than their window
        parameters = {**parameters, "full_attention": {**parameters["full_attention"], **extra}}
    else:
        parameters = {**parameters, **extra}
    text.rope_parameters = parameters
    text.max_position_embeddings = int(original * scaling.factor)


def _own(text: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the rescaling that a config brings along, its type under `rope_type`; empty when there is none."""
    found = text.get("rope_parameters") or text.get("rope_scaling") or {}
    found = found.get("full_attention", found) or {}  # None: layers without positions (Beam)
    return {**found, "rope_type": found.get("rope_type", found.get("type", "default"))}
