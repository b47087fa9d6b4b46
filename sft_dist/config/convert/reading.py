"""The file of another trainer -> (trainer, its keys and values)."""

from __future__ import annotations

import math
import re
import shlex
from pathlib import Path
from typing import Any

from sft_dist.config.yaml_file import read_yaml
from sft_dist.core.errors import UserError

TRAINERS = ("axolotl", "llama-factory", "trl", "ms-swift")
# keys by which a trainer is told; the first trainer with one of its keys wins
TOLD_BY = {
    "axolotl": ("base_model", "micro_batch_size", "sequence_len"),
    "llama-factory": ("finetuning_type", "cutoff_len", "dataset_dir", "template"),
    "ms-swift": ("tuner_type", "train_type", "model_author", "split_dataset_ratio"),
    "trl": ("model_name_or_path", "dataset_name", "per_device_train_batch_size"),
}


def read_other(file: Path, trainer: str | None = None) -> tuple[str, dict[str, Any]]:
    """Read a config of another trainer.

    Raises:
        UserError: When it cannot be read, or its trainer cannot be told.
    """
    if not file.is_file():
        raise UserError(f"{file} does not exist, so there is nothing to convert; check the path")
    if file.suffix == ".sh":
        return "ms-swift", _script(file)
    values = read_yaml(file)
    if not isinstance(values, dict) or not all(isinstance(k, str) for k in values):
        raise UserError(f"{file} holds no mapping of keys, so it is no config of a trainer; check the path")
    found = trainer or next((t for t, keys in TOLD_BY.items() if any(k in values for k in keys)), None)
    if found not in TRAINERS:
        raise UserError(
            f"{file} is of no trainer that is known by its keys; name one with --from: {', '.join(TRAINERS)}"
        )
    return found, {k: v for k, v in values.items() if v is not None and v != ""}


def dataset_infos(file: Path) -> dict[str, Any]:
    """Return LLaMA-Factory's data/dataset_info.json, from the folder of the config or one above it; empty without one."""
    for folder in file.resolve().parents:
        found = folder / "data" / "dataset_info.json"
        if found.is_file():
            values = read_yaml(found)  # JSON is YAML
            return values if isinstance(values, dict) else {}
    return {}


def _script(file: Path) -> dict[str, Any]:
    """Read the flags of the first `swift sft` (or `pt`) in a shell script."""
    text = re.sub(r"\\\n", " ", file.read_text(encoding="utf-8", errors="replace"))
    text = _quotients(text)
    line = next(
        (row for row in text.splitlines() if re.search(r"\b(swift|megatron)\s+(sft|pt)\b", row)), None
    )
    if line is None:
        raise UserError(f"{file} calls no `swift sft`, so there is nothing to convert; check the path")
    try:
        words = shlex.split(line, comments=True)
    except ValueError as error:
        raise UserError(
            f"{file} cannot be read as a shell command ({error}); write it as one command"
        ) from None
    values: dict[str, Any] = {}
    key = None
    for word in words:
        if word.startswith("--"):
            key, _, value = word[2:].partition("=")
            values[key] = [value] if value else []
        elif key:
            values[key].append(word)
    out = {
        k: _scalar(v[0]) if len(v) == 1 else [_scalar(x) for x in v] if v else True for k, v in values.items()
    }
    if "megatron" in line:
        out["megatron"] = True
    return out


def _quotients(text: str) -> str:
    """Write out `$(expr 16 / $nproc)` and `$((16 / nproc))`, by which scripts keep a global batch, where the script sets the variables."""
    numbers = {name: int(n) for name, n in re.findall(r"^\s*(?:export\s+)?(\w+)=(\d+)", text, re.MULTILINE)}

    def value(found: re.Match[str]) -> str:
        number, *parts = re.findall(r"\w+", found[1])
        if not number.isdecimal() or any(numbers.get(p, 0) < 1 for p in parts):
            return found[0]
        return str(max(1, int(number) // math.prod(numbers[p] for p in parts)))

    return re.sub(r"\$\(\(?\s*(?:expr\s+)?(\w+(?:\s*/\s*\$?\{?\w+\}?)+)\s*\)?\)", value, text)


def _scalar(word: str) -> Any:
    if word.lower() in ("true", "false"):
        return word.lower() == "true"
    try:
        return int(word)
    except ValueError:
        pass
    try:
        return float(word)
    except ValueError:
        return word
