"""The strategies draw every kind of bad input that was seen once."""

from __future__ import annotations

from typing import Any

from bad_inputs import KINDS
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

OPTIONS = settings(
    max_examples=2_000,
    derandomize=True,
    database=None,
    deadline=None,
    phases=(Phase.generate,),
    suppress_health_check=list(HealthCheck),
)


class EnoughError(Exception):
    """All kinds of a strategy have come up."""


def not_drawn(strategy: st.SearchStrategy[Any]) -> set[str]:
    """Return the kinds of a strategy that it does not draw."""
    missing = {name for name, kind in KINDS.items() if kind.draws is strategy}

    @OPTIONS
    @given(strategy)
    def look(value: Any) -> None:
        missing.difference_update([name for name in missing if KINDS[name].is_it(value)])
        if not missing:
            raise EnoughError

    try:
        look()
    except EnoughError:
        return set()
    return missing


def test_every_kind_is_drawn() -> None:
    assert len(KINDS) == 53
    strategies = {id(kind.draws): kind.draws for kind in KINDS.values()}
    missing: set[str] = set().union(*(not_drawn(strategy) for strategy in strategies.values()))
    assert not missing
