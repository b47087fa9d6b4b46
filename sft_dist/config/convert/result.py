"""What a conversion collects: values of our config, what was mapped, what is not needed, what cannot be had."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import yaml


@dataclass(kw_only=True, slots=True)
class Conversion:
    """A conversion under way, and its outcome.

    Attributes:
        trainer: Whose config it was.
        name: Of the run.
        values: Our config, nested.
        mapped: (their key, ours, remark).
        not_needed: (their key, why).
        cannot: (their key, why, whether the result changes by it).
        close: Keys that were mapped to something that trains nearly the same, such as 8-bit AdamW to AdamW.
        defaults: Keys of ours that were written because the other trainer's default differs.
        files: Further files to write beside the config, by name.
    """

    trainer: str
    name: str
    values: dict[str, Any] = field(default_factory=dict)
    mapped: list[tuple[str, str, str]] = field(default_factory=list)
    not_needed: list[tuple[str, str]] = field(default_factory=list)
    cannot: list[tuple[str, str, bool]] = field(default_factory=list)
    close: list[str] = field(default_factory=list)
    defaults: list[str] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)

    @property
    def changes(self) -> list[str]:
        """The keys that cannot be had and without which the result is another."""
        return [key for key, _, changes in self.cannot if changes]

    def set(self, path: str, value: Any) -> None:
        """Set a value of our config by its dotted path."""
        inner = self.values
        *above, last = path.split(".")
        for key in above:
            inner = inner.setdefault(key, {})
        inner[last] = value

    def get(self, path: str) -> Any:
        """Return a value of our config that was set, else None."""
        inner: Any = self.values
        for key in path.split("."):
            inner = inner.get(key) if isinstance(inner, dict) else None
        return inner

    def map(self, key: str, path: str, value: Any, remark: str = "", *, close: bool = False) -> None:
        """Record that a key of theirs became one of ours."""
        self.set(path, value)
        self.mapped.append((key, f"{path}={_short(value)}", remark))
        if close:
            self.close.append(key)

    def drop(self, key: str, why: str) -> None:
        """Record that a key is not needed here."""
        self.not_needed.append((key, why))

    def refuse(self, key: str, why: str, *, changes: bool = True) -> None:
        """Record that what a key asks for cannot be had."""
        self.cannot.append((key, why, changes))

    def yaml(self) -> str:
        """Return the config as YAML, what cannot be had on top as comments."""
        head = [f"# Converted from a config of {self.trainer}: sft-dist check this file before training."]
        head += [
            f"# CANNOT{' (the result changes)' if changes else ''}: {key}: {why}"
            for key, why, changes in self.cannot
        ]
        text = yaml.safe_dump(self.values, sort_keys=False, allow_unicode=True, width=110)
        return "\n".join(re.sub(r"[\x00-\x1f]", " ", line) for line in head) + "\n" + text


def _short(value: Any) -> str:
    text = "true" if value is True else "false" if value is False else str(value)
    return text if len(text) <= 60 else text[:57] + "..."
