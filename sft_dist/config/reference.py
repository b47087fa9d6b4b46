"""The config reference, from the schema: `python -m sft_dist.config.reference > docs/config.md`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from sft_dist.config.construct import SetConfig
from sft_dist.config.load import group_choices, tagged_models
from sft_dist.config.root import RunConfig
from sft_dist.config.sources import SourceConfig
from sft_dist.config.user_files import PatternFile, PromptFile

TYPES = {
    "dict": "mapping",
    "tuple": "list",
    "bool": "true or false",
    "int": "int",
    "float": "number",
    "str": "text",
}

HEAD = """# Config reference

Written from the schema (`sft_dist/config/`) by `make docs`; a test compares. Every key can stand in your own YAML file
(`sft-dist train my.yaml`) or on the command line (`sft-dist train my.yaml optim.lr=2e-5`); the command line wins.
An unknown key is an error that names the nearest known one.

Shipped experiments (`experiment=NAME`): {experiments}. Launch settings (`launch=NAME`): {launches}.
"""


def reference() -> str:
    """Return the whole page as Markdown."""
    head = HEAD.format(
        experiments=", ".join(group_choices("experiment")), launches=", ".join(group_choices("launch"))
    )
    return head + "".join(_sections())


def _sections() -> Iterator[str]:
    yield from _section("", RunConfig)
    yield "\n## data.sources.NAME\n\nEvery source has a `kind`, which decides its other keys.\n"
    for kind, model in tagged_models(SourceConfig, "kind").items():
        yield from _section(f"data.sources.NAME (kind: {kind})", model, level="###")
    yield from _section("The file of patterns", PatternFile, level="###")
    yield "\n## construct.sets.NAME\n\nEvery generated set has a `method`, which decides its other keys.\n"
    for method, model in tagged_models(SetConfig, "method").items():
        yield from _section(f"construct.sets.NAME (method: {method})", model, level="###")
    yield from _section("The file of prompts", PromptFile, level="###")


def _section(path: str, model: type[BaseModel], level: str = "##") -> Iterator[str]:
    text = " ".join((model.__doc__ or "").split())
    yield f"\n{level} {path or 'The run'}\n\n{text}\n\n| key | default | meaning |\n|---|---|---|\n"
    inner = []
    for name, field in model.model_fields.items():
        below = _model_of(field.annotation)
        if below is not None:
            inner.append((f"{path}.{name}" if path else name, below))
        if below is None or not isinstance(field.default, BaseModel):
            meaning = f"{_type(field.annotation)}. {field.description or ''}".strip()
            yield f"| `{name}` | {_default(field)} | {meaning} |\n"
    for section, below in inner:
        yield from _section(section, below)


def _model_of(annotation: Any) -> type[BaseModel] | None:
    options = [annotation, *get_args(annotation)]
    return next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)


def _default(field: Any) -> str:
    if field.default is PydanticUndefined:
        return "`{}`" if field.default_factory is dict else "required"
    value = list(field.default) if isinstance(field.default, tuple) else field.default
    value = value.replace("\n", "\\n") if isinstance(value, str) else value
    return f"`{value if isinstance(value, str) else json.dumps(value, default=_fields)}`"


def _fields(value: BaseModel) -> dict[str, Any]:
    return value.model_dump()


def _type(annotation: Any) -> str:
    below = _model_of(annotation)
    if below is not None:
        return (below.__doc__ or "").split("\n", maxsplit=1)[0].removesuffix(".")
    choices = [
        c for a in (annotation, *get_args(annotation)) if get_origin(a) is Literal for c in get_args(a)
    ]
    if choices:
        return " \\| ".join(f"`{c}`" for c in dict.fromkeys(choices))
    text = str(annotation).lower()
    return next(shown for key, shown in TYPES.items() if key in text)


if __name__ == "__main__":
    sys.stdout.write(reference())
