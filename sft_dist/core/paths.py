"""Where files that ship beside the package lie: conf/, launch/, slurm/."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent


def resource(name: str) -> Path:
    """Return the folder `name`, from the repository of an editable install or from inside an installed wheel."""
    for root in (PACKAGE.parent, PACKAGE / "_resources"):
        if (root / name).is_dir() and (root != PACKAGE.parent or (root / "pyproject.toml").is_file()):
            return root / name
    raise FileNotFoundError(f"{name}/ lies neither beside the package nor inside it; reinstall sft-dist")
