"""Files of the project that others rely on: constraints name every dependency within its bounds, SECURITY.md names tests that exist."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def _name(word: str) -> str:
    return re.sub(r"[-_.]+", "-", word).lower()


def test_constraints_hold_every_dependency_within_its_bounds() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pinned = {_name(name): version for name, version in (line.split("==") for line in lines)}
    for text in PROJECT["dependencies"]:
        wanted = Requirement(text)
        assert wanted.specifier.contains(pinned[_name(wanted.name)], prereleases=True), text


def test_versions_with_known_holes_are_excluded() -> None:
    bounds = {_name(r.name): r.specifier for r in map(Requirement, PROJECT["dependencies"])}
    for name, bad in {
        "jinja2": "3.1.5",
        "h11": "0.14.0",
        "pyarrow": "14.0.0",
        "pydantic": "2.3.0",
        "pyyaml": "5.3",
    }.items():
        assert not bounds[name].contains(bad), f"{name} {bad}"


def test_the_tests_that_security_names_exist() -> None:
    named = re.findall(r"`(tests/[\w/.]+)`", (ROOT / "SECURITY.md").read_text())
    assert len(named) >= 10
    assert [n for n in named if not (ROOT / n).exists()] == []
