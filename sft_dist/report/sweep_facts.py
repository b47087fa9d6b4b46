"""Sweep folder -> what its leaderboard shows: trials by rank, their parameters as numbers, which parameter mattered."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sft_dist.cluster.sweep.folder import Definition, SweepFolder, Trial
from sft_dist.cluster.sweep.run_metric import RUN_METRICS, Curve, RunMetric, curve_of
from sft_dist.core.errors import UserError
from sft_dist.report.formatting import significant

MODEL_TRIALS = 12
"""Finished trials from which Optuna's estimate is preferred to a plain rank correlation."""

LOG_SPAN = 20.0
"""Positive values that span more than this factor are shown on a log scale."""

ORDER = ("finished", "running", "interrupted", "pruned", "failed", "waiting")


@dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    """One parameter, or the metric, as positions from 0 to 1.

    Attributes:
        title: Config key without its section where that is clear, else the metric's title.
        places: Position of each trial, NaN where it has none.
        ticks: (position, label).
        numeric: False for categories, whose order means nothing.
    """

    title: str
    places: NDArray[np.float64]
    ticks: tuple[tuple[float, str], ...]
    numeric: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Board:
    """A sweep as it stands.

    Attributes:
        path: Its folder.
        definition: What it searches.
        figure: The metric.
        trials: The best first, then those without a figure, by state and number.
        best: The best, None before any has finished.
        curves: Held-out loss by step, of each trial, in the same order; training loss where nothing is held out.
        curve_title: Which of the two it is.
        importance: Parameter -> its part from 0 to 1; empty when too few trials have finished.
        importance_by: How that was estimated.
    """

    path: Path
    definition: Definition
    figure: RunMetric
    trials: tuple[Trial, ...]
    best: Trial | None
    curves: tuple[Curve, ...]
    curve_title: str
    importance: dict[str, float]
    importance_by: str

    @property
    def parameters(self) -> list[str]:
        """Config keys that are swept."""
        return list(self.definition.space)

    def run_dir(self, trial: Trial) -> Path:
        """Return the run folder of a trial."""
        return self.path / trial.name


def read_board(path: Path) -> Board:
    """Read a sweep's folder.

    Raises:
        UserError: When it is none, or no trial is left of it.
    """
    folder = SweepFolder(path)
    definition = folder.definition()
    trials = folder.trials()
    if not trials:
        raise UserError(
            f"{path} has no record of any trial (trials/ is empty), so there is nothing to compare; "
            f"begin them: sft-dist sweep {path}, or the command that made the sweep"
        )
    figure = RUN_METRICS[definition.metric]
    sign = 1.0 if figure.direction == "minimize" else -1.0
    trials = sorted(trials, key=lambda t: (ORDER.index(t.state), sign * (t.value or 0.0), t.number))
    held_out = [curve_of(path / t.name, "eval_loss") for t in trials]
    in_course = any(len(c) > 1 for c in held_out)
    importance, by = _importance(definition, trials)
    return Board(
        path=path,
        definition=definition,
        figure=figure,
        trials=tuple(trials),
        best=folder.best(trials, definition.metric),
        curves=tuple(held_out if in_course else [curve_of(path / t.name, "train_loss") for t in trials]),
        curve_title="validation loss" if in_course else "training loss",
        importance=importance,
        importance_by=by,
    )


def axis_of(title: str, texts: Sequence[str | None], *, log: bool = False) -> Axis:
    """Return the positions of values as written; numbers on a line (log where they span far), words at even distances."""
    numbers = [number_of(t) for t in texts]
    if all(math.isfinite(n) for n, t in zip(numbers, texts, strict=True) if t is not None):
        return _numeric(title, np.array(numbers), log=log)
    names = list(dict.fromkeys(t for t in texts if t is not None))
    step = 1 / max(1, len(names) - 1)
    at = {name: i * step if len(names) > 1 else 0.5 for i, name in enumerate(names)}
    places = np.array([at[t] if t is not None else math.nan for t in texts])
    return Axis(title=title, places=places, ticks=tuple((p, n) for n, p in at.items()), numeric=False)


def number_of(text: str | None) -> float:
    """Return the number that a value is, NaN for words, booleans, null."""
    with suppress(TypeError, ValueError):
        return float(text)  # type: ignore[arg-type]
    return math.nan


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Return each key without its section where no other key ends alike."""
    last = [k.lstrip("+").rsplit(".", 1)[-1] for k in keys]
    return {k: n if last.count(n) == 1 else k.lstrip("+") for k, n in zip(keys, last, strict=True)}


def _numeric(title: str, values: NDArray[np.float64], *, log: bool) -> Axis:
    known = values[np.isfinite(values)]
    if not len(known):
        return Axis(title=title, places=values, ticks=(), numeric=True)
    low, high = float(known.min()), float(known.max())
    log = low > 0 and (log or high / low > LOG_SPAN)
    scale = np.log if log else np.asarray
    span = float(scale(np.array(high)) - scale(np.array(low)))
    places = (
        (scale(values) - scale(np.array(low))) / span if span else np.where(np.isfinite(values), 0.5, np.nan)
    )
    distinct = sorted(set(known.tolist()))
    if len(distinct) > 6:
        middle = math.sqrt(low * high) if log else (low + high) / 2
        distinct = [low, middle, high]
    ticks = tuple(
        (float((scale(np.array(v)) - scale(np.array(low))) / span) if span else 0.5, significant(v))
        for v in distinct
    )
    return Axis(title=title, places=places, ticks=ticks, numeric=True)


def _importance(definition: Definition, trials: Sequence[Trial]) -> tuple[dict[str, float], str]:
    ended = [t for t in trials if t.state == "finished" and t.value is not None]
    varied = {
        k: [t.settings.get(k, "") for t in ended]
        for k in definition.space
        if len({t.settings.get(k) for t in ended}) > 1
    }
    values = np.array([t.value for t in ended], dtype=np.float64)
    if len(ended) < 3 or not varied or len(set(values.tolist())) < 2:
        return {}, ""
    if len(ended) >= MODEL_TRIALS and (estimated := _by_model(varied, values, definition)):
        return (
            estimated,
            "Optuna's fANOVA: the part of the metric's variance that each parameter explains alone, in a random forest",
        )
    parts = {k: _rank_correlation(texts, values) for k, texts in varied.items()}
    return dict(sorted(parts.items(), key=lambda item: -item[1])), (
        "rank correlation with the metric (for words: the part of the ranks' spread that lies between them, as a ratio)"
    )


def _rank_correlation(texts: Sequence[str], values: NDArray[np.float64]) -> float:
    """Return Spearman's coefficient without its sign; for categories the correlation ratio of the ranks."""
    ranks = _ranks(values)
    numbers = np.array([number_of(t) for t in texts])
    if np.isfinite(numbers).all():
        return float(abs(np.corrcoef(_ranks(numbers), ranks)[0, 1]))
    groups = [ranks[[i for i, t in enumerate(texts) if t == name]] for name in dict.fromkeys(texts)]
    between = sum(len(g) * (g.mean() - ranks.mean()) ** 2 for g in groups)
    return float(math.sqrt(between / ((ranks - ranks.mean()) ** 2).sum()))


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return ranks from 0, equal values sharing their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    first = np.cumsum(counts) - counts
    return np.asarray((first + (counts - 1) / 2)[inverse], dtype=np.float64)


def _by_model(
    varied: dict[str, list[str]], values: NDArray[np.float64], definition: Definition
) -> dict[str, float]:
    """Return the functional ANOVA of a random forest (Hutter et al., 2014); empty where its libraries are not installed."""
    try:
        import optuna
        import sklearn  # noqa: F401  Optuna imports it when asked
    except ImportError:
        return {}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction=RUN_METRICS[definition.metric].direction)
    spaces: dict[str, optuna.distributions.BaseDistribution] = {}
    for key, texts in varied.items():
        numbers = [number_of(t) for t in texts]
        if all(map(math.isfinite, numbers)):
            low, high = min(numbers), max(numbers)
            spaces[key] = optuna.distributions.FloatDistribution(
                low, high, log=low > 0 and high / low > LOG_SPAN
            )
        else:
            spaces[key] = optuna.distributions.CategoricalDistribution(sorted(set(texts)))
    for i, value in enumerate(values):
        numeric = optuna.distributions.FloatDistribution
        params = {
            k: number_of(texts[i]) if isinstance(spaces[k], numeric) else texts[i]
            for k, texts in varied.items()
        }
        study.add_trial(optuna.trial.create_trial(params=params, distributions=spaces, value=float(value)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        forest = optuna.importance.FanovaImportanceEvaluator(seed=0)
        found = optuna.importance.get_param_importances(study, evaluator=forest)
    return {k: float(v) for k, v in found.items()}
