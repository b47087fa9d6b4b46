"""A sweep folder -> leaderboard.html (the comparison page of its trials), leaderboard.json, and the table in the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from rich.markup import escape
from rich.table import Table

from sft_dist.cluster.sweep.folder import Definition, SweepFolder, Trial
from sft_dist.cluster.sweep.run_metric import RUN_METRICS, Curve, RunMetric, curve_of
from sft_dist.core.errors import UserError
from sft_dist.core.files import write_json, write_text
from sft_dist.report.compare import comparison, comparison_body
from sft_dist.report.formatting import DASH, count, esc
from sft_dist.report.html import Cell, Row, page, table
from sft_dist.report.run_files import MARKS, read_run_files

TONES = {"finished": "good", "failed": "bad"}
SHOWN = 20
"""Rows of the table in the terminal; the page has all."""
COMPARED = 12
"""Best trials that the page compares figure by figure."""
ORDER = ("finished", "running", "interrupted", "pruned", "failed", "waiting")


@dataclass(frozen=True, kw_only=True, slots=True)
class Board:
    """A sweep as it stands.

    Attributes:
        path: Its folder.
        definition: What it searches.
        figure: The metric.
        trials: The best first, then those without a figure, by state and number.
        best: The best, None before any has finished.
        curves: Evaluation loss by step, of each trial, in the same order; training loss where nothing is held out.
        curve_title: Which of the two it is.
    """

    path: Path
    definition: Definition
    figure: RunMetric
    trials: tuple[Trial, ...]
    best: Trial | None
    curves: tuple[Curve, ...]
    curve_title: str

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
    known = RUN_METRICS[definition.metric]
    sign = 1.0 if known.direction == "minimize" else -1.0
    trials = sorted(trials, key=lambda t: (ORDER.index(t.state), sign * (t.value or 0.0), t.number))
    evaluated = [curve_of(path / t.name, "eval_loss") for t in trials]
    in_course = any(len(c) > 1 for c in evaluated)
    return Board(
        path=path,
        definition=definition,
        figure=known,
        trials=tuple(trials),
        best=folder.best(trials, definition.metric),
        curves=tuple(evaluated if in_course else [curve_of(path / t.name, "train_loss") for t in trials]),
        curve_title=RUN_METRICS["eval_loss"].title if in_course else "training loss",
    )


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Return each key without its section where no other key ends alike."""
    last = [k.lstrip("+").rsplit(".", 1)[-1] for k in keys]
    return {k: n if last.count(n) == 1 else k.lstrip("+") for k, n in zip(keys, last, strict=True)}


def write_sweep(path: Path) -> Path:
    """Write leaderboard.html, which needs nothing else, and leaderboard.json beside it; built from what is there.

    Returns:
        The path of the page.

    Raises:
        UserError: When the folder is no sweep.
    """
    board = read_board(path)
    write_json(path / "leaderboard.json", as_json(board))
    name = path.resolve().name
    ended = [t for t in board.trials if t.state == "finished"][:COMPARED]
    runs = [
        read_run_files(board.run_dir(t))
        for t in ended
        if any((board.run_dir(t) / m).is_file() for m in MARKS)
    ]
    body = _header(board, name) + _leaderboard(board) + _unfinished(board)
    body += comparison_body(runs, comparison(runs), settings=False) if len(runs) > 1 else ""
    out = path / "leaderboard.html"
    write_text(out, page(f"{name} · sft_dist", body + _footer(board)))
    return out


def as_json(board: Board) -> dict[str, Any]:
    """Return what the page shows, for machines."""
    return {
        "sweep": str(board.path),
        "method": board.definition.method,
        "metric": board.definition.metric,
        "direction": board.figure.direction,
        "parameters": board.definition.space,
        "best": board.best.name if board.best else None,
        "trials": [
            {
                "name": t.name,
                "run": str(board.run_dir(t)),
                "state": t.state,
                "value": t.value,
                "step": t.step,
                "attempts": t.attempts,
                "reason": t.reason or None,
                "settings": t.settings,
                "curve": {"of": board.curve_title, "points": curve},
            }
            for t, curve in zip(board.trials, board.curves, strict=True)
        ],
    }


def sweep_table(path: Path) -> Table:
    """Return the leaderboard for the terminal, the best first, with the reason of each failure.

    Raises:
        UserError: When the folder is no sweep.
    """
    board = read_board(path)
    names = short_names(board.parameters)
    out = Table(title=f"{path.resolve().name}: {_tally(board)}", title_justify="left", caption_justify="left")
    out.add_column("trial")
    for key in board.parameters:
        out.add_column(names[key], justify="right")
    out.add_column(board.figure.title, justify="right", style="bold")
    out.add_column("steps", justify="right")
    out.add_column("state")
    for trial in board.trials[:SHOWN]:
        settings = [trial.settings.get(k, DASH) for k in board.parameters]
        state = f"{trial.state}: {_cause(trial)}" if trial.reason else trial.state
        out.add_row(trial.name, *map(escape, settings), _value(trial.value), _steps(trial), escape(state))
    rest = len(board.trials) - SHOWN
    notes = [f"and {rest} more"] if rest > 0 else []
    notes += [f"{t.name} failed: {board.run_dir(t)}" for t in board.trials if t.state == "failed"]
    out.caption = "\n".join(notes)
    return out


def _header(board: Board, name: str) -> str:
    return (
        f'<header><p class="eyebrow">Sweep</p><h1>{esc(name)}</h1>'
        f'<p class="lead">{esc(" ".join(_sentences(board)))}</p></header>'
    )


def _sentences(board: Board) -> list[str]:
    searched = ", ".join(board.parameters)
    how = (
        "Every combination"
        if board.definition.method == "grid"
        else f"{board.definition.trials} points by TPE"
    )
    out = [f"{how} of {searched}: {_tally(board)}."]
    if board.best is None or board.best.value is None:
        return [*out, "No trial has a result yet."]
    values = [t.value for t in board.trials if t.state == "finished" and t.value is not None]
    settings = ", ".join(f"{k.lstrip('+')}={v}" for k, v in board.best.settings.items())
    out.append(
        f"The best is {board.best.name} ({settings}): {board.figure.title} {_value(board.best.value)}."
    )
    if len(values) > 2:
        out.append(f"The median of the finished trials is {_value(median(values))}.")
    out.append(_spread(board))
    return out


def _spread(board: Board) -> str:
    """Say how far trials that differ in the seed alone are apart: a smaller difference is no result."""
    groups: dict[str, list[float]] = {}
    for t in board.trials:
        if t.state == "finished" and t.value is not None:
            rest = " ".join(f"{k}={v}" for k, v in t.settings.items() if k.lstrip("+") != "seed")
            groups.setdefault(rest, []).append(t.value)
    spreads = [max(v) - min(v) for v in groups.values() if len(v) > 1]
    if not spreads:
        return "Each setting ran with one seed, so small differences may be chance; add seed=0,1,2 to see."
    return f"Trials that differ in the seed alone are up to {max(spreads):.3g} apart; a smaller difference is no result."


def _tally(board: Board) -> str:
    counts = Counter(t.state for t in board.trials)
    shown = [f"{counts[s]} {s}" for s in dict.fromkeys(t.state for t in board.trials)]
    undefined = board.definition.trials - len(board.trials)
    return ", ".join(shown + ([f"{undefined} not begun"] if undefined > 0 else [])) or "no trial yet"


def _leaderboard(board: Board) -> str:
    ranked = [t for t in board.trials if t.state == "finished" and t.value is not None]
    out = '<h2 id="leaderboard">Leaderboard</h2>'
    if not ranked:
        return f'{out}<p class="note">No trial has finished.</p>'
    names = short_names(board.parameters)
    rows: list[Row] = [
        [
            Cell(f'<a href="{esc(trial.name)}/">{esc(trial.name)}</a>', trial.number),
            *(_setting(trial, k) for k in board.parameters),
            Cell(_value(trial.value), trial.value),
            Cell(_steps(trial), float(trial.step or 0)),
            Cell(count(trial.attempts), trial.attempts),
        ]
        for trial in ranked
    ]
    heads = ("trial", *(names[k] for k in board.parameters), board.figure.title, "steps", "attempts")
    note = "Lower is better." if board.figure.direction == "minimize" else "Higher is better."
    out += f'<p class="note">{note} A trial is a run folder: <code>sft-dist report {esc(board.path)}/{ranked[0].name}</code>.</p>'
    return out + table(heads, rows, css="sortable fit")


def _unfinished(board: Board) -> str:
    rest = [t for t in board.trials if t.state != "finished"]
    if not rest:
        return ""
    rows: list[Row] = [
        [
            t.name,
            Cell(f'<span class="state {TONES.get(t.state, "")}">{esc(t.state)}</span>'),
            Cell(esc(" ".join(t.overrides)), classes="wrap"),
            _steps(t),
            Cell(esc(_cause(t) or _why(board, t)), classes="wrap"),
            Cell(f'<span class="mono">{esc(board.run_dir(t))}</span>', classes="wrap"),
        ]
        for t in rest
    ]
    heads = ("trial", "state", "settings", "step", "why", "run folder")
    return f'<h2 id="unfinished">Without a result</h2>{table(heads, rows, left=("state", "settings", "why", "run folder"))}'


def _why(board: Board, trial: Trial) -> str:
    return {
        "pruned": f"stopped by the {board.definition.pruning} rule: its {board.curve_title} lagged behind",
        "interrupted": "the same command continues it",
        "waiting": "not begun",
        "running": "its run folder shows how it is doing",
    }.get(trial.state, "")


def _footer(board: Board) -> str:
    return (
        f"<footer>Made by sft_dist from the files of {esc(board.path)}; <code>sft-dist report --sweep</code> makes it anew. "
        "The same figures for machines: leaderboard.json.</footer>"
    )


def _setting(trial: Trial, key: str) -> Cell:
    text = trial.settings.get(key, DASH)
    with suppress(ValueError):
        return Cell(esc(text), float(text))
    return Cell(esc(text))


def _cause(trial: Trial) -> str:
    """The first line of a reason."""
    return trial.reason.splitlines()[0] if trial.reason else ""


def _value(value: float | None) -> str:
    return f"{value:.5g}" if value is not None else DASH


def _steps(trial: Trial) -> str:
    return count(float(trial.step)) if trial.step is not None else DASH
