"""Which calls of a step would wait for a GPU, counted by call site on a CPU: the loop's own thread only.

A call that brings a value to the host, or whose result's size depends on values, waits for everything before it; so does
a copy to a device that is not said to be non-blocking.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any, Self

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

VALUES = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "repeat_interleave", "equal"}
COPIES = {"to", "cuda", "tensor", "copy_"}
FETCHES = {"tolist", "cpu", "numpy"}
LIBRARIES = ("/torch/", "/contextlib.py", "/functools.py")


def _site() -> str:
    frame = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_filename
        if name != __file__ and not any(part in name for part in LIBRARIES):
            return f"{Path(name).name}:{frame.f_code.co_name}"
        frame = frame.f_back
    return "torch"


class _Values(TorchDispatchMode):
    def __init__(self, seen: Counter[str]) -> None:
        super().__init__()
        self.seen = seen

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = op._schema.name.split("::")[1]
        by_mask = name == "index" and any(t is not None and t.dtype == torch.bool for t in args[1])
        if name in VALUES or by_mask:
            self.seen[f"{_site()} {name}"] += 1
        return op(*args, **(kwargs or {}))


class _Copies(TorchFunctionMode):
    def __init__(self, seen: Counter[str]) -> None:
        super().__init__()
        self.seen = seen

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        given = [*args[1:], *kwargs.values()]
        blocking = name in COPIES and not kwargs.get("non_blocking")
        if name in ("to", "tensor"):
            blocking &= any(isinstance(a, torch.device | str) for a in given)
        if (
            name == "copy_"
        ):  # between tensors of one device there is nothing to wait for, and DeepSpeed's lie there
            blocking = False
        if name in FETCHES or blocking:
            self.seen[f"{_site()} {name}"] += 1
        return func(*args, **kwargs)


class Waits:
    """Counts while it is entered; `seen` is calls by site."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()
        self._modes = (_Values(self.seen), _Copies(self.seen))

    def __enter__(self) -> Self:
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*error)
