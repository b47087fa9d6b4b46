"""Size and time of the page of a large run: 800 tasks of Natural Instructions' kind x 3,000 steps, all evaluated.

    python bench/report_page.py [--tasks 800] [--steps 3000] [--out FOLDER]

The run folder is made up, but every file comes from the code that writes it in a run: metrics.jsonl by the run's logger, generations.jsonl
and scores.json by scoring. Prints one JSON object: bytes of metrics.jsonl and report.html, CPU seconds of the page. Expected: under
20 MB, 1 MB and 5 s. About a minute.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from sft_dist.core.files import write_json
from sft_dist.core.records import Example, StepMetrics, single_turn
from sft_dist.core.runfolder import RunFolder
from sft_dist.evals.baselines import Baselines, TrainingPair
from sft_dist.evals.score import score_examples, scores, write_results
from sft_dist.evals.splits import AnswerLoss, Generation
from sft_dist.report.run import write_report
from sft_dist.train.run_log import RunLogger
from sft_dist.train.tracker import Tracker

EXAMPLES = 4  # evaluated of each task
DRAWN = 400  # tasks that occur in a step
EVALUATIONS = 30
WORDS = [f"word{i}" for i in range(16)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, default=800)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--out", type=Path, help="new folder that keeps the run")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as aside:
        print(json.dumps(measure(options.out or Path(aside, "run"), options.tasks, options.steps)))


def measure(folder: Path, tasks: int, steps: int) -> dict[str, float]:
    """Make up a run in a new folder, write its page, and return what it took."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    names = [
        f"task{i:04d}_{WORDS[i % 16]}_dataset_{WORDS[i // 16 % 16]}_question_generation" for i in range(tasks)
    ]
    trained = names[: tasks * 3 // 4]
    write_json(folder / "config.json", {"name": "large", "eval": {"metric": "rouge_l"}})
    write_json(folder / "plan.json", {"steps": steps, "tasks": {n: row(i) for i, n in enumerate(trained)}})
    train(folder, names, trained, steps, rng)
    evaluate(folder, names, trained, rng)
    began = time.process_time()
    page = write_report(folder)
    return {
        "metrics_bytes": (folder / "metrics.jsonl").stat().st_size,
        "page_bytes": page.stat().st_size,
        "page_s": round(time.process_time() - began, 2),
    }


def row(i: int) -> dict[str, int | str]:
    """Return what plan.json says of a task."""
    return {
        "source": "ni", "examples": 2500 + i, "tokens": 300_000 + 77 * i, "target_tokens": 50_000 + 13 * i,
        "drawn_examples": 900 + i, "drawn_tokens": 110_000 + 31 * i, "drawn_target_tokens": 18_000 + 7 * i,
    }  # fmt: skip


def train(folder: Path, names: list[str], trained: list[str], steps: int, rng: np.random.Generator) -> None:
    """Write metrics.jsonl by the logger of a run."""
    log = RunLogger(
        RunFolder(folder), Tracker(), is_main=True, steps=steps, log_every=1, remote=None, tasks=trained
    )
    for step in range(1, steps + 1):
        losses = {t: float(rng.lognormal(0.5, 0.3)) for t in rng.choice(trained, DRAWN, replace=False)}
        log.step(
            StepMetrics(
                step=step, epoch=0, loss=float(np.mean(list(losses.values()))), grad_norm=float(rng.lognormal()), lr=1e-4, tokens=130_000,
                target_tokens=20_000, tokens_per_s=9e4, mfu=0.4, fill=0.99, imbalance=1.01, step_s=1.4, data_wait_s=0.002,
                memory_bytes=60_000_000_000, skipped=False, task_loss=losses, source_loss={"ni": 1.0},
            )
        )  # fmt: skip
        if step % max(1, steps // EVALUATIONS) == 0:
            curves = dict.fromkeys(("validation", "seen", "heldout_near", "heldout_far"), 1.2345678901234567)
            log.evaluation(
                step,
                {
                    "loss": 1.2345678901234567,
                    "set_loss": curves,
                    "task_loss": {t: float(rng.lognormal()) for t in names},
                },
            )


def evaluate(folder: Path, names: list[str], trained: list[str], rng: np.random.Generator) -> None:
    """Write generations.jsonl and scores.json as an evaluation does."""

    def example(task: str, i: int) -> Example:
        words = [" ".join(rng.choice(WORDS, size=n)) for n in (20, 40, 6)]
        return single_turn(
            task=task, source="ni", instruction=words[0], input=f"{words[1]} {i}", output=words[2]
        )

    held = names[len(trained) :]
    sets = {"seen": trained, "heldout_near": held[: len(held) // 2], "heldout_far": held[len(held) // 2 :]}
    examples = {name: [example(t, i) for t in tasks for i in range(EXAMPLES)] for name, tasks in sets.items()}
    every = [e for es in examples.values() for e in es]

    def said(share: float) -> dict[str, Generation]:
        return {
            e.id: Generation(
                id=e.id, prediction=e.output if rng.random() < share else "no idea", stopped=True, tokens=8
            )
            for e in every
        }

    baselines = Baselines(TrainingPair(e.task, e.instruction, e.output, e.input) for e in examples["seen"])
    losses = {e.id: AnswerLoss(id=e.id, nats=9.0, tokens=8) for e in every}
    judged = score_examples(examples, said(0.6), baselines, said(0.3), losses=losses)
    result: dict[str, Any] = scores(judged, training_examples=dict.fromkeys(trained, 50))
    write_results(folder / "eval", judged, result | {"evaluated": "the export", "probes": {}})


if __name__ == "__main__":
    sys.exit(main())
