"""The command line: one sub-command a stage. Parses, loads the config, calls one pipeline.

sft-dist run                                    everything: prepare, train, export, evaluate, report
sft-dist check my.yaml                          mistakes, and what training would consist of
sft-dist preview my.yaml                        which tokens carry loss
sft-dist train my.yaml train.epochs=2           train; prepares what is missing
"""

from __future__ import annotations

import argparse
import errno
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sft_dist.core.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from sft_dist.config import RunConfig

CHECK_EXAMPLES = 500  # of each source, evenly spread: what `check` renders when there is no store yet


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return the exit code: 0, 2 for a user's mistake, 1 for a failure of ours or the machine's."""
    from rich.console import Console

    # rich would fold lines at 80 columns in a log file
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 240)
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and (not hasattr(options, "config") or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.config += rest  # overrides behind an option, which argparse leaves over
    try:
        return int(options.command(options, console))
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except RuntimeError as error:
        if os.environ.get("SFT_TRACEBACK"):
            raise
        sys.stderr.write(f"failed: {error}\n")
        return 1
    except OSError as error:
        if os.environ.get("SFT_TRACEBACK"):
            raise
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        remedy = "; what is whole is kept: make room and run the same command again" if full else ""
        sys.stderr.write(f"failed: {error.filename or 'a file'}: {error.strerror or error}{remedy}\n")
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sft-dist",
        description="Distributed supervised fine-tuning.",
        epilog="Config keys: docs/config.md",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(
        name: str, command: Callable[[argparse.Namespace, Console], int], text: str, *, takes: str = "config"
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(command=command, name=name)
        if takes == "config":
            sub.add_argument(
                "config",
                nargs="*",
                metavar="FILE|KEY=VALUE",
                help="a config file of yours, then overrides; neither: the embedded demo",
            )
        elif takes == "run":
            sub.add_argument("run_dir", type=Path, metavar="RUN", help="a run folder, such as runs/demo")
        return sub

    add("run", _run, "Prepare, train, export, evaluate and report.")
    add(
        "check",
        _check,
        "List every mistake in the config, and say what training would consist of. Nothing is kept.",
    )
    preview = add("preview", _preview, "Show turns and packed rows, and which tokens carry loss.")
    preview.add_argument("--examples", type=int, default=3, metavar="N", help="examples of each source (3)")
    preview.add_argument("--html", type=Path, metavar="FILE", help="write a page as well")
    construct = add(
        "construct",
        _construct,
        "Generate examples with a teacher behind an HTTP server; goes on where it was ended.",
    )
    construct.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="SET",
        help="this set of construct.sets; may be repeated",
    )
    prepare = add("prepare", _prepare, "Build the token stores.")
    prepare.add_argument("--rebuild", action="store_true", help="replace stores that other settings built")
    prepare.add_argument(
        "--verify", action="store_true", help="check the checksums of what is there, build nothing"
    )
    prepare.add_argument(
        "--slice", default="0/1", metavar="I/N", help="build every N-th shard from the I-th (a Slurm array)"
    )
    score = add("score", _score, "Score training examples with the base model, for data.filters.quality.")
    score.add_argument("--rebuild", action="store_true", help="start over where scores of other settings are")
    card = add("card", _card, "Write the dataset card: what is trained on, and what was left out.")
    card.add_argument("--out", type=Path, metavar="FOLDER", help="default: card/ in data.dir")
    train = add(
        "train", _train, "Train on this machine; prepares what is missing, continues what was interrupted."
    )
    train.add_argument(
        "--smoke",
        action="store_true",
        help="only two steps on the heaviest batches, saved and exported, in a folder of its own",
    )
    freeze = add(
        "freeze", _freeze, "Validate and write the run folder without starting ranks (for launchers)."
    )
    freeze.add_argument("--run-dir", type=Path, required=True, help="the run folder")
    export = add("export", _export, "Write a checkpoint as a Hugging Face folder.", takes="run")
    export.add_argument("--checkpoint", metavar="NAME", help="such as step-00000100; the newest by default")
    export.add_argument("--out", type=Path, metavar="FOLDER", help="default: export/ of the run")
    add("evaluate", _evaluate, "Generate on held-out examples and tasks, and score.", takes="run")
    report = add(
        "report", _report, "Write the page of a run, or of a sweep, from its files.", takes="nothing"
    )
    which = report.add_mutually_exclusive_group(required=True)
    which.add_argument("run_dir", type=Path, nargs="?", metavar="RUN", help="a run folder, such as runs/demo")
    which.add_argument("--sweep", type=Path, metavar="FOLDER", help="a sweep's folder, such as runs/sweep")
    sweep = add(
        "sweep",
        _sweep,
        "Train once for each of several settings, such as optim.lr=1e-5,2e-5; goes on where it was ended.",
        takes="nothing",
    )
    sweep.add_argument(
        "config",
        nargs="+",
        metavar="FILE|KEY=VALUE|FOLDER",
        help="as for train, with several values; or the folder of a sweep to go on with",
    )
    sweep.add_argument("--submit", action="store_true", help="as one array job of Slurm, cluster=NAME")
    sweep.add_argument("--dry-run", action="store_true", help="with --submit: show the files, submit nothing")
    compare = add(
        "compare",
        _compare,
        "Compare runs: losses, scores, and what differs in their configs.",
        takes="nothing",
    )
    compare.add_argument("run_dirs", type=Path, nargs="+", metavar="RUN")
    estimate = add(
        "estimate", _estimate, "Say what a run needs: memory by part, time, disk; and what would fit."
    )
    estimate.add_argument(
        "--ranks", type=int, metavar="N", help="of the whole run; default: launch, or the site profile"
    )
    estimate.add_argument(
        "--device", metavar="NAME", help="such as H100, or cpu; default: the site profile's"
    )
    estimate.add_argument(
        "--memory", type=float, metavar="GIB", help="of a device, where it is not the usual"
    )
    estimate.add_argument("--like", type=Path, metavar="RUN", help="take the measured speed of this run")
    estimate.add_argument("--json", action="store_true", help="print JSON (bytes, seconds, hours)")
    doctor = add("doctor", _doctor, "Examine this machine, or under srun every node, before training.")
    doctor.add_argument("--run", type=Path, metavar="RUN", help="take the config of this run folder")
    doctor.add_argument("--json", action="store_true", help="print JSON")
    submit = add("submit", _submit, "Submit to a Slurm cluster: cluster=NAME, then as for train.")
    submit.add_argument(
        "--dry-run", action="store_true", help="show the job files and the config, submit nothing"
    )
    add("watch", _watch, "Follow a run from its files, from any node.", takes="run")
    return parser


def _load(options: argparse.Namespace) -> RunConfig:
    from sft_dist.config.load import load_config

    words: list[str] = options.config
    file = Path(words[0]) if words and "=" not in words[0] and not words[0].startswith("~") else None
    return load_config(words[1:] if file else words, file)


def _command(options: argparse.Namespace, name: str) -> str:
    return shlex.join(["sft-dist", name, *options.config])


def _run(options: argparse.Namespace, console: Console) -> int:
    from sft_dist.pipelines.evaluate import evaluate
    from sft_dist.pipelines.train import train

    folder = train(_load(options), console, command=_command(options, "prepare"))
    if folder.status()["state"] != "finished":
        return 0
    evaluate(folder, console)
    return _show(folder.path, console)


def _train(options: argparse.Namespace, console: Console) -> int:
    from sft_dist.pipelines.smoke import smoke
    from sft_dist.pipelines.train import train

    if options.smoke:
        smoke(_load(options), console, command=_command(options, "prepare"))
        return 0
    folder = train(_load(options), console, command=_command(options, "prepare"))
    if folder.status()["state"] == "finished":
        console.print(f"next: sft-dist evaluate {folder.path}")
    return 0


def _check(options: argparse.Namespace, console: Console) -> int:
    from sft_dist.pipelines.check import check

    config = _load(options)
    summary = check(config, limit=CHECK_EXAMPLES)
    console.print(summary.line(), soft_wrap=True)
    for warning in summary.warnings:
        sys.stderr.write(f"warning: {warning}\n")
    return 0


def _preview(options: argparse.Namespace, console: Console) -> int:
    from sft_dist.pipelines.check import preview

    preview(_load(options), console, per_source=options.examples, html=options.html)
    return 0


def _construct(options: argparse.Namespace, console: Console) -> int:
    from sft_dist.pipelines.construct import construct

    with console.status("constructing") as status:
        made = construct(_load(options), only=options.only, progress=status.update)
    for name, done in made.items():
        dropped = ", ".join(f"{n:,} {why}" for why, n in done.dropped.items()) or "none"
        console.print(f"{name}: {done.examples:,} examples in {done.path}; dropped: {dropped}")
    return 0


def _prepare(options: argparse.Namespace, console: Console) -> int:
    from sft_dist.pipelines.prepare import prepare
    from sft_dist.shards import Store

    config = _load(options)
    if options.verify:
        return _verify(config, console, _command(options, "prepare"))
    index, _, count = options.slice.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise UserError(
            f"--slice {options.slice} is not I/N with I below N; a Slurm array gives it as $SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT"
        )
    with console.status("preparing") as status:
        done = prepare(
            config,
            rebuild=options.rebuild,
            part=(int(index), int(count)),
            command=_command(options, "prepare"),
            progress=status.update,
        )
    for name, path in done.stores.items():
        if (path / "manifest.json").is_file():
            store, read = Store.open(path), done.selected.sources[name]
            console.print(
                f"{name}: {len(store):,} examples, {store.n_tokens:,} tokens of {read.read:,} records; evaluation {read.evaluation:,}, "
                f"unreadable {read.unreadable:,}, dropped {sum(read.dropped.values()):,}"
            )
        else:
            console.print(f"{name}: slice {options.slice} is built; the store is closed when all slices are")
    for name, read in done.selected.sources.items():
        if read.prompts:
            console.print(
                f"{name}: {read.prompts:,} prompts of {read.read:,} records, for `construct` and never trained on; "
                f"unreadable {read.unreadable:,}, dropped {sum(read.dropped.values()):,}"
            )
    return 0


def _verify(config: RunConfig, console: Console, command: str) -> int:
    from sft_dist.pipelines.selection import stored_sources
    from sft_dist.shards import Store

    folder = Path(config.data.dir)
    names = stored_sources(folder, config.data.sources)
    if names is None:
        raise UserError(
            f"{folder} was not prepared with all sources of this config, so there is nothing to verify; run: {command}"
        )
    stores = [Store.open(folder / "stores" / name, rebuild=f"{command} --rebuild") for name in names]
    if wrong := [problem for store in stores for problem in store.verify()]:
        raise UserError(
            "{} files do not match their checksums:\n  {}\nrebuild with: {} --rebuild".format(
                len(wrong), "\n  ".join(wrong), command
            )
        )
    console.print(f"{len(names)} stores match their checksums")
    return 0


def _score(options: argparse.Namespace, console: Console) -> int:
    from sft_dist.pipelines.score import score

    with console.status("scoring") as status:
        paths = score(_load(options), rebuild=options.rebuild, progress=status.update)
    for path in paths.values():
        console.print(f"scores: {path}")
    return 0


def _card(options: argparse.Namespace, console: Console) -> int:
    from sft_dist.pipelines.card import write_card

    config = _load(options)
    with console.status("reading the data") as status:
        paths = write_card(config, options.out, command=_command(options, "prepare"), progress=status.update)
    for path in paths:
        console.print(f"card: {path}")
    return 0


def _freeze(options: argparse.Namespace, console: Console) -> int:
    from sft_dist.core.runfolder import RunFolder
    from sft_dist.pipelines.prepare import prepare
    from sft_dist.pipelines.train import set_up

    config = _load(options)
    run_dir: Path = options.run_dir
    config = config.model_copy(update={"name": run_dir.name, "run_root": str(run_dir.parent)})
    prepared = prepare(config, build=False, command=_command(options, "prepare"))
    set_up(config, prepared, RunFolder(run_dir))
    console.print(f"{run_dir / 'config.json'} is written")
    return 0


def _export(options: argparse.Namespace, console: Console) -> int:
    from sft_dist.core.runfolder import RunFolder
    from sft_dist.pipelines.export import export

    out = export(RunFolder(options.run_dir), options.checkpoint, options.out)
    console.print(f"the model lies in {out}")
    return 0


def _evaluate(options: argparse.Namespace, console: Console) -> int:
    from sft_dist.core.runfolder import RunFolder
    from sft_dist.pipelines.evaluate import evaluate

    evaluate(RunFolder(options.run_dir), console)
    return _show(options.run_dir, console)


def _report(options: argparse.Namespace, console: Console) -> int:
    return _leaderboard(options.sweep, console) if options.sweep else _show(options.run_dir, console)


def _sweep(options: argparse.Namespace, console: Console) -> int:
    from sft_dist.pipelines.sweep import run_sweep, submit_sweep
    from sft_dist.pipelines.sweep_task import open_words

    folder = open_words(options.config)
    if options.submit or options.dry_run:
        submit_sweep(folder, console, dry_run=options.dry_run)
        return 0
    try:
        failed = run_sweep(folder, console)
    finally:
        _leaderboard(folder.path, console)
    return 1 if failed else 0


def _leaderboard(folder: Path, console: Console) -> int:
    from sft_dist.report.sweep import sweep_table, write_sweep

    page = write_sweep(folder)
    console.print(sweep_table(folder))
    console.print(f"leaderboard: {page}", soft_wrap=True)
    return 0


def _show(run_dir: Path, console: Console) -> int:
    from sft_dist.report.run import summary_table, write_report

    page = write_report(run_dir)
    console.print(summary_table(run_dir))
    console.print(f"report: {page}")
    return 0


def _compare(options: argparse.Namespace, console: Console) -> int:
    from sft_dist.report.compare import compare

    console.print(compare(options.run_dirs))
    return 0


def _estimate(options: argparse.Namespace, console: Console) -> int:
    import json

    from sft_dist.pipelines.check import check
    from sft_dist.pipelines.estimate import estimate, show

    config = _load(options)
    result = estimate(
        config,
        check(config, limit=CHECK_EXAMPLES),
        ranks=options.ranks,
        device=options.device,
        memory_gib=options.memory,
        like=options.like,
    )
    if options.json:
        sys.stdout.write(json.dumps(result, indent=1) + "\n")
    else:
        show(result, console)
    return 0


def _doctor(options: argparse.Namespace, console: Console) -> int:
    from sft_dist.config.load import read_run
    from sft_dist.pipelines.doctor import doctor

    config = read_run(options.run) if options.run else _load(options)
    return doctor(config, console, as_json=options.json)


def _submit(options: argparse.Namespace, console: Console) -> int:
    from sft_dist.pipelines.submit import submit

    command = _command(options, "prepare")
    submit(_load(options), console, command=command, limit=CHECK_EXAMPLES, dry_run=options.dry_run)
    return 0


def _watch(options: argparse.Namespace, console: Console) -> int:
    from sft_dist.pipelines.watch import watch

    console.print(watch(options.run_dir, console))
    return 0


if __name__ == "__main__":
    sys.exit(main())
