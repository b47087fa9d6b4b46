"""Run folder -> generations on held-out examples and tasks, scores beside the baselines.

This module is also a rank of the generation: `torchrun ... -m sft_dist.pipelines.evaluate.command --run-dir DIR`. Ranks share
no process group; each writes its part, and whoever evaluates collects them.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from sft_dist.cluster.local_ranks import failure, mistake, ranks_of, run_ranks
from sft_dist.config import RunConfig
from sft_dist.config.load import load_run_config
from sft_dist.core import process
from sft_dist.core.errors import UserError
from sft_dist.core.records import Example
from sft_dist.core.runfolder import RunFolder
from sft_dist.core.sets import JUDGES, VALIDATION, SetName
from sft_dist.evals.baselines import Baselines, TrainingPair, training_pairs
from sft_dist.evals.generate import collect_generations, generate_part, load_model, part_folder
from sft_dist.evals.loss import collect_losses, loss_part
from sft_dist.evals.probes import probed, sensitivity
from sft_dist.evals.score import score_examples, scores, write_results
from sft_dist.evals.splits import has_sets, load_eval_sets
from sft_dist.pipelines.data.renderer import make_renderer
from sft_dist.render.renderer import Renderer
from sft_dist.selection.assign import select
from sft_dist.selection.files import training_examples
from sft_dist.sources import open_source

RANK = "sft_dist.pipelines.evaluate.command"
WAIT_S = 60.0  # for parts: the ranks have ended when they are collected


class _Work:
    """What is generated: the same for the ranks and for the one who collects."""

    def __init__(self, config: RunConfig, folder: RunFolder) -> None:
        stores = folder.read_stores()
        self.config, self.root = config, folder.path / "eval" / "parts"
        self.model = str(folder.export)
        self.base = str(folder.path / "init") if config.model.shape else str(config.model.path)
        self.renderer: Renderer = make_renderer(
            config, Path(config.data.dir), _no_texts, clock=stores.get("clock")
        )
        if self.renderer.fingerprint != stores["render"]:
            raise UserError(
                f"tokenizer or template changed since {folder.path} was trained, so prompts would differ from training; "
                "restore them, or train again"
            )
        self.sets = load_eval_sets(
            folder.path, _sets(config), max_per_task=config.eval.max_examples_per_task, seed=config.seed
        )
        self.examples = [e for members in self.sets.values() for e in members]
        self.variants = probed(self.examples, seed=config.seed)
        self.probes = list({v.id: v for pairs in self.variants.values() for v in pairs.values()}.values())

    def generation_folder(self, model: str, examples: list[Example]) -> Path:
        """Folder of the generated parts: another model, prompt or limit gives another folder."""
        return part_folder(
            self.root,
            "generate",
            model,
            self.renderer.fingerprint,
            self.config.eval.max_new_tokens,
            [e.id for e in examples],
        )

    def loss_folder(self, examples: list[Example]) -> Path:
        """Folder of the loss parts."""
        return part_folder(self.root, "loss", self.model, self.renderer.fingerprint, [e.id for e in examples])


def _sets(config: RunConfig) -> tuple[SetName, ...]:
    """Return the sets that are generated on: those that judge, and what chooses where trials are ranked by its score."""
    return (VALIDATION, *JUDGES) if config.sweep.metric == VALIDATION else JUDGES


def evaluate(folder: RunFolder, console: Console) -> dict[str, Any]:
    """Evaluate the exported model of a run; write eval/generations.jsonl and eval/scores.json.

    Returns:
        The scores; empty when nothing is held out.

    Raises:
        UserError: When there is no export, or data or template changed since training.
        RuntimeError: When the ranks failed.
    """
    config = load_run_config(folder.path)
    if not has_sets(folder.path, _sets(config)):
        console.print("nothing is held out (data.holdout), so there is nothing to evaluate")
        return {}
    if not any((folder.export / name).is_file() for name in ("config.json", "adapter_config.json")):
        raise UserError(
            f"{folder.export} holds no model, so there is nothing to evaluate; run: sft-dist export {folder.path}"
        )
    work = _Work(config, folder)
    world = ranks_of(config.launch.nproc)
    with console.status("generating") as status:
        parts = [work.generation_folder(work.model, work.examples)]

        def watch() -> None:
            done = sum(_lines(path) for path in parts[0].glob("*.jsonl")) if parts[0].is_dir() else 0
            status.update(f"generating answers: {done} of {len(work.examples)}")

        code = run_ranks(folder, RANK, nproc=world, port=None, watch=watch)
    if code:
        raise mistake(folder, RANK) or failure(folder, RANK, code)
    everything = [*work.examples, *work.probes]
    answers = collect_generations(parts[0], work.examples, world_size=world, timeout_s=WAIT_S)
    answers |= (
        collect_generations(
            work.generation_folder(work.model, work.probes), work.probes, world_size=world, timeout_s=WAIT_S
        )
        if work.probes
        else {}
    )
    losses = collect_losses(work.loss_folder(everything), everything, world_size=world, timeout_s=WAIT_S)
    base = (
        collect_generations(
            work.generation_folder(work.base, work.examples),
            work.examples,
            world_size=world,
            timeout_s=WAIT_S,
        )
        if config.eval.base
        else None
    )
    with console.status("reading what was trained on, for the baselines"):
        baselines, trained, categories = _training(config, {e.task for e in work.examples})
    judged = score_examples(work.sets, answers, baselines, base)
    result = scores(judged, categories=categories, losses=losses, training_examples=trained)
    result["probes"] = sensitivity(work.variants, answers, losses)
    write_results(folder.path / "eval", judged, result)
    return result


def _training(config: RunConfig, tasks: set[str]) -> tuple[Baselines, Counter[str], Mapping[str, str]]:
    """Read what was trained on once: the baselines of `tasks`, examples by task, categories where the source knows them."""
    sources = {name: open_source(name, c) for name, c in config.data.sources.items()}
    selected = select(
        config.data, sources, Path(config.data.dir), lambda _: None, seed=config.seed, write=False
    )
    count: Counter[str] = Counter()

    def pairs() -> Iterator[TrainingPair]:
        for name, source in sources.items():
            for example in training_examples(source, selected.sources[name]):
                count[example.task] += 1
                yield training_pairs(example)

    baselines = Baselines(pairs(), tasks=tasks, seed=config.seed)
    categories: dict[str, str] = {}
    for source in sources.values():
        if info := getattr(source, "task_info", None):
            categories |= {t: i.categories[0] for t, i in info().items() if i.categories}
    return baselines, count, categories


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n")


def _no_texts() -> list[str]:
    raise UserError(
        "the trained tokenizer is gone from data.dir, so prompts cannot be rendered; run: sft-dist prepare"
    )


def main() -> int:
    """Run one rank of the generation."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--run-dir", type=Path, required=True)
    folder = RunFolder(arguments.parse_args().run_dir)
    me = process.current()
    import torch

    device = (
        f"cuda:{me.local_rank}"
        if torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR") != "cpu"
        else "cpu"
    )
    try:
        config = load_run_config(folder.path)
        work = _Work(config, folder)
        model = load_model(work.model, device=device)
        share: dict[str, Any] = {"rank": me.rank, "world_size": me.world_size}
        generate = {
            "max_new_tokens": config.eval.max_new_tokens,
            "batch_size": config.eval.prompts_per_batch,
            **share,
        }
        for examples in (work.examples, work.probes):
            if examples:
                generate_part(
                    model,
                    examples,
                    work.renderer,
                    work.renderer.tokenizer,
                    work.generation_folder(work.model, examples),
                    **generate,
                )
        everything = [*work.examples, *work.probes]
        loss_part(
            model,
            everything,
            work.renderer,
            work.loss_folder(everything),
            batch_size=config.eval.prompts_per_batch,
            **share,
        )
        if config.eval.base:
            del model
            base = load_model(work.base, revision=config.model.revision, device=device)
            generate_part(
                base,
                work.examples,
                work.renderer,
                work.renderer.tokenizer,
                work.generation_folder(work.base, work.examples),
                **generate,
            )
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
