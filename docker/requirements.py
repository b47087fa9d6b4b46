"""Print the requirements of pyproject.toml without torch, one a line: `requirements.py EXTRA...`.

Images install them before the source is copied, so a changed source line rebuilds one small layer.
"""  # noqa: INP001  a script, not a package

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

OTHER_STAGES = {"torch", "deepspeed", "flash-attn"}  # torch first; the other two are built against it


def name_of(requirement: str) -> str:
    """Return the normalised package name of a requirement."""
    return re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0].lower().replace("_", "-")


def requirements(project: dict, extras: list[str]) -> list[str]:
    """Return the requirements of the project and of `extras`, in their order."""
    lines = [*project["dependencies"], *(r for e in extras for r in project["optional-dependencies"][e])]
    return [r for r in lines if name_of(r) not in OTHER_STAGES]


if __name__ == "__main__":
    table = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    sys.stdout.write("\n".join(requirements(table, sys.argv[1:])) + "\n")
