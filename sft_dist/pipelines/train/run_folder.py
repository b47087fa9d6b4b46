"""Config -> run folder: write what is run, refuse a config that cannot continue the run in the folder."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft_dist.cluster.sweep.folder import SweepFolder
from sft_dist.config import RunConfig
from sft_dist.config.changes import differences, fixed, shown
from sft_dist.config.load import config_from_json, load_run_config
from sft_dist.core.errors import UserError
from sft_dist.core.files import checksum, expanded, read_object, write_checked, write_text
from sft_dist.core.process import logger
from sft_dist.core.runfolder import RunFolder
from sft_dist.core.sets import NEAR, SETS
from sft_dist.pipelines.data import lineage
from sft_dist.pipelines.data.prepare import Prepared, store_url
from sft_dist.pipelines.train.planning import cost_model, make_planner, open_corpus, total_steps
from sft_dist.shards import Store
from sft_dist.train.schedule import lr_at
from sft_dist.train.zero import check_extra

if TYPE_CHECKING:
    from sft_dist.checkpoint.remote import Remote

FROZEN = "frozen.json"  # in eval/: checksums of the sets
EVALUATION = (NEAR, *(f"{name}.jsonl" for name in SETS))
JUMP = 0.02  # of a learning rate that is said when a run goes on with another plan


def run_folder(config: RunConfig) -> RunFolder:
    """Return the folder of a config's run."""
    return RunFolder(Path(config.run_root) / config.name)


def set_up(config: RunConfig, prepared: Prepared, folder: RunFolder) -> None:
    """Write config.json, stores.json and the evaluation sets of a run, new or continued.

    What the run needs is frozen with it: another preparation in the same data folder does not change what it is
    evaluated on. The folder's lock is held meanwhile, so a live run is never altered.

    Raises:
        UserError: When the folder holds a run that is live, or that this config cannot continue.
    """
    check_extra(config.deepspeed.extra)
    if not prepared.stores:
        raise UserError(
            "every example is held out or dropped, so there is nothing to train on; look at data.holdout and data.filters"
        )
    if config.checkpoint.resume == "required" and not _has_checkpoint(folder):
        raise UserError(
            f"checkpoint.resume=required, but {folder.checkpoints} has no checkpoint, so there is nothing to continue; "
            "check name and run_root, or use checkpoint.resume=auto to start anew"
        )
    config = make_way(config, folder)
    _refuse_other_remote(config, folder)
    if jump := rate_jump(config, prepared, folder):
        logger().warning(jump)
    (folder.path / "control").mkdir(parents=True, exist_ok=True)
    with folder.lock():
        _freeze_evaluation(config, folder)
        write_checked(folder.config, config.model_dump(mode="json"))
        write_checked(folder.stores, _stores(config, prepared))
        if prepared.lineage:
            write_checked(folder.path / lineage.FILE, prepared.lineage.as_json())


def rate_jump(config: RunConfig, prepared: Prepared, folder: RunFolder) -> str:
    """Say how the learning rate jumps where a run goes on with another number of steps or another schedule; empty if it does not."""
    plan = folder.path / "plan.json"
    if not (_has_checkpoint(folder) and folder.config.is_file() and plan.is_file()):
        return ""
    old = load_run_config(folder.path)
    if (old.optim, old.train) == (config.optim, config.train):
        return ""
    try:
        done = int(folder.plan("steps")["steps"])
    except UserError:
        return ""  # it is written anew before the first step
    at = max(
        int(p.name.removeprefix("step-")) for p in folder.checkpoints.glob("step-*") if p.name[5:].isdecimal()
    )
    planner = make_planner(
        config,
        open_corpus(prepared.stores),
        world_size=1,
        cost=cost_model(config, prepared.renderer.tokenizer.vocab_size),
    )
    steps = total_steps(config, planner, planner.epoch(0))
    if at >= steps or not at:
        return ""
    before, after = (
        lr_at(step, c.optim, total_steps=n, tokens_per_step=c.train.tokens_per_step)
        for step, c, n in ((at - 1, old, done), (at, config, steps))
    )
    planned = (
        lr_at(at, old.optim, total_steps=done, tokens_per_step=old.train.tokens_per_step)
        if at < done
        else before
    )
    if abs(after - planned) <= JUMP * max(after, planned):
        return ""
    return (
        f"the run goes on from step {at} with {steps} steps in place of {done}, so the learning rate goes from {before:.3g} to {after:.3g} "
        f"at step {at + 1}, where {planned:.3g} was planned; to avoid the jump, start anew (checkpoint.resume=never)"
    )


def make_way(config: RunConfig, folder: RunFolder) -> RunConfig:
    """Return the config as it is frozen, its paths absolute; put a run aside that it does not continue.

    Raises:
        UserError: When the folder holds a run that is live, or that this config cannot continue.
    """
    config = absolute(config)
    if Path(config.run_root).exists() and not Path(config.run_root).is_dir():
        raise UserError(
            f"run_root={config.run_root} is a file, so no run folder can be made in it; name a folder"
        )
    if SweepFolder(folder.path).file.exists():
        raise UserError(
            f"{folder.path} is the folder of a sweep, and a run there would mix with its trials; use another name"
        )
    if config.checkpoint.resume == "never" and (remote := _remote(config)) and remote.names():
        raise UserError(
            f"checkpoint.resume=never, but checkpoint.remote={config.checkpoint.remote} holds the checkpoints of an earlier run, "
            "which the new one would fetch and remove; give it another URL, or remove them"
        )
    if folder.path.exists():
        with folder.lock():
            if config.checkpoint.resume == "never" or not _continues(config, folder):
                aside = folder.path.with_name(f"{folder.path.name}.old-{time.strftime('%Y%m%d-%H%M%S')}")
                folder.path.rename(aside)
    # `never` has been obeyed now; a restart of this run must continue it
    if config.checkpoint.resume == "never":
        config = config.model_copy(
            update={"checkpoint": config.checkpoint.model_copy(update={"resume": "auto"})}
        )
    return config


def _stores(config: RunConfig, prepared: Prepared) -> dict[str, Any]:
    trained = str((Path(config.data.dir) / "tokenizer").resolve())
    return {
        "sources": {
            n: {"path": str(p.resolve()), "key": prepared.keys[n], "url": store_url(config, n)}
            for n, p in prepared.stores.items()
        },
        "eval_stores": {curve: str(path.resolve()) for curve, path in prepared.eval_stores.items()},
        "tokenizer": trained
        if config.render.train_vocab_size
        else config.model.tokenizer or config.model.path,
        "render": prepared.renderer.fingerprint,
        "clock": prepared.renderer.clock.isoformat() if prepared.renderer.clock else None,
        "template_text": prepared.renderer.template_text,
        "stop_ids": list(prepared.renderer.stop_ids),
        "read": {n: _read_facts(prepared, n) for n in prepared.selected.sources},
    }


def _freeze_evaluation(config: RunConfig, folder: RunFolder) -> None:
    """Copy the evaluation sets into the run folder, once; a copy that was damaged since is made anew from the same set.

    Raises:
        UserError: When a copy is damaged, and data.dir holds another set by now.
    """
    record = folder.path / "eval" / FROZEN
    with suppress(UserError):
        check_evaluation(folder)
        if record.is_file():
            return
    known: dict[str, str] = {}
    with suppress(UserError):
        known = read_object(record, "")
    for name in EVALUATION:
        source, copy = Path(config.data.dir) / "eval" / name, folder.path / "eval" / name
        if copy.exists() and known.get(name, checksum(copy)) == checksum(copy):
            continue
        if not source.is_file():
            continue
        if name in known and checksum(source) != known[name]:
            raise UserError(
                f"{copy} is damaged, and {source} holds another set by now, so the run would be judged by other examples than before; put a "
                "copy of it there, or start anew under another name"
            )
        write_text(copy, source.read_text(encoding="utf-8"))
    files = {name: folder.path / "eval" / name for name in EVALUATION}
    write_checked(record, {name: checksum(file) for name, file in files.items() if file.is_file()})


def check_evaluation(folder: RunFolder) -> None:
    """Compare the evaluation sets of a run with what was frozen; a run of an earlier version has no record of it.

    Raises:
        UserError: With the name of the file that changed.
    """
    record = folder.path / "eval" / FROZEN
    if not record.is_file():
        return
    remedy = "the command that started the run writes it anew"
    for name, said in read_object(record, remedy).items():
        file = folder.path / "eval" / name
        if not file.is_file() or checksum(file) != said:
            raise UserError(
                f"{file} is damaged (it does not match its checksum), so scores would be of other examples; {remedy}"
            )


def absolute(config: RunConfig) -> RunConfig:
    """Resolve local paths: a run folder is used from any directory. Hub ids stay."""

    def local(path: str | None) -> str | None:
        return str(Path(path).resolve()) if path and Path(path).exists() else path

    model = config.model.model_copy(
        update={k: local(getattr(config.model, k)) for k in ("path", "tokenizer", "from_run")}
    )
    if model.from_run:
        model = model.model_copy(update={"path": str(Path(model.from_run) / "export")})
    lora = config.lora and config.lora.model_copy(update={"adapter": local(config.lora.adapter)})
    render = config.render.model_copy(update={"template": local(config.render.template)})
    holdout = config.data.holdout.model_copy(update={"task_file": local(config.data.holdout.task_file)})
    sources = {
        name: s.model_copy(
            update={
                k: local(getattr(s, k))
                for k in ("path", "templates", "task_file")
                if isinstance(getattr(s, k, None), str)
            }
        )
        for name, s in config.data.sources.items()
    }
    folder = str(Path(config.data.dir).resolve())
    data = config.data.model_copy(update={"dir": folder, "holdout": holdout, "sources": sources})
    plugins = tuple(str(expanded(p).resolve()) if p.endswith(".py") else p for p in config.plugins)
    return config.model_copy(
        update={"plugins": plugins, "model": model, "lora": lora, "render": render, "data": data}
    )


def _read_facts(prepared: Prepared, name: str) -> dict[str, Any]:
    selection = prepared.selected.sources[name]
    dropped = dict(selection.dropped)
    kept = 0
    if name in prepared.stores:
        store = Store.open(prepared.stores[name])
        dropped |= store.info["dropped"]
        kept = len(store)
    return {
        "read": selection.read,
        "unreadable": selection.unreadable,
        "evaluation": selection.evaluation,
        "prompts": selection.prompts,
        "skipped": {reason: sum(tasks.values()) for reason, tasks in selection.skipped.items()},
        "dropped": dropped,
        "kept": kept,
    }


def _remote(config: RunConfig) -> Remote | None:
    if not config.checkpoint.remote:
        return None
    from sft_dist.checkpoint.remote import Remote  # loads torch, which nothing else here needs

    return Remote(config.checkpoint.remote)


def _refuse_other_remote(config: RunConfig, folder: RunFolder) -> None:
    """Refuse a new run folder whose checkpoint.remote holds the checkpoints of another run: it would continue that one."""
    if _has_checkpoint(folder) or not (remote := _remote(config)) or not (text := remote.run_config()):
        return
    changed = differences(config_from_json(text).model_dump(mode="json"), config.model_dump(mode="json"))
    if wrong := fixed(changed, "run"):
        raise UserError(
            f"checkpoint.remote={config.checkpoint.remote} holds the checkpoints of a run with other settings "
            f"({shown(changed, wrong)}), which this one would continue; give every run a URL of its own, or restore the settings"
        )


def _has_checkpoint(folder: RunFolder) -> bool:
    return folder.checkpoints.is_dir() and any(folder.checkpoints.glob("step-*"))


def _continues(new: RunConfig, folder: RunFolder) -> bool:
    """Say whether this config continues the run in the folder; False: what lies there never came to a checkpoint.

    Raises:
        UserError: For a config that would continue a trained run on other data or with other updates.
    """
    if not folder.config.exists():
        return True
    changed = differences(load_run_config(folder.path).model_dump(mode="json"), new.model_dump(mode="json"))
    wrong = fixed(changed, "run")
    if not _has_checkpoint(folder):
        return not wrong
    if wrong:
        raise UserError(
            f"{folder.path} was trained with other settings ({shown(changed, wrong)}), so continuing it would mix two runs; "
            "use another name, restore the settings, or set checkpoint.resume=never to start anew (the old folder is kept aside)"
        )
    if changed:
        folder.event("config_changed", keys=sorted(changed))
    return True
