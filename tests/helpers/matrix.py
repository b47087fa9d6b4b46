"""Every causal language model of transformers, packed against alone: `python tests/helpers/matrix.py [TYPE ...]` prints one line each.

`python tests/helpers/matrix.py --page` writes the table of docs/models.md from what tests/helpers/matrix.json holds, `--measure` measures
all types (or those named) anew into that file.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import reference_kernels
import tiny
import tiny_docs
import torch
from loading import load
from torch.nn import functional as F

from sft_dist.core.errors import UserError
from sft_dist.model import isolation_check
from sft_dist.model.packed import to_inputs

HERE = Path(__file__).resolve().parent
BEGIN, END = "<!-- table: python tests/helpers/matrix.py --page -->", "<!-- end of the table -->"
RESULTS = HERE / "matrix.json"
KNOWN: dict[str, dict[str, Any]] = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
LOSS, GRADIENT = (
    5e-5,
    1e-4,
)  # largest difference of a target's loss; largest relative difference of a parameter's gradient
ROUNDING = 1e-6  # of a gradient whose norm is next to nothing
DOCS = tiny_docs.documents(0)
AT_RANDOM = {
    "phimoe"
}  # its router draws experts while it trains: compared as it evaluates, where it does not


class Result(NamedTuple):
    """What was seen of one model type."""

    state: str  # exact, wrong, refused, unbuilt
    detail: str
    backends: str = ""
    kinds: tuple[str, ...] = ()
    fast: str = ""  # of layers with state, by CPU reference kernels


def alone(model: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return the loss of every target and the gradients, by transformers' own eager attention, one document at a time."""
    losses = []
    for doc in DOCS:
        logits = model(torch.tensor([doc]), use_cache=False).logits[0].float()
        nll = F.cross_entropy(logits[:-1], torch.tensor(doc[1:]), reduction="none")
        weights = torch.tensor(tiny_docs.weights_of(doc)[1:])
        (nll * weights).sum().backward()
        losses.append(nll.detach()[weights > 0])
    return torch.cat(losses), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def differences(
    module: Any, losses: torch.Tensor, gradients: dict[str, torch.Tensor]
) -> tuple[float, float, str]:
    """Return how far the packed row is from the documents alone: loss, gradient, the parameter that is furthest off."""
    total, ours = module(*to_inputs(tiny_docs.pack(DOCS, list(range(len(DOCS)))), "cpu"))
    total.backward()
    own = {n: p.grad for n, p in module.hf.named_parameters() if p.grad is not None}
    off = {n: _off(own.get(n), gradients.get(n)) for n in own | gradients}
    worst = max(off, key=lambda n: off[n])
    return float((ours - losses).abs().max()), off[worst], worst


def _off(ours: torch.Tensor | None, theirs: torch.Tensor | None) -> float:
    if ours is None or theirs is None:
        there = ours if theirs is None else theirs
        return 0.0 if there is None or float(there.norm()) == 0 else float("inf")
    return max(0.0, float((ours - theirs).norm()) - ROUNDING) / max(float(theirs.norm()), 1e-30)


def measure(model_type: str) -> Result:
    """Build, refuse or compare one type."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        try:
            model = tiny.build(model_type).train(model_type not in AT_RANDOM)
            losses, gradients = alone(model)
            model.zero_grad()
            model.save_pretrained(scratch)
        except Exception as error:  # noqa: BLE001  whatever a family does when it is made tiny
            return Result("unbuilt", f"{type(error).__name__}: {str(error).strip().splitlines()[0][:120]}")
        try:
            loaded = load(Path(scratch))
            module = loaded.module.train(model_type not in AT_RANDOM)
            loss, gradient, worst = differences(module, losses, gradients)
            fast = whole_rows(Path(scratch), losses, gradients) if loaded.state else ""
        except UserError as error:
            return Result("refused", str(error))
        except Exception as error:  # noqa: BLE001  a traceback is what the matrix looks for
            return Result("traceback", f"{type(error).__name__}: {str(error).splitlines()[0][:120]}")
    state = "exact" if loss < LOSS and gradient < GRADIENT else "wrong"
    detail = f"loss {loss:.0e}, gradient {gradient:.0e}" + ("" if state == "exact" else f" ({worst})")
    if model_type in AT_RANDOM:
        detail += "; its router draws experts at random in training, which no order of documents repeats"
    return Result(state, detail, loaded.backend, loaded.state, fast)


def whole_rows(folder: Path, losses: torch.Tensor, gradients: dict[str, torch.Tensor]) -> str:
    """Return how layers with state do that see the whole row, by reference kernels that honour its borders; or why none does."""
    with reference_kernels.installed():
        loaded = load(folder)
        if not loaded.module.borders.layers:
            return f"none: {loaded.recurrent or 'inside attention that sees one document'}"
        said = isolation_check.settle_kernels(
            loaded, lambda batch: loaded.module(*to_inputs(batch, "cpu"))[1], "auto", tiny.ROW
        )
        if not said.startswith("kernel"):
            return f"wrong: {said}"
        reference_kernels.CALLED.clear()
        loss, gradient, worst = differences(loaded.module.train(), losses, gradients)
        called = ", ".join(sorted(set(reference_kernels.CALLED)))
    if loss < LOSS and gradient < GRADIENT:
        return f"exact: {called}: loss {loss:.0e}, gradient {gradient:.0e}"
    return f"wrong: {called}: loss {loss:.0e}, gradient {gradient:.0e} ({worst})"


def table() -> str:
    """Return the table of docs/models.md."""
    classes = tiny.causal_types()
    columns = (
        "type", "class", "layers with state", "slow path, measured on a CPU", "attention on a GPU",
        "whole rows for layers with state, measured with CPU reference kernels", "GPU kernels",
    )  # fmt: skip
    rows = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for model_type, result in sorted(KNOWN.items()):
        if model_type in classes:
            state = {"unbuilt": "cannot be made tiny", "exact": f"exact by `{result['backends']}`"}.get(
                result["state"], result["state"]
            )
            detail = (
                result["detail"]
                if result["state"] != "refused"
                else result["detail"].split(", so ")[0].split("; ")[0]
            )
            rows.append(
                f"| {model_type} | `{classes[model_type]}` | {', '.join(result['kinds']) or '–'} | {state}: {detail} | "
                f"{_attention(result)} | {_state(result)} | never run |"
            )
    return "\n".join(rows)


def _attention(result: dict[str, Any]) -> str:
    if result["state"] != "exact" or result["backends"] == "none":
        return "–"
    if result["backends"] == "own_per_doc":
        return "none: each document alone"
    return "`flash`, `varlen` or `flex`, by head and features"


def _state(result: dict[str, Any]) -> str:
    if result["state"] != "exact" or not result["kinds"]:
        return "–"
    state, _, detail = result["fast"].partition(": ")
    return f"{state}: {detail}" if state != "none" else "none: each document alone"


def write_page() -> None:
    """Put the table between its two marks in docs/models.md."""
    page = HERE.parents[1] / "docs" / "models.md"
    before, _, rest = page.read_text().partition(BEGIN)
    page.write_text(f"{before}{BEGIN}\n{table()}\n{END}{rest.partition(END)[2]}")


def main(arguments: list[str]) -> None:
    """Measure types and print them; with --measure, all of them into the file."""
    warnings.filterwarnings("ignore")
    from transformers import logging

    logging.set_verbosity_error()
    if "--page" in arguments:
        write_page()
        return
    keep = "--measure" in arguments
    named = [a for a in arguments if not a.startswith("--")]
    types = named or sorted(tiny.causal_types())
    for model_type in types:
        began = time.monotonic()
        result = measure(model_type)
        KNOWN[model_type] = result._asdict()
        print(model_type, *result, f"{time.monotonic() - began:.1f}s", flush=True)
        if keep:
            RESULTS.write_text(json.dumps(KNOWN, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
