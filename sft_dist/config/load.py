"""The door: Hydra composes conf/ and overrides, pydantic validates once. Every error is listed with its path.

A user's own YAML file is laid over the shipped defaults; overrides on the command line win over both.
"""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import pydantic
from pydantic import BaseModel

from sft_dist.config.construct import SetConfig
from sft_dist.config.other_trainers import OTHER_TRAINERS_KEYS
from sft_dist.config.plugins import load_plugins
from sft_dist.config.root import RunConfig
from sft_dist.config.sources import SourceConfig
from sft_dist.config.yaml_file import MAX_DEPTH, read_yaml
from sft_dist.core.errors import UserError, nearest
from sft_dist.core.files import CHECKSUM, expanded, read_object
from sft_dist.core.process import resource

DEFAULT_EXPERIMENT = "demo"
MAX_OVERRIDE = 20_000  # characters

# mappings whose entries are of several kinds: path -> (the union, the field that tells them apart)
TAGGED = {("data", "sources"): (SourceConfig, "kind"), ("construct", "sets"): (SetConfig, "method")}

# what pydantic says of these names no remedy
WORDS = {
    "int_parsing": "this is not a whole number; write one, such as 4",
    "int_type": "this is not a whole number; write one, such as 4",
    "int_from_float": "this is not a whole number; leave the part behind the point out",
    "float_parsing": "this is not a number; write one, such as 0.1 or 1.0e-5",
    "float_type": "this is not a number; write one, such as 0.1 or 1.0e-5",
    "finite_number": "this is infinite or not a number; write a finite one",
    "bool_parsing": "this is neither true nor false; write one of them",
    "bool_type": "this is neither true nor false; write one of them",
    "string_type": "this is not a text; put quotes around it",
}


def load_config(overrides: Sequence[str] = (), file: Path | None = None) -> RunConfig:
    """Compose and validate the config of a run.

    Args:
        overrides: Hydra overrides, such as `train.epochs=2`, `experiment=demo`, `~data.sources.x`.
        file: A user's YAML file that is laid over the defaults.

    Raises:
        UserError: With every mistake, its path in the config and a remedy.
    """
    return validate(compose(overrides, file))


def validate(values: dict[str, Any]) -> RunConfig:
    """Import the plugins and validate plain values; raise one UserError that lists all mistakes."""
    named = values.get("plugins")
    load_plugins(named if isinstance(named, (list, tuple)) else ())
    try:
        return RunConfig.model_validate(values)
    except pydantic.ValidationError as error:
        lines = [*(_explain(dict(e)) for e in error.errors()), *_missing_files(values)]
        raise UserError(
            "the config has {} mistake{}:\n{}".format(len(lines), "s" * (len(lines) > 1), "\n".join(lines))
        ) from None


def _missing_files(values: dict[str, Any]) -> Iterator[str]:
    """Name the local files that a config with other mistakes asks for and that are not there."""

    def section(of: Any, key: str) -> dict[str, Any]:
        found = of.get(key) if isinstance(of, dict) else None
        return found if isinstance(found, dict) else {}

    named = [("model.path", section(values, "model").get("path"), False)]
    for name, source in section(section(values, "data"), "sources").items():
        if isinstance(source, dict):
            named.append(
                (
                    f"data.sources.{name}.path",
                    source.get("path"),
                    source.get("kind") not in ("hub", "promptsource", "patterns"),
                )
            )
    for key, path, local in named:
        if (
            isinstance(path, str)
            and path
            and not glob.has_magic(path)
            and (local or path.startswith(("/", ".", "~")))
        ):
            try:
                there = expanded(path).exists()
            except UserError as error:
                yield f"  {key}: {error}"
            else:
                if not there:
                    yield f"  {key}={path}: {expanded(path)} does not exist; check the path"


def config_to_json(config: RunConfig) -> str:
    """Return the resolved config as JSON text; `config_from_json` of it equals `config`."""
    return json.dumps(config.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n"


def config_from_json(text: str) -> RunConfig:
    """Read a frozen config."""
    return validate({k: v for k, v in json.loads(text).items() if k != CHECKSUM})


def load_run_config(run_dir: Path) -> RunConfig:
    """Return the frozen config of a run folder.

    Raises:
        UserError: When it is no run folder.
    """
    file = run_dir / "config.json"
    if not file.is_file():
        raise UserError(
            f"{run_dir} is not a run folder (it has no config.json); name one under run_root, such as runs/demo"
        )
    remedy = (
        "it says what the run was trained with, so nothing can go on with the run without it: put a copy of it there "
        "(checkpoint.remote has one), or start anew under another name or with checkpoint.resume=never"
    )
    return validate(read_object(file, remedy))


def compose(overrides: Sequence[str], file: Path | None) -> dict[str, Any]:
    """Return the composed, resolved values as plain containers. Hydra and OmegaConf stay inside this function."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.config_store import ConfigStore
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    conf = resource("conf")
    groups = set(config_groups())
    args = [_prefixed(o, groups) for o in overrides]
    own = _read_user_file(file) if file is not None else None
    if own is None and not any(o.split("=")[0].lstrip("+~") == "experiment" for o in overrides):
        args.insert(0, f"experiment={DEFAULT_EXPERIMENT}")
    if own is not None:
        picks = own.pop("defaults", [])
        args = [*_group_picks(picks, groups, file), "+user_file=own", *args]
    GlobalHydra.instance().clear()
    try:
        if own is not None:
            ConfigStore.instance().store(group="user_file", name="own", node=own, package="_global_")
        with initialize_config_dir(config_dir=str(conf), version_base="1.3"):
            cfg = hydra_compose(config_name="config", overrides=args)
        values = OmegaConf.to_container(cfg, resolve=True)
    except (HydraException, OmegaConfBaseException, ValueError) as error:  # Hydra's own slips are ValueErrors
        raise UserError(_hydra_message(error, groups)) from None
    finally:
        GlobalHydra.instance().clear()
    assert isinstance(values, dict)
    return {str(k): v for k, v in values.items()}


def config_groups() -> list[str]:
    """Return the shipped config groups."""
    return sorted(p.name for p in resource("conf").iterdir() if p.is_dir())


def group_choices(group: str) -> list[str]:
    """Return the shipped choices of a config group."""
    return sorted(p.stem for p in (resource("conf") / group).glob("*.yaml"))


def _prefixed(override: str, groups: set[str]) -> str:
    """Let value overrides through to pydantic, which refuses unknown keys with a better message than Hydra."""
    key = override.split("=", 1)[0]
    if len(override) > MAX_OVERRIDE or max(map(override.count, "[{(")) > MAX_DEPTH:
        raise UserError(
            f"the override of {key[:40]!r} is longer than {MAX_OVERRIDE:,} characters or holds more than {MAX_DEPTH} brackets; "
            "write such a value into a YAML file"
        )
    if "=" not in override and not override.startswith("~"):
        raise UserError(
            f"{override!r} is neither a command's file nor an override; write overrides as key=value, such as train.epochs=2"
        )
    if key in groups and override[len(key) + 1 :].strip() in ("null", ""):
        raise UserError(
            f"{override!r} picks nothing from {key}/; use one of {', '.join(group_choices(key))}, or ~{key} for none"
        )
    if key.lstrip("+~").split(".")[0] == "hydra":
        raise UserError(
            f"{override!r} sets Hydra itself, which only composes the config here, so it would do nothing; leave it out"
        )
    value = override[len(key) + 1 :]
    if re.fullmatch(r"~[^'\",]*", value):  # a home folder, which Hydra takes in quotes only
        override = f"{key}='{value}'"
    is_value = value.lstrip().startswith("{")  # model={path: x}: a section, no choice of the group
    return override if override[0] in "+~" or (key in groups and not is_value) else f"++{override}"


def _read_user_file(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise UserError(f"the config file {file} does not exist, so there is nothing to run; check the path")
    values = read_yaml(file)
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(
            f"{file} holds a {type(values).__name__}, not a mapping of config sections; see docs/config.md"
        )
    return values


def _group_picks(picks: Any, groups: set[str], file: Path | None) -> list[str]:
    """Turn the `defaults:` list of a user's file into overrides of config groups."""
    out: list[str] = []
    for pick in picks if isinstance(picks, list) else [picks]:
        if pick == "_self_":
            continue
        if not isinstance(pick, dict) or len(pick) != 1 or next(iter(pick)) not in groups:
            raise UserError(
                f"{file}: defaults entry {pick!r} names no config group; use one of {sorted(groups)} as `group: choice`"
            )
        group, choice = next(iter(pick.items()))
        out.append(f"{group}={choice}")
    return out


def _hydra_message(error: Exception, groups: set[str]) -> str:
    text = str(error).split("\n\nConfig search path")[0].strip()
    for group in groups:
        if f"'{group}/" in text:
            return f"{text.splitlines()[0].rstrip('.')}; {group} has: {', '.join(group_choices(group))}"
    if "multirun" in text:
        word = text.split("'")[1].removeprefix("++")
        return (
            f"{word!r} has several values, but this command takes one of each; quote it if it is one (key='\"a,b\"'), put brackets "
            "around a list (key=[a,b]), or try them all: sft-dist sweep"
        )
    said = " ".join(text.split("\nSee https://")[0].replace("++", "").split())
    remedy = ""
    if re.search("Lexer|no viable alternative|mismatched input|extraneous input|token recognition", said):
        remedy = "; close every bracket and quote, and put a value with special characters in quotes: key='\"a: b\"'"
    return f"the overrides cannot be composed: {said}{remedy}"


def _explain(error: dict[str, Any]) -> str:
    """One line a mistake: path, cause, remedy."""
    loc = [str(p) for p in error["loc"]]
    path = ".".join(_without_tags(loc))
    kind, message = error["type"], error["msg"].removeprefix("Value error, ")
    if kind == "extra_forbidden":
        key = loc[-1]
        if hint := OTHER_TRAINERS_KEYS.get(key):
            return f"  {path}: not a key of ours; {hint}"
        section = _section(loc[:-1])
        choices = list(section.model_fields) if section else []
        elsewhere = _find_key(key)
        hint = nearest(key, choices) or (
            f" Did you mean {elsewhere!r}?" if elsewhere else f" Known here: {', '.join(choices)}."
        )
        return f"  {path}: unknown key.{hint}"
    if kind == "value_error":
        return f"  {path}: {message}" if path else f"  {message}"
    if kind in {"union_tag_not_found", "union_tag_invalid"}:
        return f"  {path}.{TAGGED.get((loc[0], loc[1]), (None, 'kind'))[1]}: {message}"
    if kind in {"model_type", "model_attributes_type"}:
        message = "this is a section of its own, not one value; write {} for its defaults, or name its keys"
    elif kind == "tuple_type":
        message = "this is a list; put brackets around it, as in [x]"
    elif kind == "string_type" and isinstance(error.get("input"), bool | int | float):
        message = f"this is not a text; quote it: {str(error['input'])!r}"
    elif kind in WORDS:
        message = WORDS[kind]
    shown = json.dumps(error.get("input"), default=str)
    return f"  {path}={shown if len(shown) < 80 else shown[:77] + '...'}: {message}"


def _without_tags(loc: list[str]) -> list[str]:
    """Drop the tag that pydantic puts after the name of a discriminated source or set."""
    if len(loc) > 3 and tuple(loc[:2]) in TAGGED:
        return [*loc[:3], *loc[4:]]
    return loc


def _section(loc: list[str]) -> type[BaseModel] | None:
    """Return the model that stands at a path of the config."""
    if len(loc) > 3 and (union := TAGGED.get((loc[0], loc[1]))):  # data.sources.<name>.<kind>
        return tagged_models(*union).get(loc[3])
    model: Any = RunConfig
    for name in loc:
        if name not in model.model_fields:
            return None
        annotation = model.model_fields[name].annotation
        model = next(
            (
                a
                for a in (annotation, *get_args(annotation))
                if isinstance(a, type) and issubclass(a, BaseModel)
            ),
            None,
        )
        if model is None:
            return None
    return model  # type: ignore[no-any-return]


def tagged_models(union: Any, tag: str) -> dict[str, type[BaseModel]]:
    """Return the models of a discriminated union by their tag."""
    return {get_args(m.model_fields[tag].annotation)[0]: m for m in get_args(get_args(union)[0])}


def _find_key(key: str) -> str | None:
    """Return the full path of a key that exists in another section."""
    for name, field in RunConfig.model_fields.items():
        model = field.annotation
        if isinstance(model, type) and issubclass(model, BaseModel) and key in model.model_fields:
            return f"{name}.{key}"
    return None
