"""The name of a cluster -> its site profile, a YAML file among the user's own settings."""

from __future__ import annotations

import os
from pathlib import Path
from typing import get_args

import pydantic

from sft_dist.config.cluster import SiteProfile
from sft_dist.config.yaml_file import read_yaml
from sft_dist.core.errors import UserError, nearest
from sft_dist.core.files import expanded
from sft_dist.core.process import resource

VARIABLE = "SFT_DIST_CLUSTERS"
# what pydantic says of these would not help: YAML made a number of what looked like one, even of 24:00:00
HINTS = {
    "string_type": "this is a text; put quotes around it",
    "tuple_type": "this is a list; put brackets around it, as in [x]",
    "model_type": "this is a section; give its keys, as in {key: value}",
}


def profiles() -> Path:
    """Return the folder of site profiles: SFT_DIST_CLUSTERS, or clusters/ among the user's settings."""
    if folder := os.environ.get(VARIABLE):
        return expanded(folder)
    settings = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return expanded(settings) / "sft_dist" / "clusters"


def load_site(name: str) -> SiteProfile:
    """Read and validate a site profile.

    Args:
        name: Of a profile in `profiles()`, or the path of a YAML file.

    Raises:
        UserError: When there is no such profile, or with every mistake in it.
    """
    is_path = "/" in name or name.endswith((".yaml", ".yml"))
    file = expanded(name) if is_path else profiles() / f"{name}.yaml"
    if (
        not file.is_file()
        and not is_path
        and (shipped := resource("slurm") / "sites" / f"{name}.yaml").is_file()
    ):
        file = shipped
    if not file.is_file():
        raise UserError(_missing(name, file, is_path))
    values = read_yaml(file)
    if not isinstance(values, dict | None):
        raise UserError(
            f"the site profile {file} holds a {type(values).__name__}, not a mapping; see docs/cluster.md for its keys"
        )
    try:
        return SiteProfile.model_validate(values or {})
    except pydantic.ValidationError as error:
        mistakes = "; ".join(_explain(e["loc"], e["type"], e["msg"]) for e in error.errors())
        raise UserError(f"the site profile {file} cannot be used: {mistakes}") from None


def _missing(name: str, file: Path, is_path: bool) -> str:
    if is_path:
        return f"cluster={name} names no file, so it is unknown how to submit there; check the path"
    known = sorted(p.stem for p in file.parent.glob("*.yaml"))
    has = f"that folder has {', '.join(known)}.{nearest(name, known)}" if known else "that folder has none"
    return (
        f"cluster={name} has no site profile {file}, so it is unknown how to submit there ({has}); "
        "write one (docs/cluster.md shows an example)"
    )


def _explain(loc: tuple[int | str, ...], kind: str, message: str) -> str:
    path = ".".join(str(p) for p in loc)
    if kind in HINTS:
        return f"{path}: {HINTS[kind]}"
    if kind != "extra_forbidden":
        return f"{path}: {message.removeprefix('Value error, ')}".removeprefix(": ")
    model: type[pydantic.BaseModel] = SiteProfile
    for key in loc[:-1]:
        annotation = model.model_fields[str(key)].annotation
        for inner in (annotation, *get_args(annotation)):
            if isinstance(inner, type) and issubclass(inner, pydantic.BaseModel):
                model = inner
    return f"{path}: unknown key.{nearest(str(loc[-1]), model.model_fields)}"
