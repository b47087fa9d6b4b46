"""The safetensors files of a base model, and which tensor in them becomes which parameter of the model.

The names in the files may differ from those of the model (older checkpoints, fused experts, towers of image-text models);
transformers translates them while it loads. This is the only file that asks it how: `get_model_conversion_mapping` and
`rename_source_key` are not its public interface, so a version without them is refused, and tests hold the result to
what `from_pretrained` loads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sft_dist.core.errors import UserError
from sft_dist.core.files import fingerprint, read_object

ONE, INDEX = "model.safetensors", "model.safetensors.index.json"
SAMPLED = 1024  # tensors of a fingerprint, about
WRITTEN_ANEW = ("_name_or_path", "transformers_version")  # by every copy that transformers makes


@dataclass(frozen=True, kw_only=True, slots=True)
class BaseFiles:
    """Tensors by the names in the files.

    Attributes:
        file_of: Tensor name -> file.
    """

    file_of: dict[str, Path]
    _open: dict[Path, Any] = field(default_factory=dict)

    @classmethod
    def find(cls, path: str, revision: str | None) -> BaseFiles | None:
        """Return the files of a folder or hub id (downloaded when they are not in the cache); None without safetensors.

        Raises:
            UserError: When a file is torn, or one that the index names is not there.
        """
        if (index := _located(path, INDEX, revision)) is not None:
            where = _weight_map(index)
            files = {name: _located(path, name, revision) for name in sorted(set(where.values()))}
            if absent := [n for n, f in files.items() if f is None]:
                raise UserError(
                    f"{path} lacks {absent[0]}, which its {INDEX} names, so the model is incomplete; download it again"
                )
            return cls(file_of={key: Path(files[name]) for key, name in where.items()})  # type: ignore[arg-type]
        if (one := _located(path, ONE, revision)) is None:
            return None
        return cls(file_of=dict.fromkeys(_opened(one).keys(), one))

    def slice(self, key: str) -> Any:
        """Return a lazy tensor: `get_shape()`, `get_dtype()`, and indexing that reads only what is asked for."""
        file = self.file_of[key]
        if file not in self._open:
            self._open[file] = _opened(file)
        return self._open[file].get_slice(key)

    def tensor(self, key: str) -> Tensor:
        """Read a whole tensor."""
        return (
            self.slice(key)[:]
            if self.slice(key).get_shape()
            else self._open[self.file_of[key]].get_tensor(key)
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Names:
    """How the tensors in the files become a model's parameters and buffers.

    Attributes:
        key_of: Parameter or buffer -> the one tensor that it is read from, unchanged.
        fused: Parameter -> the tensors that it is made of (experts that lie apart in the files).
        unused: Tensors that the model does not read.
    """

    key_of: dict[str, str]
    fused: dict[str, list[str]]
    unused: list[str]


def match(model: Any, files: BaseFiles) -> Names:
    """Return how the files' names become the model's, as `from_pretrained` would decide.

    Args:
        model: A transformers model on any device, its weights unread.
        files: The files.
    """
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
    except ImportError as error:
        raise RuntimeError(
            f"this version of transformers names its weight conversions otherwise: {error}"
        ) from error
    transforms = get_model_conversion_mapping(model)
    renamings = [t for t in transforms if isinstance(t, WeightRenaming)]
    converters = [t for t in transforms if isinstance(t, WeightConverter)]
    known = dict.fromkeys(
        [*(n for n, _ in model.named_parameters(remove_duplicate=False)), *model.state_dict()], True
    )
    prefix = model.base_model_prefix
    key_of: dict[str, str] = {}
    fused: dict[str, list[str]] = {}
    unused: list[str] = []
    for key in files.file_of:
        name, pattern = rename_source_key(key, renamings, converters, prefix, known)
        if name not in known and key in known:
            name, pattern = key, None
        if name not in known:
            unused.append(key)
        elif pattern is None:
            key_of[name] = key
        else:
            fused.setdefault(name, []).append(key)
    return Names(key_of=key_of, fused=fused, unused=unused)


def auto_class(config: Any) -> Any:
    """Return the class that builds a model of this config: a causal language model, else an image-text one."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    )

    both = config.model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    return (
        AutoModelForImageTextToText
        if both and config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        else AutoModelForCausalLM
    )


def meta_model(config: Any, *, trust_remote_code: bool) -> Any:
    """Return a model without weights: its names, shapes and ties."""
    with torch.device("meta"):
        return auto_class(config).from_config(config, trust_remote_code=trust_remote_code)


def aliases(model: Any) -> dict[str, str]:
    """Return the second names of tied parameters -> the first, which checkpoints use."""
    first = {id(p): n for n, p in model.named_parameters()}
    return {n: first[id(p)] for n, p in model.named_parameters(remove_duplicate=False) if first[id(p)] != n}


def commit_of(path: str, revision: str | None) -> str | None:
    """Return the commit of the hub repository that is read for a hub id; None for a folder."""
    from transformers.utils.hub import extract_commit_hash

    found = None if Path(path).is_dir() else _located(path, "config.json", revision)
    return extract_commit_hash(str(found), None) if found else None


def base_fingerprint(path: str, revision: str | None) -> str:
    """Return 32 hex digits that stand for a base model: its config, the names of all tensors, and a sample of their content.

    The sample is a row or 2,048 numbers from the middle of up to 1,024 tensors, evenly among their names: another fine-tune of
    the same shape differs in nearly all of them, a copy elsewhere in none, and it takes a second where all bytes would take
    minutes. Weights that are no safetensors do not count.
    """
    config = _located(path, "config.json", revision)
    facts = {
        k: v
        for k, v in (read_object(config, "download the model again") if config else {}).items()
        if k not in WRITTEN_ANEW
    }
    found = BaseFiles.find(path, revision)
    names = sorted(found.file_of) if found else []
    sample = [_middle(found, n) for n in names[:: len(names) // SAMPLED + 1]] if found else []
    return fingerprint([facts, names, sample])


def _middle(files: BaseFiles, key: str) -> list[Any]:
    shape = files.slice(key).get_shape()
    if not shape:
        part = files.tensor(key)
    else:
        row = max(1, math.prod(shape[1:]))
        first, count = shape[0] // 2, max(1, 2048 // row)
        part = files.slice(key)[(slice(first, first + count), *(slice(0, 1) for _ in shape[2:]))]
    content = part.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return [shape, str(part.dtype), xxhash.xxh3_64(content).hexdigest()]


def _opened(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError):
        raise UserError(_torn(file)) from None


def _weight_map(index: Path) -> dict[str, str]:
    try:
        where: dict[str, str] = read_object(index, "", {"weight_map": dict})["weight_map"]
    except UserError:
        raise UserError(_torn(index)) from None
    if not all(isinstance(name, str) and name for name in where.values()):
        raise UserError(_torn(index))
    return where


def _torn(file: Path) -> str:
    return (
        f"{file} is torn or no file of this kind, so the base model cannot be read; download or copy it again"
    )


def _located(path: str, name: str, revision: str | None) -> Path | None:
    from transformers.utils import cached_file

    found = cached_file(
        path,
        name,
        revision=revision,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return Path(found) if found else None
