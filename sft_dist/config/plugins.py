"""Modules of the user's own that add to the tables: imported before a config is validated, by the command line and by every rank.

A module calls `sft_dist.api.add_metric`, `add_filter` or `add_callback`. What it adds under a name that is taken is refused.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from sft_dist.core.errors import UserError
from sft_dist.core.files import expanded, fingerprint

METRICS: dict[str, Any] = {}
"""Name -> evals.metrics.Metric, of plugins."""
FILTERS: dict[str, Any] = {}
"""Name -> class of a rule, of plugins."""
CALLBACKS: dict[str, Any] = {}
"""Name -> what makes a callback, of plugins."""


def load_plugins(names: Iterable[str]) -> None:
    """Import modules, once.

    Args:
        names: Importable modules (`pkg.module`), or files (`my.py`).

    Raises:
        UserError: When one cannot be imported.
    """
    for name in names:
        if not isinstance(name, str):
            continue  # validation says so
        try:
            _module(name)
        except UserError:
            raise
        except Exception as error:  # noqa: BLE001  whatever a module of the user's raises
            raise UserError(
                f"plugins: {name} cannot be imported ({type(error).__name__}: {error}), so what it adds is not there; mend it, or take it out of plugins"
            ) from None


def plugins_fingerprint(names: Iterable[str]) -> str:
    """Return 32 hex digits that change with the text of the modules."""
    return fingerprint([source_of(_module(name)) for name in names])


def source_of(thing: Any) -> str:
    """Return the text of the module that defines something; empty where it has none."""
    module = thing if isinstance(thing, ModuleType) else inspect.getmodule(thing)
    try:
        return inspect.getsource(module) if module else ""
    except (OSError, TypeError):
        return ""


def _module(name: str) -> ModuleType:
    if not name.endswith(".py"):
        return importlib.import_module(name)
    file = expanded(name).resolve()
    if not file.is_file():
        raise UserError(f"plugins: {name} is no file, so what it adds is not there; check the path")
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))  # workers that are spawned import it from there as well
    module = importlib.import_module(file.stem)
    if Path(module.__file__ or "").resolve() != file:
        raise UserError(
            f"plugins: {name} has the name of another module ({module.__file__}), which would be imported in its place; rename the file"
        )
    return module
