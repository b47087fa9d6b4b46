"""Two configs -> which settings differ, and which of these a run or a sweep may not change once it has begun."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args

from pydantic import BaseModel

from sft_dist.config.root import RunConfig


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as dotted path -> leaf."""
    if not isinstance(value, dict) or not value:
        return {prefix: value} if prefix else {}
    out: dict[str, Any] = {}
    for key, inner in value.items():
        out |= flatten(inner, f"{prefix}.{key}" if prefix else str(key))
    return out


def differences(old: Any, new: Any, path: str = "") -> dict[str, tuple[Any, Any]]:
    """Return dotted path -> (old value, new value) of everything that differs between two configs as JSON values."""
    if isinstance(old, dict) and isinstance(new, dict):
        out: dict[str, tuple[Any, Any]] = {}
        for key in [*old, *(k for k in new if k not in old)]:
            out |= differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)
        return out
    return {} if old == new else {path: (old, new)}


def fixed(paths: Iterable[str], within: Literal["run", "sweep"]) -> list[str]:
    """Return the paths whose settings may not change between the parts of one run, or when a sweep is relaunched."""
    allowed = {"run", "sweep"} if within == "run" else {"sweep"}
    return [p for p in paths if _may_change(p) not in allowed]


def shown(changed: Mapping[str, tuple[Any, Any]], keys: Iterable[str]) -> str:
    """Return the first five of the changed settings as text, old -> new."""
    return ", ".join(f"{k} {changed[k][0]!r} -> {changed[k][1]!r}" for k in list(keys)[:5])


def _may_change(path: str) -> Any:
    """Return the attribute `may_change` (config.base) of the field at a path, or of the section that holds it."""
    model: type[BaseModel] | None = RunConfig
    for name in path.split("."):
        if model is None or name not in model.model_fields:
            return None
        field = model.model_fields[name]
        if isinstance(field.json_schema_extra, dict) and (mark := field.json_schema_extra.get("may_change")):
            return mark
        choices = (field.annotation, *get_args(field.annotation))
        model = next((c for c in choices if isinstance(c, type) and issubclass(c, BaseModel)), None)
    return None
