"""Bad inputs that were once believed, or ended in a traceback: which fuzzer draws each kind, and how it is told.

test_kinds.py lets every strategy draw until its kinds have come up.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

import strategies as draws
from hypothesis import strategies as st


class Kind(NamedTuple):
    """A kind of bad input: what draws it, and whether a drawn value is of it."""

    draws: st.SearchStrategy[Any]
    is_it: Callable[[Any], Any]


YAML, MODELS = draws.YAML, draws.MODEL_CONFIGS
INDEX = {
    "position": {"step": 12, "epoch": 0},
    "parameters": {"w": [2, 2]},
    "files": {"f": {"slices": {"w": [0, 4], "v": [4, 8]}}},
}
CHANGED_INDEX, DAMAGED_INDEX = draws.changed(INDEX), draws.damaged(json.dumps(INDEX).encode())
WEIGHTS = draws.changed(draws.WEIGHT_INDEX)
RUN = draws.files_with_one_odd(
    {"config.json": {"a": 1}, "stores.json": {"sources": {}}, "status.json": {"state": "finished", "step": 2}, "metrics.jsonl": [{"step": 1}, {"step": 2}]}
)  # fmt: skip
DATA = draws.damaged(b'{"examples": 12, "key": {"input": "a"}}\n{"examples": 3}\n')


def number(path: str, holds: Callable[[float], bool]) -> Kind:
    """A number of a config, or one among others."""

    def is_it(value: Any) -> bool:
        values = value if isinstance(value, list) else [value]
        return any(isinstance(v, int | float) and not isinstance(v, bool) and holds(v) for v in values)

    return Kind(draws.value_of(path), is_it)


def source(key: str, holds: Callable[[float], bool]) -> Kind:
    """A number of a source."""
    return Kind(
        draws.value_of("data.sources"),
        lambda v: (
            isinstance(v, dict)
            and any(
                isinstance(s, dict) and isinstance(s.get(key), float) and holds(s[key]) for s in v.values()
            )
        ),
    )


def config(path: str, holds: Callable[[Any], Any]) -> Kind:
    """A value of a config."""
    return Kind(draws.value_of(path), holds)


def text(path: str, holds: Callable[[str], bool]) -> Kind:
    """A text of a config."""
    return config(path, lambda v: isinstance(v, str) and holds(v))


def shape(key: str, holds: Callable[[Any], bool]) -> Kind:
    """A figure of model.shape."""
    return config("model.shape", lambda v: isinstance(v, dict) and holds(v.get(key)))


def size(holds: Callable[[Any], bool]) -> Kind:
    """A size in a model's config."""
    return Kind(MODELS, lambda m: isinstance(m, dict) and any(holds(m[k]) for k in draws.SIZES if k in m))


def words(command: str, holds: Callable[[list[str]], bool] = lambda _: True) -> Kind:
    """Words of a command line."""
    return Kind(draws.COMMANDS, lambda w: w[0] == command and holds(w))


def holds_text(part: str) -> Callable[[Any], bool]:
    """Whether a value contains a text anywhere."""

    def is_it(value: Any) -> bool:
        if isinstance(value, dict):
            return any(is_it(v) for v in value.values())
        return (
            any(is_it(v) for v in value)
            if isinstance(value, list)
            else isinstance(value, str) and part in value
        )

    return is_it


def file(name: str, holds: Callable[[bytes], bool]) -> Kind:
    """Bytes of a file of a run."""
    return Kind(RUN, lambda files: holds(files[name]))


def parsed(content: bytes) -> Any:
    """Return what the bytes hold; `...` where they are no JSON."""
    with suppress(ValueError, RecursionError):
        return json.loads(content)
    return ...


def slices_of(value: Any) -> Any:
    """Return the slices in a checkpoint's index."""
    with suppress(KeyError, TypeError):
        return value["files"]["f"]["slices"]
    return None


def step_of(content: bytes) -> Any:
    """Return the step of a checkpoint's position."""
    with suppress(KeyError, TypeError):
        return parsed(content)["position"]["step"]
    return None


def slice_of(content: bytes) -> Any:
    """Return the first number of a slice in a checkpoint's index."""
    with suppress(KeyError, TypeError):
        return slices_of(parsed(content))["v"][0]
    return None


KINDS: dict[str, Kind] = {
    "lr inf": number("optim.lr", math.isinf),
    "lr nan": number("optim.lr", math.isnan),
    "weight_decay inf": number("optim.weight_decay", math.isinf),
    "weight_decay nan": number("optim.weight_decay", math.isnan),
    "eps inf": number("optim.eps", math.isinf),
    "eps nan": number("optim.eps", math.isnan),
    "betas of 1 and more": number("optim.betas", lambda v: v >= 1),
    "betas below 0": number("optim.betas", lambda v: v < 0),
    "initializer_range inf": shape("initializer_range", lambda v: isinstance(v, float) and math.isinf(v)),
    "weight inf": source("weight", math.isinf),
    "weight nan": source("weight", math.isnan),
    "take nan": source("take_share", math.isnan),
    "true as a whole number": config("train.max_steps", lambda v: v is True),
    "port above 65535": number("launch.port", lambda v: v > 65535),
    "name of 300 letters": text("name", lambda v: len(v) == 300),
    "odd head size": shape("hidden_size", lambda v: v == 36),
    "timeout of 1e12 minutes": number("deepspeed.timeout_minutes", lambda v: v == 1e12),
    "100,000 threads": number("train.threads_per_rank", lambda v: v == 100_000),
    "line end in run_root": text("run_root", lambda v: "\n#SBATCH" in v),
    "control character in a name": text("name", lambda v: "\x1b" in v),
    "line end in an sbatch line": config("submit.sbatch", lambda v: isinstance(v, list) and any("\n" in str(line) for line in v)),
    "deepspeed.extra of no known key": config("deepspeed.extra", lambda v: isinstance(v, dict) and "x" in v),
    "YAML bomb": Kind(YAML, lambda t: draws.BOMB in t),
    "alias that holds itself": Kind(YAML, lambda t: "&d {sources: *d}" in t),
    "3,000 brackets": Kind(YAML, lambda t: "[" * 3000 in t),
    "3,000 brackets in an override": Kind(draws.OVERRIDES, lambda w: any("[" * 3000 in word for word in w)),
    "model of size 0": size(lambda v: v == 0 and not isinstance(v, bool)),
    "model of negative size": size(lambda v: isinstance(v, int) and v < 0),
    "model of 10 M layers": Kind(MODELS, lambda m: isinstance(m, dict) and m.get("num_hidden_layers") == 10_000_000),
    "size that is no whole number": size(lambda v: isinstance(v, str | float)),
    "weight index that is no object": Kind(WEIGHTS, lambda v: not isinstance(v, dict)),
    "weight_map that is no mapping": Kind(WEIGHTS, lambda v: isinstance(v, dict) and isinstance(v.get("weight_map"), list | str | int)),
    "weight_map without file names": Kind(WEIGHTS, lambda v: isinstance(v, dict) and isinstance(v.get("weight_map"), dict) and any(not isinstance(f, str) for f in v["weight_map"].values())),
    "report on no run": words("report"),
    "watch on no run": words("watch"),
    "compare on no run": words("compare"),
    "a run name that later commands refuse": words("write-run", lambda w: "name=" in w[-1]),
    "export --checkpoint ../": words("export", lambda w: "../" in w),
    "template of 2 ** 2 ** 40": Kind(draws.TEMPLATES, lambda t: "2 ** 2 ** 40" in t),
    "template of 10 GB": Kind(draws.TEMPLATES, lambda t: "'x' * 10000000000" in t),
    "terminal sequence in a record": Kind(draws.RECORDS, holds_text("\x1b[2J")),
    "HTML in a record": Kind(draws.RECORDS, holds_text("<script>")),
    "index of too few slices": Kind(CHANGED_INDEX, lambda v: slices_of(v) == {"w": [0, 4]}),
    "digit of a position": Kind(DAMAGED_INDEX, lambda c: type(step_of(c)) is int and step_of(c) != 12),
    "digit of a slice": Kind(DAMAGED_INDEX, lambda c: type(slice_of(c)) is int and slice_of(c) != 4),
    "wrong type in an index": Kind(CHANGED_INDEX, lambda v: isinstance(v, dict) and isinstance(v.get("position"), list | str)),
    "odd line in metrics.jsonl": file("metrics.jsonl", lambda c: any(not isinstance(parsed(line), dict) for line in c.split(b"\n") if line)),
    "mistyped status.json": file("status.json", lambda c: isinstance(parsed(c), dict) and not isinstance(parsed(c).get("state"), str)),
    "torn config.json": file("config.json", lambda c: parsed(c) is ...),
    "mistyped stores.json": file("stores.json", lambda c: isinstance(parsed(c), list)),
    "torn manifest.json": Kind(DATA, lambda c: c.startswith(b'{"exam') and parsed(c) is ... and len(c) < 30),
    "tokenizer.json with a hole": Kind(DATA, lambda c: c.endswith(b"\x00\x00")),
    "eval/*.jsonl with a line twice": Kind(DATA, lambda c: c.count(b'{"examples": 3}') == 2),
}  # fmt: skip
