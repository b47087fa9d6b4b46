"""Run folder -> answers of its model, the base model and baselines, their scores and probes. The parent needs no torch; its ranks do.

`python -m sft_dist.pipelines.evaluate.command --run-dir D` is one rank under torchrun; the parts that it writes are resumable.
Results lie in <run>/eval; those of other checkpoints, models or settings beside them, in <run>/eval/others/<name>.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console

from sft_dist.cluster.local_ranks import failure, mistake, ranks_of, run_ranks
from sft_dist.config import RunConfig
from sft_dist.config.load import load_run_config
from sft_dist.core import process
from sft_dist.core.errors import UserError
from sft_dist.core.records import Example
from sft_dist.core.runfolder import RunFolder
from sft_dist.core.sets import JUDGES, VALIDATION, SetName, curve_of
from sft_dist.evals import tracker_tables
from sft_dist.evals.choices import offered, picked
from sft_dist.evals.extraction import collect_continuations, continuation_part
from sft_dist.evals.generate import collect_generations, generate_part, load_model
from sft_dist.evals.loss import collect_losses, loss_part
from sft_dist.evals.probe_material import GENERAL, Answers, Material, few_of
from sft_dist.evals.probes import asked_of, judge_probes
from sft_dist.evals.resumable_work import is_done
from sft_dist.evals.score import ScoredExample, score_examples, scores, write_results
from sft_dist.evals.splits import Kind, has_sets, load_eval_sets, near_tasks
from sft_dist.pipelines.data.lineage import trained_before
from sft_dist.pipelines.evaluate.job import Job, make_job
from sft_dist.pipelines.evaluate.training_set import TrainingSet, read_training_set
from sft_dist.pipelines.train.run_folder import check_evaluation
from sft_dist.report.model_card import write_model_card
from sft_dist.train.tracker import Tracker

RANK = "sft_dist.pipelines.evaluate.command"
WAIT_S = 60.0  # for parts: the ranks have ended when they are collected
EXPORTS = "exports"
Found = TypeVar("Found")


def evaluate(
    folder: RunFolder,
    console: Console,
    overrides: Sequence[str] = (),
    *,
    checkpoints: Sequence[str] = (),
    model: str | None = None,
    ranks: Callable[[], int] | None = None,
) -> dict[str, Any]:
    """Evaluate the exported model of a run, or others under its settings; write generations.jsonl and scores.json.

    Args:
        folder: The run folder.
        console: Where progress is shown.
        overrides: Changes of `eval` and `launch`, such as "eval.max_new_tokens=64".
        checkpoints: Checkpoints that are evaluated instead of the export, each with results of its own: a curve.
        model: A model folder or hub id that is evaluated instead.
        ranks: Lets the ranks of a group that is there already generate, and returns their exit code; None: some are started.

    Returns:
        The scores (of the last of several); empty when nothing is held out.

    Raises:
        UserError: When there is no model, an override cannot change, or data or template changed since training.
        RuntimeError: When the ranks failed.
    """
    if not has_sets(folder.path, _names(load_run_config(folder.path))):
        console.print("nothing is held out (data.holdout), so there is nothing to evaluate")
        return {}
    with folder.evaluating():
        if not checkpoints:
            return _evaluate(make_job(folder, overrides, model=model), console, ranks=ranks)
        return _curve(folder, console, overrides, checkpoints, ranks=ranks)


def _curve(
    folder: RunFolder,
    console: Console,
    overrides: Sequence[str],
    checkpoints: Sequence[str],
    *,
    ranks: Callable[[], int] | None,
) -> dict[str, Any]:
    """Evaluate checkpoints, each with results of its own; return the scores of the last."""
    from sft_dist.pipelines.evaluate.export import export

    result: dict[str, Any] = {}
    for name in checkpoints:
        target = folder.path / "eval" / EXPORTS / name
        try:
            exported = export(folder, name, target)
            job = make_job(folder, overrides, model=str(exported), label=name)
            result = _evaluate(job, console, ranks=ranks, step=int(name.rpartition("-")[2]))
        finally:
            shutil.rmtree(target, ignore_errors=True)
    return result


def _evaluate(
    job: Job, console: Console, *, step: int | None = None, ranks: Callable[[], int] | None = None
) -> dict[str, Any]:
    config, renderer = job.config, job.renderer()
    sets = _sets(job)
    examples = [e for members in sets.values() for e in members]
    with console.status("reading what was trained on, for baselines and probes"):
        trained = read_training_set(
            config, job.run, {e.task for e in examples}, per_task=config.eval.probe_examples_per_task
        )
    told = {**trained.metrics, **_told(config, examples)}
    choices = offered(sets, metric=config.eval.metric, told=told, categories=trained.categories)
    families = {t: f for f, tasks in _families(job).items() for t in tasks}
    material = _material(job, sets, trained, families)
    variants, asked = asked_of(config.eval.probes, material)
    written = [e for e in examples if e.id not in choices]
    candidates = [c for copies in choices.values() for c in copies]
    asked["generate"] = _distinct([*written, *asked["generate"]])
    asked["loss"] = _distinct([*examples, *candidates, *asked["loss"]])
    job.write(asked)
    world = process.current().world_size if ranks else ranks_of(config.launch.nproc)
    part = job.part("model", "generate", renderer.fingerprint, asked["generate"])
    with console.status("generating") as status:

        def watch() -> None:
            done = sum(_lines(path) for path in part.glob("*.jsonl")) if part.is_dir() else 0
            status.update(f"generating answers of {job.label}: {done} of {len(asked['generate'])}")

        code = ranks() if ranks else run_ranks(job.run, RANK, nproc=world, port=None, watch=watch)
    if code:
        raise mistake(job.run, RANK) or failure(job.run, RANK, code)

    def answers(who: str) -> Answers:
        def kept(kind: Kind, collect: Callable[..., dict[str, Found]]) -> dict[str, Found]:
            folder = job.part(who, kind, renderer.fingerprint, asked[kind])
            return collect(folder, asked[kind], world_size=world, timeout_s=WAIT_S)

        said, losses = kept("generate", collect_generations), kept("loss", collect_losses)
        return Answers(
            generations={**said, **picked(choices, losses)},
            losses=losses,
            continuations=kept("continue", collect_continuations) if asked["continue"] else {},
        )

    model, base = answers("model"), answers("base") if config.eval.base else None
    with console.status("judging"):
        judged = score_examples(
            sets,
            model.generations,
            trained.baselines,
            base.generations if base else None,
            metric=config.eval.metric,
            told=told,
            categories=trained.categories,
            losses=model.losses,
        )
        result = scores(
            judged,
            asked=config.eval.metric,
            categories=trained.categories,
            families=families,
            training_examples=trained.counts,
            seed=config.seed,
        )
        result["probes"] = judge_probes(variants, material, model, base)
    result |= {"evaluated": job.label, "overrides": list(job.overrides), "step": step}
    write_results(job.out, judged, result)
    if job.out == job.run.path / "eval":
        _track(config, job.run, result, judged)
        if job.run.export.is_dir():
            write_model_card(job.run.path, job.run.export)
    return result


def _names(config: RunConfig) -> tuple[SetName, ...]:
    """Return the sets that are generated on: those that judge, and what chooses where trials are ranked by its score."""
    return (VALIDATION, *JUDGES) if config.sweep.metric == VALIDATION else JUDGES


def _sets(job: Job) -> dict[str, list[Example]]:
    """Return the examples of each set that judges, held-out tasks told apart by their distance to trained ones."""
    check_evaluation(job.run)
    near, trained = near_tasks(job.run.path), trained_before(job.run.path)
    out: dict[str, list[Example]] = {}
    limit = job.config.eval.max_examples_per_task
    for name, examples in load_eval_sets(
        job.run.path, _names(job.config), max_per_task=limit, seed=job.config.seed
    ).items():
        for e in (e for e in examples if e.id not in trained):
            out.setdefault(curve_of(name, e.task, near), []).append(e)
    return out


def _families(job: Job) -> dict[str, tuple[str, ...]]:
    """Return family -> tasks, as declared."""
    from fnmatch import fnmatchcase

    tasks = set(job.run.plan("tasks")["tasks"])
    tasks |= {e.task for members in _sets(job).values() for e in members}
    return {
        family: tuple(t for t in sorted(tasks) if any(fnmatchcase(t, p) for p in patterns))
        for family, patterns in job.config.data.holdout.families.items()
    }


def _material(
    job: Job, sets: dict[str, list[Example]], trained: TrainingSet, families: dict[str, str]
) -> Material:
    config = job.config
    contrasts: dict[str, tuple[str, str]] = {}
    kept = {n: few_of(es, config.eval.probe_examples_per_task, config.seed) for n, es in sets.items()}
    for source in trained.sources.values():
        if sibling := getattr(source, "sibling_answer", None):
            contrasts |= {e.id: found for es in kept.values() for e in es if (found := sibling(e))}
    texts: Sequence[str] = GENERAL
    if config.eval.general_text:
        file = Path(config.eval.general_text)
        if not file.is_file():
            raise UserError(
                f"eval.general_text={file} is not a file, so forgetting cannot be measured on it; name a text file, or leave it out"
            )
        texts = [p for p in file.read_text(encoding="utf-8").split("\n\n") if p.strip()][:200]
    return Material(
        sets=kept,
        trained=trained.sample,
        phrasings=trained.phrasings,
        contrasts=contrasts,
        families=families,
        texts=texts,
        seed=config.seed,
    )


def _track(
    config: RunConfig, run: RunFolder, result: dict[str, Any], judged: Sequence[ScoredExample]
) -> None:
    """Send scores, tables and samples to the boards of the run."""
    step = int(run.status().get("step") or 0)
    with Tracker.start(
        run.path,
        mode=config.wandb.mode,
        tensorboard=config.train.tensorboard,
        done=step,
        log_every=config.train.log_every_steps,
        job="evaluate",
        name=config.name,
        config=config.model_dump(mode="json"),
        **config.wandb.model_dump(exclude={"mode"}),
    ) as tracker:
        if tracker:
            tracker.results(step, tracker_tables.figures(result), tracker_tables.tables(result, judged))


def _told(config: RunConfig, examples: Sequence[Example]) -> dict[str, str]:
    """Return task -> metric, of the tasks whose source names one in the config."""
    named = {name: source.metric for name, source in config.data.sources.items()}
    return {e.task: metric for e in examples if (metric := named.get(e.source)) is not None}


def _distinct(examples: Sequence[Example]) -> list[Example]:
    return list({e.id: e for e in examples}.values())


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n")


def main() -> int:
    """Run one rank under torchrun."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--run-dir", type=Path, required=True)
    return run_rank(RunFolder(arguments.parse_args().run_dir))


def run_rank(folder: RunFolder) -> int:
    """Write the answers and losses of this rank's share: of the model, then of the base model. Return an exit code."""
    me = process.current()
    import torch

    device = (
        f"cuda:{me.local_rank}"
        if torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR") != "cpu"
        else "cpu"
    )
    try:
        job, asked = Job.read(folder)
        renderer, config = job.renderer(), job.config
        share: dict[str, Any] = {
            "rank": me.rank,
            "world_size": me.world_size,
            "batch_size": config.eval.prompts_per_batch,
        }
        for who, path in (("model", job.model), ("base", job.base)):
            if who == "base" and not config.eval.base:
                continue
            parts = {k: job.part(who, k, renderer.fingerprint, es) for k, es in asked.items() if es}
            if who == "base" and all(
                is_done(p, asked[k], world_size=me.world_size) for k, p in parts.items()
            ):
                continue  # another run over this data has asked it already
            loaded = load_model(
                path,
                revision=config.model.revision if who == "base" else None,
                device=device,
                dtype=config.model.dtype,
            )
            generate_part(
                loaded,
                asked["generate"],
                renderer,
                renderer.tokenizer,
                job.part(who, "generate", renderer.fingerprint, asked["generate"]),
                max_new_tokens=config.eval.max_new_tokens,
                **share,
            )
            loss_part(loaded, asked["loss"], renderer, parts["loss"], **share)
            if asked["continue"]:
                continuation_part(loaded, asked["continue"], renderer, parts["continue"], **share)
            del loaded
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
