"""A sweep folder -> leaderboard.html, leaderboard.json, and the table at the end of a sweep."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from rich.table import Table

from sft_dist.cluster.sweep.folder import Trial
from sft_dist.core.files import write_json, write_text
from sft_dist.report.charts import Line, chart
from sft_dist.report.formatting import DASH, count, esc, join, percent
from sft_dist.report.html import Cell, Row, bar, figure, page, table
from sft_dist.report.sweep_facts import Axis, Board, axis_of, number_of, read_board, short_names
from sft_dist.report.sweep_figures import parallel, scatter

TONES = {"finished": "good", "failed": "bad"}
SHOWN = 20
"""Rows of the table in the terminal; the page has all."""


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
    body = _header(board, name) + _leaderboard(board) + _unfinished(board)
    body += _parameters(board) + _curves(board) + _footer(board)
    out = path / "leaderboard.html"
    write_text(out, page(f"{name} · sft_dist", body))
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
        "importance": {"by": board.importance_by, "of": board.importance},
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
        out.add_row(trial.name, *settings, _value(trial.value), _steps(trial), state)
    rest = len(board.trials) - SHOWN
    notes = [f"and {rest} more"] if rest > 0 else []
    notes += [f"{t.name} failed: {board.run_dir(t)}" for t in board.trials if t.state == "failed"]
    out.caption = "\n".join(notes)
    return out


def _header(board: Board, name: str) -> str:
    links = join(
        f'<a href="#{anchor}">{text}</a>'
        for anchor, text in (
            ("leaderboard", "Leaderboard"),
            ("unfinished", "Without a result"),
            ("parameters", "Parameters"),
            ("curves", "Learning curves"),
        )
        if anchor != "unfinished" or any(t.state != "finished" for t in board.trials)
    )
    return (
        f'<header><p class="eyebrow">Sweep</p><h1>{esc(name)}</h1>'
        f'<p class="lead">{esc(" ".join(_sentences(board)))}</p><nav>{links}</nav></header>'
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
    return out


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
    values = [t.value for t in ranked if t.value is not None]
    low, high = min(values), max(values)
    names = short_names(board.parameters)
    words = [
        names[k]
        for k in board.parameters
        if not all(math.isfinite(number_of(t.settings.get(k))) for t in ranked)
    ]
    rows: list[Row] = []
    for trial in ranked:
        assert trial.value is not None
        share = (trial.value - low) / (high - low) if high > low else 0.0
        css = "model" if trial is ranked[0] else ""
        rows.append(
            [
                Cell(f'<a href="{esc(trial.name)}/">{esc(trial.name)}</a>', trial.number),
                *(_setting(trial, k) for k in board.parameters),
                Cell(
                    f'{_value(trial.value)}<span class="share">{bar(0.04 + 0.96 * share, css)}</span>',
                    trial.value,
                ),
                Cell(_steps(trial), float(trial.step or 0)),
                Cell(count(trial.attempts), trial.attempts),
            ]
        )
    heads = ("trial", *(names[k] for k in board.parameters), board.figure.title, "steps", "attempts")
    note = "Lower is better." if board.figure.direction == "minimize" else "Higher is better."
    out += f'<p class="note">{note} A trial is a run folder: <code>sft-dist report {esc(board.path)}/{ranked[0].name}</code>.</p>'
    return out + table(heads, rows, left=words, css="sortable fit")


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


def _parameters(board: Board) -> str:
    out = '<h2 id="parameters">Parameters</h2>'
    ranked = [t for t in board.trials if t.state == "finished" and t.value is not None]
    if len(ranked) < 2:
        return f'{out}<p class="note">Two finished trials are needed to say anything about parameters.</p>'
    names = short_names(board.parameters)
    labels = [f"{t.name}: {' '.join(t.overrides)}, {_value(t.value)}" for t in ranked]
    metric = axis_of(board.figure.title, [_value(t.value) for t in ranked])
    axes = {
        k: axis_of(names[k], [t.settings.get(k) for t in ranked], log="log" in board.definition.space[k])
        for k in board.parameters
    }
    if board.importance:
        most = max(board.importance.values()) or 1.0
        rows: list[Row] = [
            [names[k], Cell(f'{percent(v, 0)}<span class="share">{bar(v / most, "model")}</span>', v)]
            for k, v in board.importance.items()
        ]
        out += f'<h3>What mattered</h3><p class="note">In percent, by {esc(board.importance_by)}. {_doubt(ranked)}</p>'
        out += table(("parameter", "importance"), rows, css="fit")
    shown = sorted(axes, key=lambda k: -board.importance.get(k, 0.0))
    cells = join(
        figure(
            f"<b>{esc(axes[k].title)}</b> <span>against {esc(board.figure.title)}</span>",
            _scatter(axes[k], metric, labels),
        )
        for k in shown
    )
    out += f'<h3>One by one</h3><p class="note">A dot a trial, the best filled.</p><div class="charts">{cells}</div>'
    if len(axes) > 1:
        drawn = parallel([*axes.values(), metric], labels)
        caption = "A line a trial: <b>the best</b> strong, the best quarter in its colour."
        out += f'<h3>Together</h3><div class="one">{figure(caption, drawn)}</div>'
    return out


def _scatter(x: Axis, y: Axis, labels: list[str]) -> str:
    return scatter(x, y, labels, 0)


def _doubt(ranked: list[Trial]) -> str:
    return f"Only {len(ranked)} trials: take it as a hint." if len(ranked) < 12 else ""


def _curves(board: Board) -> str:
    drawn = [(t, c) for t, c in zip(board.trials, board.curves, strict=True) if len(c) > 1]
    out = '<h2 id="curves">Learning curves</h2>'
    if not drawn:
        return f'{out}<p class="note">No trial has recorded a course of its loss yet.</p>'

    def line(trial: Trial, points: list[tuple[int, float]]) -> Line:
        xs, ys = (np.array(v, dtype=np.float64) for v in zip(*points, strict=True))
        best = trial is board.best
        colour = "a" if best else "b" if trial.state in ("pruned", "failed") else "c"
        return Line(x=xs, y=ys, colour=colour, style="line" if best else "faint")

    lines = [line(t, c) for t, c in sorted(drawn, key=lambda d: d[0] is board.best)]
    high = _top(drawn)
    caption = (
        f'<b>{esc(board.curve_title.capitalize())}</b> <span>nats per answer token<span class="key">the best</span>'
        '<span class="key muted">others</span><span class="key b">pruned or failed</span></span>'
    )
    svg = join(
        f'<div class="{css}">{chart(lines, name=f"sweep-{css}", description=f"{board.curve_title} of {len(drawn)} trials", width=w, height=h, high=high)}</div>'
        for css, w, h in (("wide", 960, 380), ("narrow", 340, 230))
    )
    return f'{out}<div class="one">{figure(caption, svg)}</div>'


def _top(drawn: list[tuple[Trial, list[tuple[int, float]]]]) -> float | None:
    """Cut off what diverged, so that the others can be told apart."""
    values = np.array([v for _, c in drawn for _, v in c])
    starts = max(c[0][1] for _, c in drawn)
    return float(starts * 1.02) if float(values.max()) > 2 * starts else None


def _footer(board: Board) -> str:
    return (
        f"<footer>Made by sft_dist from the files of {esc(board.path)}; <code>sft-dist report --sweep</code> makes it anew. "
        "The same figures for machines: leaderboard.json.</footer>"
    )


def _setting(trial: Trial, key: str) -> Cell:
    text = trial.settings.get(key, DASH)
    number = number_of(text)
    return Cell(esc(text), number if math.isfinite(number) else None)


def _cause(trial: Trial) -> str:
    """The first line of a reason."""
    return trial.reason.splitlines()[0] if trial.reason else ""


def _value(value: float | None) -> str:
    return f"{value:.5g}" if value is not None else DASH


def _steps(trial: Trial) -> str:
    return count(float(trial.step)) if trial.step is not None else DASH
