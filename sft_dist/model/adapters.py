"""Low-rank adapters on a frozen base: put in by peft, merged or written apart on export.

Training works on a plain transformers model whose Linear modules (and modules with adapted weights that are no Linear, such as
experts in one tensor) were replaced in place, so packing, ZeRO and the loss see no difference. Checkpoints hold the adapters
only; the base is read again from where it came.
"""

from __future__ import annotations

import copy
import difflib
import importlib.util
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sft_dist.config.model import LoraConfig, targets
from sft_dist.core.errors import UserError
from sft_dist.model.adapter_folder import WEIGHTS, check_folder
from sft_dist.model.parts import decoder_of
from sft_dist.model.trainable import shape_of
from sft_dist.model.weight_files import BaseFiles, match

NAME = "default"  # of the one adapter, as peft calls it
BASE, SAVED = ".base_layer.", f".modules_to_save.{NAME}."


def add(hf: Any, lora: LoraConfig, seed: int) -> None:
    """Put adapters into a model, in place: only they and `modules_to_save` are trained. Collective under ZeRO-3.

    Where embedding and output projection are one matrix and `modules_to_save` names either, that matrix itself is trained, so that
    it stays one.

    Args:
        hf: The loaded model, its output projection already adopted by model.loss.
        lora: What to adapt.
        seed: Of the adapters' random half; the other half is zero, so the model starts as the base.

    Raises:
        UserError: When a name matches nothing.
    """
    settings = peft_config(hf, lora)
    if lora.export == "adapter" and _rewritten(settings, hf):
        raise UserError(
            "lora.export=adapter cannot say what is adapted here: in this family peft takes gate_proj, up_proj and down_proj for the routed "
            "experts, whatever else has these names; use lora.export=merged, or leave those names out of lora.target_modules"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _inject(settings, hf)
    if saved_ends(hf, lora) and is_tied(hf):
        hf.get_input_embeddings().weight.requires_grad_(requires_grad=True)
    if lora.adapter is not None:
        _go_on(hf, lora, Path(lora.adapter))


def _inject(settings: Any, hf: Any) -> None:
    """Put adapters where `settings` say, in place.

    In families whose routed experts lie in fused parameters, peft takes names of projections for those experts, and leaves the Linear
    modules of that name (shared experts, dense layers) as they are. It does so for models with a config, so it is given one without.
    """
    from peft import inject_adapter_in_model

    holder: Any = nn.Module()
    holder.whole = hf
    named = copy.copy(settings)
    named.target_modules = f"whole[.](?:{settings.target_modules})"
    inject_adapter_in_model(named, holder)


def _rewritten(settings: Any, hf: Any) -> bool:
    """Whether peft would adapt something else than `settings` say when it opens a folder of adapters."""
    try:
        from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
        from transformers.conversion_mapping import get_model_conversion_mapping
    except ImportError:  # a version of peft that takes names as they are
        return False
    given = copy.deepcopy(settings)
    try:
        convert_peft_config_for_transformers(given, model=hf, conversions=get_model_conversion_mapping(hf))
    except ValueError:
        return True
    return set(given.target_parameters or ()) != set(settings.target_parameters or ())


def _go_on(hf: Any, lora: LoraConfig, folder: Path) -> None:
    """Fill new adapters with the weights of a folder."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    check_folder(lora)
    try:
        found = load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise UserError(
            f"{folder / WEIGHTS} is torn ({error}), so there is no adapter to go on from; copy it again"
        ) from None
    own = {n: p for n, p in hf.named_parameters() if p.requires_grad}
    names = folder_names(own)
    twice = {f"base_model.model.{n}.weight" for n in ends_of(hf)} if is_tied(hf) else set()
    here = set(names.values())
    there = set(found) - (twice - here if twice & here else set())
    if here != there:
        odd, missing = sorted(there - here), sorted(here - there)
        which = (
            f"holds {odd[0]}, which is not trained here"
            if odd
            else f"lacks {missing[0]}, which is trained here"
        )
        raise UserError(
            f"lora.adapter={folder} {which} ({len(odd) + len(missing)} such), so a part would be lost or start anew; choose the same modules "
            "with lora.target_modules and lora.modules_to_save"
        )
    for name, parameter in own.items():
        value = found[names[name]]
        if value.shape != parameter.shape:
            raise UserError(
                f"lora.adapter={folder}: {names[name]} has shape {list(value.shape)}, here {list(parameter.shape)}; start from its base"
            )
        parameter.data.copy_(value)


def peft_config(hf: Any, lora: LoraConfig) -> Any:
    """Return peft's own config: targets are a pattern over the decoder's Linear modules, other towers untouched."""
    import peft

    _check_saved(hf, lora)
    shared = saved_ends(hf, lora) if is_tied(hf) else set()  # trained in place
    return peft.LoraConfig(
        **_common(lora),
        lora_dropout=lora.dropout,
        target_modules=_targets(hf, lora.target_modules),
        target_parameters=_parameters(hf, lora.target_parameters),
        modules_to_save=[m for m in lora.modules_to_save if m not in shared] or None,
    )


def is_tied(hf: Any) -> bool:
    """Whether a model's embedding and output projection are one matrix."""
    return hf.get_output_embeddings().weight is hf.get_input_embeddings().weight


def ends_of(hf: Any) -> list[str]:
    """Return the names of a model's embedding and output projection."""
    ends = (hf.get_input_embeddings(), hf.get_output_embeddings())
    return [n for n, m in hf.named_modules() if m in ends]


def saved_ends(hf: Any, lora: LoraConfig) -> set[str]:
    """Return which of `lora.modules_to_save` name the embedding or the output projection."""
    return {w for w in lora.modules_to_save if any(n == w or n.endswith(f".{w}") for n in ends_of(hf))}


def _common(lora: LoraConfig) -> dict[str, Any]:
    """Return what shapes and scales an adapter, in training and merging alike."""
    return {"r": lora.rank, "lora_alpha": lora.alpha, "use_dora": lora.dora, "use_rslora": lora.rslora}


def _targets(hf: Any, wanted: tuple[str, ...]) -> str:
    """Return the regular expression of the adapted modules' names."""
    decoder = decoder_of(hf)
    prefix = next((n for n, m in hf.named_modules() if m is decoder), "")
    linear = [n for n, m in decoder.named_modules() if isinstance(m, nn.Linear)]
    if not linear:
        raise UserError(
            "lora is set, and the decoder of this model has no Linear (GPT-2 and its like keep their matrices otherwise), so nothing would "
            "be adapted; train all weights (lora=null)"
        )
    last = {n.rpartition(".")[2] for n in linear}
    # a Linear in a list is called 0, and so are layers: such names are written out
    others = {n.rpartition(".")[2] for n, m in decoder.named_modules() if not isinstance(m, nn.Linear)}
    refused = _refused_by_peft(hf, last) | _shared(decoder) | _of_its_own(decoder)
    if not wanted:
        taken = last - refused
        names = sorted((taken - others) | {n for n in linear if n.rpartition(".")[2] in others & taken})
    else:
        names = sorted({found for entry in wanted for found in targets(entry, linear)})
    for entry in wanted:
        if not targets(entry, linear):
            near = difflib.get_close_matches(entry, sorted(last), n=3, cutoff=0.0)
            raise UserError(
                f"lora.target_modules has {entry!r}, which is no Linear of this model's decoder, so nothing would be adapted; "
                f"it has: {', '.join(near)}, in names such as {linear[0]} (the output projection and embeddings go into "
                "lora.modules_to_save)"
            )
    if unfit := [n for n in names if n.rpartition(".")[2] in refused]:
        raise UserError(
            f"lora.target_modules has {unfit[0]}, which cannot be adapted in {hf.config.model_type}: a fused kernel would pass the adapter "
            "by, several layers share the module, or it computes more than a product with its weight; leave it out"
        )
    some = "|".join(name.replace(".", "[.]") for name in names)
    return f"{prefix.replace('.', '[.]')}[.](?:.*[.])?(?:{some})" if prefix else f"(?:.*[.])?(?:{some})"


def _shared(decoder: nn.Module) -> set[str]:
    """Return the last names of Linear modules whose weight several layers share: each would get adapters of its own (Zamba)."""
    names: dict[int, list[str]] = {}
    for name, module in decoder.named_modules():
        if isinstance(module, nn.Linear):
            names.setdefault(id(module.weight), []).append(name)
    return {n.rpartition(".")[2] for found in names.values() if len(found) > 1 for n in found}


PLAIN = (
    "FalconLinear",
)  # of transformers, with a forward pass of their own that is a product with the weight


def _of_its_own(decoder: nn.Module) -> set[str]:
    """Return the last names of Linear modules that compute something else: groups of their input (DeepSeek V4), a choice of experts (Llama 4)."""
    return {
        name.rpartition(".")[2]
        for name, module in decoder.named_modules()
        if isinstance(module, nn.Linear)
        and type(module).__module__.startswith("transformers.models.")
        and type(module).forward is not nn.Linear.forward
        and type(module).__name__ not in PLAIN
    }


def refuse_unmerged(model: Any, lora: LoraConfig, found: BaseFiles | None) -> None:
    """Refuse adapters that an export could not merge.

    Args:
        model: The base, its weights unread.
        lora: What is adapted.
        found: The files of the base; None: it is merged into no file.

    Raises:
        UserError: The files hold an adapted matrix and others as one tensor.
    """
    if found is None or lora.export != "merged":
        return
    adapted, held = re.compile(_targets(model, lora.target_modules)), match(model, found).key_of
    apart = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and adapted.fullmatch(n)]
    if unmerged := [n for n in apart if f"{n}.weight" not in held]:
        raise UserError(
            f"lora adapts {unmerged[0]}, which the files of the base hold with others as one tensor, so the adapters cannot be merged into "
            "them; use lora.export=adapter, or leave it out of lora.target_modules"
        )


def _refused_by_peft(hf: Any, names: Iterable[str]) -> set[str]:
    """Return the Linear modules that peft does not adapt in this family: in some, layers with state call them by a fused kernel."""
    import peft
    from peft.tuners import tuners_utils

    check = getattr(tuners_utils, "_check_lora_target_modules_mamba", None)  # peft 0.17 to 0.21 have it
    refused = set()
    for name in names:
        try:
            if check is not None:
                check(peft.LoraConfig(), hf, name)
        except ValueError:
            refused.add(name)
    return refused


def _parameters(hf: Any, wanted: tuple[str, ...]) -> list[str] | None:
    """Return the ends of the adapted weights' names, as peft matches them."""
    inside = {
        id(p)
        for m in decoder_of(hf).modules()
        if not isinstance(m, nn.Linear)
        for p in m.parameters(recurse=False)
    }
    fit = [n for n, p in hf.named_parameters() if id(p) in inside and len(shape_of(p)) in (2, 3)]
    for entry in wanted:
        matched = [n for n, _ in hf.named_parameters() if n == entry or n.endswith(f".{entry}")]
        if not matched or set(matched) - set(fit):
            ends = sorted({".".join(n.split(".")[-3:]) for n in fit if "embed" not in n})
            near = difflib.get_close_matches(entry, ends, n=2, cutoff=0.0)
            raise UserError(
                f"lora.target_parameters has {entry!r}, which is no matrix of this model's decoder outside of its Linear modules, so it "
                f"cannot be adapted this way; it has: {', '.join(near) or 'none'} (Linear modules go into lora.target_modules)"
            )
    return list(wanted) or None


def _check_saved(hf: Any, lora: LoraConfig) -> None:
    names = [n for n, _ in hf.named_modules()]
    for wanted in lora.modules_to_save:
        if not any(n == wanted or n.endswith(f".{wanted}") for n in names):
            raise UserError(
                f"lora.modules_to_save has {wanted!r}, which is no module of this model, so nothing would be trained whole; "
                "use embed_tokens, lm_head or another module's name"
            )


def quantisation(lora: LoraConfig | None, dtype: torch.dtype, device: str) -> Any:
    """Return how the base is quantised while it is loaded (QLoRA, arXiv 2305.14314); None: not at all.

    Raises:
        UserError: Naming what is missing for it.
    """
    if lora is None or lora.quantize_base is None:
        return None
    lacking = [
        what
        for what, there in (
            ("a CUDA device", device == "cuda"),
            ("the bitsandbytes package", importlib.util.find_spec("bitsandbytes") is not None),
            ("model.dtype=bfloat16", dtype == torch.bfloat16),
        )
        if not there
    ]
    if lacking:
        raise UserError(
            f"lora.quantize_base={lora.quantize_base} needs {' and '.join(lacking)}, so the base cannot be held in 4 bits here; "
            "provide that, or set lora.quantize_base=null and let ZeRO-3 partition the base"
        )
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=lora.quantize_base,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


@contextmanager
def switched_off(hf: nn.Module) -> Iterator[None]:
    """Let a model compute what its base would, but for matrices that are trained in place."""
    layers: list[Any] = [m for m in hf.modules() if hasattr(m, "_disable_adapters")]
    for layer in layers:
        layer._disable_adapters = True  # noqa: SLF001  `enable_adapters` would also change what is trained
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False  # noqa: SLF001


def base_name(name: str) -> str:
    """Return what a parameter or module of the adapted model is called in the base."""
    while BASE in name:  # one layer more for each adapted weight of a module
        name = name.replace(BASE, ".")
    return name.removesuffix(BASE[:-1]).replace(SAVED, ".").replace(".original_module.", ".")


class Adapted(NamedTuple):
    """A weight of the base with adapters, and whether its matrices are [input, output] (of Linear: [output, input])."""

    weight: str
    turned: bool


def wrappers(hf: nn.Module) -> set[type[nn.Module]]:
    """Return the classes of the modules by which peft adapts weights that are no Linear."""
    return {type(m) for m in hf.modules() if type(m).__name__ == "ParamWrapper"}


def adapted_parameters(model: Any, lora: LoraConfig | None) -> dict[str, Adapted]:
    """Return what `lora.target_parameters` adapts: name of peft's wrapper -> weight of the base; the model stays as it is."""
    if lora is None or not lora.target_parameters:
        return {}
    like = copy.deepcopy(model)
    _inject(peft_config(like, lora), like)
    kinds = wrappers(like)
    return {
        n: Adapted(
            f"{base_name(n)}.{m.parameter_name}", bool(getattr(m.get_base_layer(), "is_transposed", False))
        )
        for n, m in like.named_modules()
        if type(m) in kinds
    }


def trained_modules(parameters: Mapping[str, Any], adapted: Mapping[str, Adapted]) -> dict[str, list[str]]:
    """Return the adapted weights among trained parameters: base name of the weight -> names of its adapter tensors."""
    found: dict[str, list[str]] = {}
    for name in parameters:
        if ".lora_" in name:
            module = name.partition(".lora_")[0]
            weight = adapted[module].weight if module in adapted else f"{module}.weight"
            found.setdefault(weight, []).append(name)
    return found


def update_of(
    shape: tuple[int, ...], turned: bool, tensors: Mapping[str, Tensor], lora: LoraConfig
) -> Tensor:
    """Return what adapters add to a weight that is no Linear, in fp32, by peft's own layer.

    Args:
        shape: Of the weight: [experts, ..] or a matrix.
        turned: See `Adapted`.
        tensors: The adapter tensors of this weight, by their full names.
        lora: How they were made.
    """
    from peft import LoraConfig, inject_adapter_in_model

    holder: Any = nn.Module()
    holder.m = nn.Module()
    holder.m.w = nn.Parameter(torch.empty(shape), requires_grad=False)
    holder.m.is_transposed = turned
    settings = LoraConfig(
        **_common(lora), target_modules=[], target_parameters=["m.w"], init_lora_weights=False
    )
    inject_adapter_in_model(settings, holder)
    state = {"lora_" + name.partition(".lora_")[2]: t.float() for name, t in tensors.items()}
    holder.m.load_state_dict({**holder.m.state_dict(), **state})
    with torch.no_grad():
        update: Tensor = holder.m.get_delta_weight(NAME)
    return update


def merged(weight_OI: Tensor, tensors: Mapping[str, Tensor], lora: LoraConfig) -> Tensor:
    """Return a base weight with its adapter merged in, in fp32, by peft's own layer.

    Args:
        weight_OI: The base weight, [output, input].
        tensors: The adapter tensors of this module, by their full names.
        lora: How they were made.
    """
    from peft import LoraConfig, inject_adapter_in_model

    holder: Any = nn.Module()
    holder.w = nn.Linear(weight_OI.size(1), weight_OI.size(0), bias=False, device="meta")
    holder.w.weight = nn.Parameter(weight_OI.float(), requires_grad=False)
    settings = LoraConfig(**_common(lora), target_modules=["w"], init_lora_weights=False)
    inject_adapter_in_model(settings, holder)
    state = {"lora_" + name.partition(".lora_")[2]: t.float() for name, t in tensors.items()}
    own = holder.w.state_dict()
    holder.w.load_state_dict({**own, **state})
    holder.w.merge(safe_merge=True)
    return holder.w.get_base_layer().weight.data


def folder_names(parameters: Mapping[str, Any]) -> dict[str, str]:
    """Return the name that each trained parameter has in a peft adapter folder."""
    return {n: "base_model.model." + _short(n) for n in parameters}


def _short(name: str) -> str:
    name = name.replace(SAVED, ".").replace(f".{NAME}.weight", ".weight")
    return name.replace("lora_magnitude_vector.weight", "lora_magnitude_vector")
