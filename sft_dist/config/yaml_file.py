"""A YAML file that a person wrote -> plain containers, in bounded time and memory, each mistake with its line.

PyYAML reads YAML 1.1, where `on` and `no` are truth values, `12:30` a number of seconds, `017` fifteen, a date an object,
and `1e-5` a text. Here plain scalars are those of YAML 1.2: true, false, null, decimal, hexadecimal and octal (`0o17`)
numbers and floats; everything else, keys included, is the text that stands there.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from sft_dist.core.errors import UserError

MAX_BYTES = 4 << 20
MAX_DEPTH = 64
MAX_NODES = 200_000  # after every alias is written out


_TAG = "tag:yaml.org,2002:"
_SCALARS = (  # (type, pattern, first characters)
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL", "~nN"),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+0123456789.",
    ),
    ("merge", r"<<", "<"),
)


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the scalars of YAML 1.2; refuses a key that stands twice, deep nesting, endless aliases."""

    yaml_implicit_resolvers = {  # noqa: RUF012  PyYAML's own protocol
        "": [(_TAG + "null", re.compile(r"^$"))]
    }
    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise yaml.YAMLError(f"it is nested more than {MAX_DEPTH} deep, and no config needs that")
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key in (k for k, _ in node.value if isinstance(k, yaml.ScalarNode) and k.value != "<<"):
            if key.value in seen:
                raise yaml.YAMLError(f"{key.value!r} stands twice, again on line {key.start_mark.line + 1}")
            seen.add(key.value)
            key.tag = _TAG + "str"  # a key is a name, whatever it looks like
        return node


def _integer(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    return int(str(loader.construct_scalar(node)).lower().removeprefix("+"), 0)


def _float(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float:
    return float(str(loader.construct_scalar(node)).lower().replace(".inf", "inf").replace(".nan", "nan"))


_Loader.add_constructor(_TAG + "int", _integer)
_Loader.add_constructor(_TAG + "float", _float)
for _name, _pattern, _first in _SCALARS:
    for _character in _first:
        _Loader.yaml_implicit_resolvers.setdefault(_character, []).append(
            (_TAG + _name, re.compile(rf"^(?:{_pattern})$"))
        )


def read_yaml(file: Path) -> Any:
    """Read a YAML file.

    Raises:
        UserError: When it is too large, not YAML, not UTF-8, nested too deep, or grows without end by its aliases.
    """
    try:
        with file.open("rb") as opened:  # a device or a pipe does not say how large it is
            data = opened.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise UserError(
                f"{file} is larger than {MAX_BYTES >> 20} MiB, so it is no config; check the path"
            )
        loader = _Loader(data.decode("utf-8-sig"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is not readable as YAML: {_said(error)}") from None
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _count(node, {}, set())
        return loader.construct_document(node)
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        raise UserError(f"{file} is not readable as YAML: {_said(error)}") from None
    finally:
        loader.dispose()


def _count(node: yaml.Node, known: dict[int, int], above: set[int]) -> int:
    """Return the nodes of a tree with its aliases written out; refuse one that is endless or too large."""
    if id(node) in above:
        raise yaml.YAMLError(f"the alias on line {node.start_mark.line + 1} holds itself, so it has no end")
    if id(node) not in known:
        children: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            children = [n for pair in node.value for n in pair]
        elif isinstance(node, yaml.SequenceNode):
            children = node.value
        known[id(node)] = 1 + sum(_count(child, known, above | {id(node)}) for child in children)
        if known[id(node)] > MAX_NODES:
            raise yaml.YAMLError(f"with its aliases written out it has more than {MAX_NODES:,} entries")
    return known[id(node)]


def _said(error: Exception) -> str:
    return " ".join(str(error).split())[:500]
