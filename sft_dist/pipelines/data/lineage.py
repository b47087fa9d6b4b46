"""model.from_run -> the runs before this one: what they trained on, and what of it this run would be judged by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sft_dist.config import RunConfig
from sft_dist.config.load import load_run_config
from sft_dist.core.errors import UserError
from sft_dist.core.files import expanded, read_object
from sft_dist.core.records import Example
from sft_dist.core.runfolder import RunFolder
from sft_dist.render.renderer import Renderer

FILE = "lineage.json"  # in the run folder
MOST = 20  # stages; a longer chain is taken for a circle


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One run before this one.

    Attributes:
        run: Its folder.
        base: What it started from.
        steps: That it took.
        sources: Source -> examples in its store.
    """

    run: str
    base: str | None
    steps: int
    sources: Mapping[str, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Lineage:
    """The stages before a run, the last first, and what they were trained on that the run would be judged by.

    Attributes:
        stages: The runs.
        trained_ids: Ids of evaluation examples that a stage trained on.
        evaluated: Number of evaluation examples.
        trained_tasks: Held-out tasks of which a stage trained on other examples.
    """

    stages: tuple[Stage, ...]
    trained_ids: tuple[str, ...]
    evaluated: int
    trained_tasks: tuple[str, ...]

    @property
    def warnings(self) -> tuple[str, ...]:
        """What makes a score of this run less than it seems, a sentence each."""
        runs = ", ".join(stage.run for stage in self.stages)
        out = []
        if self.trained_ids:
            out.append(
                f"{len(self.trained_ids):,} of {self.evaluated:,} evaluation examples were trained on by an earlier stage ({runs}), so the losses "
                "on them are too low; `evaluate` leaves them out. Hold out the same examples in every stage (data.holdout, data.validation)"
            )
        if self.trained_tasks:
            shown = ", ".join(self.trained_tasks[:5]) + (
                "" if len(self.trained_tasks) <= 5 else " and others"
            )
            out.append(
                f"{len(self.trained_tasks):,} held-out tasks are tasks that an earlier stage trained on ({shown}), so they are new to this stage "
                "only; name them in data.holdout.tasks of every stage"
            )
        return tuple(out)

    def rows(self) -> dict[str, Any]:
        """Return what the card says, as name -> value."""
        out: dict[str, Any] = {}
        for k, stage in enumerate(self.stages, start=1):
            sources = ", ".join(f"{name} ({n:,})" for name, n in stage.sources.items())
            out[f"stage -{k}"] = f"{stage.run}: {stage.steps:,} steps on {sources}, from {stage.base}"
        if self.stages:
            out["trained before"] = f"{len(self.trained_ids):,} of {self.evaluated:,} evaluation examples"
        return out

    def as_json(self) -> dict[str, Any]:
        """Return what FILE holds."""
        return asdict(self)


def check_stage(config: RunConfig, renderer: Renderer | None = None) -> None:
    """Refuse a run to start from that has no export, or whose conversations look otherwise than this config renders them.

    Args:
        config: The run's config.
        renderer: Of this config; None: only the folder is looked at.

    Raises:
        UserError: With what to do.
    """
    if config.model.from_run is None:
        return
    folder = RunFolder(expanded(config.model.from_run))
    load_run_config(folder.path)
    if not (folder.export / "config.json").is_file():
        adapter = (folder.export / "adapter_config.json").is_file()
        remedy = (
            f"it is an adapter; merge it first: sft-dist merge {folder.export} --out FOLDER, and set model.path=FOLDER"
            if adapter
            else f"let it finish, or run: sft-dist export {folder.path}"
        )
        raise UserError(
            f"model.from_run={config.model.from_run} has no whole model in {folder.export}; {remedy}"
        )
    if renderer is not None and folder.read_stores()["template_text"] != renderer.template_text:
        raise UserError(
            f"render.template={config.render.template} writes conversations otherwise than {folder.path}, which this run starts from, was trained "
            f"on, so the model would have to unlearn them; use render.template=auto, or, where that is meant, "
            f"model.from_run=null model.path={folder.export}"
        )


def lineage_of(config: RunConfig, evaluated: Mapping[str, list[Example]]) -> Lineage | None:
    """Return the stages before a run; None when it starts from a model that is no run's.

    Args:
        config: The run's config.
        evaluated: Set -> its examples.

    Raises:
        UserError: When an earlier stage, or a store of it, is gone.
    """
    if config.model.from_run is None:
        return None
    from sft_dist.pipelines.evaluate.training_set import drawn_ids

    ids = {e.id for examples in evaluated.values() for e in examples}
    held_out = {e.task for e in evaluated.get("heldout", [])}
    stages: list[Stage] = []
    found: set[str] = set()
    tasks: set[str] = set()
    run: str | None = config.model.from_run
    while run is not None and len(stages) < MOST:
        folder = RunFolder(expanded(run))
        earlier = load_run_config(folder.path)
        plan = folder.plan("steps", "tasks", "sources")
        found |= ids & drawn_ids(earlier, folder)
        tasks |= held_out & set(plan["tasks"])
        sources = {name: int(facts["examples"]) for name, facts in plan["sources"].items()}
        steps = int(folder.status().get("step", plan["steps"]))
        stages.append(
            Stage(run=str(folder.path.resolve()), base=earlier.model.path, steps=steps, sources=sources)
        )
        run = earlier.model.from_run
    return Lineage(
        stages=tuple(stages),
        trained_ids=tuple(sorted(found)),
        evaluated=len(ids),
        trained_tasks=tuple(sorted(tasks)),
    )


def trained_before(run_dir: Path) -> frozenset[str]:
    """Return the ids of evaluation examples of a run that an earlier stage trained on."""
    file = run_dir / FILE
    if not file.is_file():
        return frozenset()
    told = read_object(file, "the command that started the run writes it anew")
    return frozenset(told.get("trained_ids", ()))
