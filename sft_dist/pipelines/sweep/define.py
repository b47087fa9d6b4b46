"""Overrides and config -> a sweep folder; a trial of it -> its config."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pydantic

from sft_dist.cluster.slurm.job_chain import FOLDER
from sft_dist.cluster.sweep.folder import Definition, SweepFolder, Trial
from sft_dist.cluster.sweep.search import check_installed
from sft_dist.cluster.sweep.space import combinations, corners, split
from sft_dist.config import RunConfig
from sft_dist.config.changes import differences, fixed
from sft_dist.config.load import compose, load_config
from sft_dist.config.sweep import SweepConfig
from sft_dist.core.errors import UserError
from sft_dist.core.files import fingerprint

LENGTHEN = ("trials", "retries", "max_parallel")  # of sweep.json, beside further values of a grid


def define(file: Path | None, overrides: Sequence[str]) -> SweepFolder:
    """Make a sweep, or lengthen the one that is there; every trial's config is validated before any is begun.

    Args:
        file: The user's config file.
        overrides: Those of all trials, and those with several values.

    Raises:
        UserError: With every mistake in the config of any trial, or when the folder holds another sweep.
    """
    fixed, space = split(overrides)
    # the section as such, with no swept key set: a key that only trials set may be missing from the rest
    space = _space(fixed, file) | space
    if not space:
        raise UserError(
            "nothing is swept: no override has several values, and sweep.space is empty; give some, such as optim.lr=1e-5,2e-5"
        )
    points = corners(space)
    base = load_config([*fixed, *_texts(points[0])], file)
    sweep = base.sweep
    if sweep.metric in ("eval_loss", "validation") and not base.data.validates:
        raise UserError(
            f"sweep.metric={sweep.metric} ranks trials by the validation set, and there is none, so nothing could be ranked; set "
            "data.validation.share=0.02, or sweep.metric=train_loss or tokens_per_s"
        )
    if sweep.method == "optuna":
        check_installed()
    else:
        points = combinations(space)
    _validate(fixed, points, file, pruning=sweep.pruning != "none")
    definition = Definition(
        method=sweep.method,
        metric=sweep.metric,
        space=space,
        overrides=fixed,
        cwd=str(Path.cwd()),
        base=base.model_dump(mode="json"),
        trials=sweep.trials if sweep.method == "optuna" else len(points),
        pruning=sweep.pruning,
        prune_after=sweep.prune_after,
        retries=sweep.retries,
        max_parallel=sweep.max_parallel,
        seed=base.seed,
    )
    folder = SweepFolder(Path(base.run_root).resolve() / sweep.name)
    if any((folder.path / name).is_file() for name in ("config.json", f"{FOLDER}/train.sbatch")):
        raise UserError(
            f"{folder.path} is a run's folder, and a sweep there would mix with it; use another sweep.name"
        )
    with folder.lock():
        if folder.file.is_file():
            definition = _lengthened(folder, definition)
        if file is not None:
            shutil.copyfile(file, folder.config)
        trials = folder.trials()
        known, taken = [t.settings for t in trials], {t.number for t in trials}
        new = [p for p in points if p not in known] if sweep.method == "grid" else []
        free = (n for n in count() if n not in taken)  # a record that was lost leaves a gap
        for number, settings in zip(free, new, strict=False):
            folder.write(Trial(number=number, settings=settings))
        if sweep.method == "grid":
            definition = replace(definition, trials=len(known) + len(new))
        folder.define(definition)
    return folder


def _space(fixed: Sequence[str], file: Path | None) -> dict[str, str]:
    """Return sweep.space of a config, which alone may make the rest valid."""
    values = compose(fixed, file).get("sweep") or {}
    try:
        return dict(SweepConfig.model_validate(values).space)
    except pydantic.ValidationError:
        load_config(fixed, file)  # the same mistake, in our words
        raise


def trial_config(
    folder: SweepFolder, definition: Definition, settings: dict[str, str], name: str
) -> RunConfig:
    """Return the config of a trial: what all share, its settings, its place. To be called in `definition.cwd`."""
    file = folder.config if folder.config.is_file() else None
    config = load_config([*definition.overrides, *_texts(settings)], file)
    group = config.wandb.group or folder.path.name
    checkpoint = config.checkpoint
    if checkpoint.remote:  # else a trial would continue the checkpoints of another one
        own = f"{checkpoint.remote.rstrip('/')}/{folder.path.name}/{name}"
        checkpoint = checkpoint.model_copy(update={"remote": own})
    return config.model_copy(
        update={
            "name": name,
            "run_root": str(folder.path),
            "data": config.data.model_copy(update={"dir": _data_dir(config, definition)}),
            "checkpoint": checkpoint,
            "wandb": config.wandb.model_copy(update={"group": group}),
            "sweep": SweepConfig(),  # of the sweep, not of its trials
        }
    )


def _data_dir(config: RunConfig, definition: Definition) -> str:
    """Trials that train on the same stores share them; others get a data folder of their own beside it."""
    key = data_key(config.model_dump(mode="json"))
    own = key != data_key(definition.base)
    return str(Path(f"{config.data.dir}-{key[:8]}" if own else config.data.dir).resolve())


def data_key(dump: dict[str, Any]) -> str:
    """Return a fingerprint of what decides the content of a data folder; mixing does not."""
    mixing = {"take_examples", "take_share", "share", "weight", "epochs"}
    data = {k: v for k, v in dump["data"].items() if k not in {"dir", "processes"}}
    data["sources"] = {
        name: {k: v for k, v in source.items() if k not in mixing} for name, source in data["sources"].items()
    }
    model = dump["model"]
    tokenizer = model["tokenizer"] or [model["path"], model["revision"]]
    if dump["render"]["train_vocab_size"] is not None:
        tokenizer = None
    return fingerprint([data, dump["render"], tokenizer, dump["seed"], dump["eval"]["max_examples_per_task"]])


def _texts(settings: dict[str, str]) -> list[str]:
    return [f"{k}={v}" for k, v in settings.items()]


def _validate(
    fixed: Sequence[str], points: Sequence[dict[str, str]], file: Path | None, *, pruning: bool
) -> None:
    """Load every point; raise one UserError that says which are wrong."""
    wrong: dict[str, list[str]] = {}
    for point in points:
        try:
            config = load_config([*fixed, *_texts(point)], file)
        except UserError as error:
            wrong.setdefault(str(error), []).append(" ".join(_texts(point)))
            continue
        if config.launch.nodes > 1 and "SLURM_JOB_ID" not in os.environ and config.cluster is None:
            raise UserError(
                f"launch.nodes={config.launch.nodes}, but trials start on this machine only; use launch.nodes=1, "
                "or submit the sweep: sft-dist sweep --submit ... cluster=NAME"
            )
        if pruning and not config.train.evaluates:
            raise UserError(
                "sweep.pruning looks at validation losses during training, but train.eval_every_steps is not set, so there would be none "
                "before the end; set it to a tenth of the steps or so"
            )
    if wrong:
        lines = "\n".join(
            f"{', '.join(which[:3])}{' ...' * (len(which) > 3)}: {why}" for why, which in wrong.items()
        )
        count = sum(map(len, wrong.values()))
        raise UserError(f"{count} of the points to be tried cannot be trained:\n{lines}")


def _lengthened(folder: SweepFolder, new: Definition) -> Definition:
    """Return the definition of a sweep that is there, with what may change taken from the new one."""
    old = folder.definition()
    changed = [
        k for k in ("method", "metric", "pruning", "prune_after") if getattr(old, k) != getattr(new, k)
    ]
    if list(old.space) != list(new.space) or (new.method == "optuna" and old.space != new.space):
        changed.append("the parameters")
    swept = {k.lstrip("+") for k in new.space}
    settings = fixed(differences(old.base, new.base), "sweep")
    changed += [k for k in settings if k not in swept and k.split(".")[0] not in swept]
    if changed:
        raise UserError(
            f"{folder.path} holds another sweep ({', '.join(changed[:5])} differ), and their trials could not be compared; "
            "use another sweep.name, or restore the settings"
        )
    return replace(
        old,
        space=new.space,
        overrides=new.overrides,
        **{k: getattr(new, k) for k in LENGTHEN},
    )
