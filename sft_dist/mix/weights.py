"""What a mixture may say, and the rate of each cell that follows from it.

A cell is the part of a task that one source holds. C cells.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from sft_dist.config.data import MixConfig
from sft_dist.config.sources import SourceMix
from sft_dist.core.errors import UserError, nearest

Floats = NDArray[np.float64]
LEAST_POWER = -500.0  # e to it is still far above 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Cells:
    """The cells that are drawn from.

    Attributes:
        sizes: [C] examples of each cell, at least 1.
        tasks: [C] task code of each.
        sources: [C] source code of each.
        units: [C] what an example of each counts on the average, in `mix.unit`: 1, its tokens, or those that carry loss.
        task_names: Task names by code.
        source_names: Source names by code.
    """

    sizes: Floats
    tasks: NDArray[np.int64]
    sources: NDArray[np.int64]
    units: Floats
    task_names: Sequence[str]
    source_names: Sequence[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Preset:
    """A published mixture: how a task's rate follows from its size, and shares of its submixtures.

    Attributes:
        caps: Largest rate of a task, by submixture; "" stands for every source.
        shares: Share of each submixture, by the name of the source that holds it; empty: by rate.
        task_pool: Examples of each task that are used at all.
        split_cap: Whether the templates of one dataset ("dataset/template") divide the cap among them.
    """

    caps: Mapping[str, int]
    shares: Mapping[str, float] = field(default_factory=dict)
    task_pool: int | None = None
    split_cap: bool = False


PRESETS: dict[str, Preset] = {
    # Wei et al. 2021: 30,000 examples a dataset, examples-proportional with a cap of 3,000.
    "flan2021": Preset(caps={"": 3_000}, task_pool=30_000),
    # Longpre et al. 2023: five submixtures, a cap for the tasks of each.
    "flan2022": Preset(
        caps={"flan2021": 30_000, "t0": 20_000, "cot": 100_000, "niv2": 5_000, "dialog": 200_000},
        shares={"flan2021": 0.40, "t0": 0.32, "cot": 0.05, "niv2": 0.20, "dialog": 0.03},
    ),
    # Sanh et al. 2021: datasets above 500,000 examples count as 500,000 divided by their templates.
    "t0": Preset(caps={"": 500_000}, split_cap=True),
}


class Mixture(MixConfig):
    """Everything that decides an epoch's draw, besides the data and the seed: the section `mix`, and what each source says.

    Attributes:
        sources: By source name; a source that is not named has the defaults.
    """

    sources: Mapping[str, SourceMix] = Field(default_factory=dict)


def resolve(mixture: Mixture, source_names: Sequence[str]) -> list[SourceMix]:
    """Return the settings of each source, a preset's shares filled in. Settings that contradict raise UserError."""
    for name in mixture.sources:
        if name not in source_names:
            raise UserError(
                f"the mixture names the source {name!r}, which has no store, so its settings would be ignored; "
                f"sources: {', '.join(source_names)}.{nearest(name, source_names)}"
            )
    if mixture.cap is not None and mixture.rate == "all":
        raise UserError("mix.cap has no effect with mix.rate=all; set mix.rate=proportional, or mix.cap=null")
    if mixture.temperature != 1.0 and mixture.rate != "temperature":
        raise UserError(
            f"mix.temperature has no effect with mix.rate={mixture.rate}; set mix.rate=temperature, or mix.temperature=1"
        )
    if mixture.task_max is not None and mixture.task_max < mixture.task_min:
        raise UserError(
            f"mix.task_max={mixture.task_max} is below mix.task_min={mixture.task_min}, so no task can satisfy both; "
            "raise the first or lower the second"
        )
    out = [mixture.sources.get(name, SourceMix()) for name in source_names]
    if mixture.preset is not None:
        out = _preset_sources(mixture, source_names, out)
    for name, source in zip(source_names, out, strict=True):
        both = [k for k in ("share", "epochs") if getattr(source, k) is not None]
        both += ["weight"] if both and source.weight != 1.0 else []
        if len(both) > 1:
            raise UserError(
                f"data.sources.{name} sets {' and '.join(both)}, and {both[0]} alone decides how much is drawn from it; "
                "keep one of them"
            )
    return out


def _preset_sources(mixture: Mixture, names: Sequence[str], sources: list[SourceMix]) -> list[SourceMix]:
    assert mixture.preset is not None
    if mixture.rate != "all" or mixture.cap is not None:
        raise UserError(
            f"mix.preset={mixture.preset} sets the rates itself, so mix.rate and mix.cap would be ignored; "
            "leave them out, or set mix.preset=null"
        )
    preset = PRESETS[mixture.preset]
    if not preset.shares:
        return sources
    total = 0.0
    for name, source in zip(names, sources, strict=True):
        if name not in preset.shares:
            raise UserError(
                f"mix.preset={mixture.preset} gives shares to the submixtures {', '.join(preset.shares)}, and the "
                f"source {name!r} is none of them; name the sources after the submixtures, or set mix.preset=null"
            )
        if source.share is not None or source.epochs is not None or source.weight != 1.0:
            raise UserError(
                f"mix.preset={mixture.preset} sets the share of {name!r}, so its own share, epochs or weight would be "
                "ignored; leave them out, or set mix.preset=null"
            )
        total += preset.shares[name]
    # Of the submixtures that are present; the published weights are relative too.
    return [
        SourceMix(take_examples=s.take_examples, take_share=s.take_share, share=preset.shares[n] / total)
        for n, s in zip(names, sources, strict=True)
    ]


def base_rates(mixture: Mixture, cells: Cells) -> tuple[Floats, Floats]:
    """Return the rate of each cell, [C], and how many examples it has under its cap, [C].

    A task that several sources hold has one rate, divided among its cells by their sizes.
    """
    n_tasks = len(cells.task_names)
    n = np.bincount(cells.tasks, cells.sizes, n_tasks)[cells.tasks]
    part = cells.sizes / n
    if mixture.preset is not None:
        preset = PRESETS[mixture.preset]
        by_source = [float(preset.caps.get(name, preset.caps.get("", np.inf))) for name in cells.source_names]
        caps = np.array(by_source)[cells.sources]
        if preset.split_cap:
            caps = np.where(n > caps, caps // _templates(cells.task_names)[cells.tasks], caps)
        capped = part * np.minimum(n, caps)
        return capped, capped
    capped = part * (n if mixture.cap is None else np.minimum(n, mixture.cap))
    if mixture.rate != "temperature":
        return capped, capped
    held = np.bincount(cells.tasks, capped, n_tasks)[cells.tasks]
    # The largest is 1: only ratios count, and powers of large counts overflow. None is 0: ratios of ratios follow.
    power = np.log(held) / mixture.temperature
    return part * np.exp(np.maximum(power - power.max(), LEAST_POWER)), capped


def _templates(task_names: Sequence[str]) -> NDArray[np.int64]:
    """Return for each task how many templates its dataset has; tasks are named "dataset/template"."""
    datasets = [name.rsplit("/", 1)[0] for name in task_names]
    counts = Counter(datasets)
    return np.array([counts[d] for d in datasets], np.int64)
