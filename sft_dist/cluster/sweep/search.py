"""Optuna as a function: what the trials of a sweep gave so far -> the next point, and whether a live trial is worth its time.

No Optuna storage is kept. The study is built anew from the sweep folder's records at each question, by the same calls in
the same order; so array tasks share it through files that are whole or absent, and nothing can disagree with the run
folders (databases on NFS break: optuna/optuna#815, #5138).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sft_dist.cluster.sweep.folder import Definition, Trial
from sft_dist.cluster.sweep.run_metric import RUN_METRICS, Curve
from sft_dist.cluster.sweep.space import Interval, parameter
from sft_dist.core.errors import UserError
from sft_dist.core.rng import derive

if TYPE_CHECKING:
    from optuna import Study

HALVING = 2  # ASHA: of those that reach a rung, one in two goes on to the next, which is twice as far
RANDOM_SHARE = 0.25  # of the trials are drawn at random before the model of TPE is trusted
RANDOM_AT_MOST = 10  # Optuna's own default


@dataclass(frozen=True, slots=True)
class Past:
    """A trial as the search sees it: its record, and its validation losses step by step."""

    trial: Trial
    curve: Curve


def suggest(definition: Definition, past: Sequence[Past], number: int) -> dict[str, str]:
    """Return the settings of trial `number`: the tree-structured Parzen estimator (Bergstra et al., 2011).

    A function of the seed, the number and the past alone. Live trials count as bad ones, so that their neighbourhood is
    left to them ("constant liar").

    Raises:
        UserError: When Optuna is not installed.
    """
    optuna = _optuna()
    spaces = {k: _distribution(k, e) for k, e in definition.space.items()}
    study = _study(definition, past, spaces, total_steps=1)
    startup = min(RANDOM_AT_MOST, max(2, round(RANDOM_SHARE * definition.trials)))
    seed = derive(definition.seed, "sweep", number) % 2**32
    study.sampler = optuna.samplers.TPESampler(n_startup_trials=startup, seed=seed, constant_liar=True)
    return {k: _text(v, spaces[k]) for k, v in study.ask(spaces).params.items()}


def hopeless(definition: Definition, past: Sequence[Past], live: Past, total_steps: int) -> bool:
    """Say whether a live trial should be stopped, by its validation losses up to now.

    Args:
        definition: Of the sweep; `pruning` says by which rule.
        past: The other trials.
        live: The trial in question.
        total_steps: Optimizer steps of the whole trial.
    """
    if definition.pruning == "none" or not live.curve:
        return False
    spaces = {k: _distribution(k, e) for k, e in definition.space.items()}
    study = _study(definition, past, spaces, total_steps)
    return _replay(study, live, spaces)[1]


def check_installed() -> None:
    """Raise UserError when the search is not installed."""
    _optuna()


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise UserError(
            "sweep.method=optuna needs Optuna, which is not installed; pip install 'sft-dist[sweep]', or use sweep.method=grid"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _study(
    definition: Definition, past: Sequence[Past], spaces: Mapping[str, Any], total_steps: int
) -> Study:
    optuna = _optuna()
    warm = max(1, round(definition.prune_after * total_steps))
    pruners = {
        "none": optuna.pruners.NopPruner,
        "median": lambda: optuna.pruners.MedianPruner(n_startup_trials=2, n_warmup_steps=warm),
        "asha": lambda: optuna.pruners.SuccessiveHalvingPruner(min_resource=warm, reduction_factor=HALVING),
    }
    study: Study = optuna.create_study(
        direction=RUN_METRICS[definition.metric].direction,
        pruner=pruners[definition.pruning](),
        sampler=optuna.samplers.RandomSampler(seed=0),  # never asked: what is replayed has its settings
    )
    states = optuna.trial.TrialState
    for one in sorted(past, key=lambda p: p.trial.number):
        trial = one.trial
        if trial.state == "waiting":
            continue
        replayed, _ = _replay(study, one, spaces)
        if trial.state == "finished" and trial.value is not None:
            study.tell(replayed, trial.value)
        elif trial.state == "pruned" or (trial.state == "failed" and trial.fatal):
            # a diverged trial says as much about its settings as one that lags behind
            study.tell(replayed, state=states.PRUNED)
        elif trial.state == "failed":
            study.tell(replayed, state=states.FAIL)
    return study


def _replay(study: Study, one: Past, spaces: Mapping[str, Any]) -> tuple[Any, bool]:
    """Repeat what a trial reported; return it, and what the pruner says at its last report."""
    values = {k: _value(v, spaces[k]) for k, v in one.trial.settings.items() if k in spaces}
    study.enqueue_trial(values)
    replayed, verdict = study.ask(dict(spaces)), False
    for step, value in one.curve:
        replayed.report(value, step)
        # ASHA notes its rungs here, also where the answer is no longer wanted
        verdict = replayed.should_prune()
    return replayed, verdict


def _distribution(key: str, expression: str) -> Any:
    optuna = _optuna()
    found = parameter(key, expression)
    if isinstance(found, Interval):
        if found.integer:
            return optuna.distributions.IntDistribution(int(found.low), int(found.high), log=found.log)
        return optuna.distributions.FloatDistribution(found.low, found.high, log=found.log)
    if found.numeric and len(found.texts) > 1 and all(_is_int(t) for t in found.texts):
        first, second, last = int(found.texts[0]), int(found.texts[1]), int(found.texts[-1])
        return optuna.distributions.IntDistribution(
            min(first, last), max(first, last), step=abs(second - first)
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return optuna.distributions.CategoricalDistribution(list(found.texts))


def _value(text: str, distribution: Any) -> Any:
    kind = type(distribution).__name__
    return {"IntDistribution": int, "FloatDistribution": float}.get(kind, str)(text)


def _text(value: Any, distribution: Any) -> str:
    """Numbers as a person would write them: four digits say all that a search can know."""
    if not isinstance(value, float):
        return str(value)
    return repr(min(max(float(f"{value:.4g}"), distribution.low), distribution.high))


def _is_int(text: str) -> bool:
    return text.lstrip("-").isdigit()
