"""Overrides with several values -> what a sweep searches. Hydra's own grammar; its objects stay inside this module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from sft_dist.core.errors import UserError

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override


AT_MOST = 1000  # trials of a grid: each is validated beforehand, and Slurm's arrays end there too (MaxArraySize 1001)


@dataclass(frozen=True, kw_only=True, slots=True)
class Values:
    """A parameter that takes one of a list, as overrides write them. `numeric`: they have an order and one step."""

    texts: tuple[str, ...]
    numeric: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """A parameter that takes any number between two, both included."""

    low: float
    high: float
    log: bool
    integer: bool


def split(overrides: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Return the overrides that all trials share, and config key -> sweep expression of the others.

    Raises:
        UserError: For what Hydra's grammar does not accept.
    """
    fixed: list[str] = []
    space: dict[str, str] = {}
    for text in overrides:
        override = _parse(text)
        if override.is_sweep_override():
            space[override.get_key_element()] = text.split("=", 1)[1]
        else:
            fixed.append(text)
    return fixed, space


def parameter(key: str, expression: str) -> Values | Interval:
    """Return what one parameter may be.

    Raises:
        UserError: For an expression that is no sweep.
    """
    from hydra.core.override_parser.types import Glob, IntervalSweep, RangeSweep

    override = _parse(f"{key}={expression}")
    value = override.value()
    if isinstance(value, Glob):
        raise UserError(
            f"{key}={expression}: glob() is not offered for sweeps; list the choices, as in {key}=a,b"
        )
    if not override.is_sweep_override():
        raise UserError(
            f"sweep.space.{key}={expression!r} has one value only, so there is nothing to search; write choice(a,b), range(1,5) "
            "or interval(0.0,0.1), or set the key itself"
        )
    if isinstance(value, IntervalSweep):
        low, high = value.start, value.end
        assert low is not None
        assert high is not None
        log = "log" in value.tags
        if low >= high or (log and low <= 0):
            raise UserError(
                f"{key}={expression} is empty; give a lower and a higher end{', above zero for a log scale' if log else ''}"
            )
        return Interval(low=low, high=high, log=log, integer=isinstance(low, int) and isinstance(high, int))
    texts = tuple(islice(override.sweep_string_iterator(), AT_MOST + 1))
    if len(texts) > AT_MOST:
        raise UserError(
            f"{key}={expression} has more than {AT_MOST} values, too many to try; give fewer, or search between two ends with "
            f"sweep.method=optuna {key}=interval(LOW,HIGH)"
        )
    if not texts:
        raise UserError(f"{key}={expression} has no value; a range ends before its second number")
    return Values(texts=texts, numeric=isinstance(value, RangeSweep) and not value.shuffle)


def combinations(space: Mapping[str, str]) -> list[dict[str, str]]:
    """Return every combination of a space of lists, the last parameter turning fastest, as Hydra's own sweeper does.

    Raises:
        UserError: When a parameter is an interval, or there are more than `AT_MOST`.
    """
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    count = 1
    for key, expression in space.items():
        found = parameter(key, expression)
        if isinstance(found, Interval):
            raise UserError(
                f"{key}={expression} has no list of values, which a grid needs; "
                "use choice() or range(), or sweep.method=optuna"
            )
        count *= len(found.texts)
    if count > AT_MOST:
        raise UserError(
            f"the grid has {count:,} combinations, and more than {AT_MOST:,} are no sweep that ends; give fewer values, or draw some of "
            "them with sweep.method=optuna"
        )
    points = BasicSweeper.split_arguments([_parse(f"{k}={e}") for k, e in space.items()], None)[0]
    return [dict(word.split("=", 1) for word in point) for point in points]


def corners(space: Mapping[str, str]) -> list[dict[str, str]]:
    """Return points that together show every end and every choice of a space once, to validate them beforehand."""
    ends = {k: _ends(parameter(k, e)) for k, e in space.items()}
    first = {k: values[0] for k, values in ends.items()}
    return [first, *({**first, k: v} for k, values in ends.items() for v in values[1:])]


def _ends(found: Values | Interval) -> list[str]:
    if isinstance(found, Values):
        return list(found.texts)
    return [repr(int(x) if found.integer else float(x)) for x in (found.low, found.high)]


def _parse(text: str) -> Override:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return OverridesParser.create().parse_override(text)
    except HydraException as error:
        said = " ".join(str(error).split("\n\n")[0].split())
        raise UserError(
            f"{text!r} is no override ({said}); write key=value, or key=a,b for several values"
        ) from None
