"""The command line: one sub-command a stage. Parses, calls one of commands.py, turns errors into a sentence.

sft-dist run                                    everything: prepare, train, export, evaluate, report
sft-dist check my.yaml                          mistakes, and what training would consist of
sft-dist preview my.yaml                        which tokens carry loss
sft-dist train my.yaml train.epochs=2           train; prepares what is missing
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sft_dist import commands
from sft_dist.core.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return the exit code: 0, 2 for a user's mistake, 1 for a failure of ours or the machine's."""
    from sft_dist.core.terminal import SafeConsole, plain

    # rich would fold lines at 80 columns in a log file
    console: Console = SafeConsole(highlight=False, width=None if sys.stdout.isatty() else 240)
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and (not hasattr(options, "config") or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.config += rest  # overrides behind an option, which argparse leaves over
    try:
        return int(options.command(options, console))
    except UserError as error:
        sys.stderr.write(plain(f"error: {error}\n"))
        return 2
    except RuntimeError as error:
        if os.environ.get("SFT_TRACEBACK"):
            raise
        sys.stderr.write(plain(f"failed: {error}\n"))
        return 1
    except OSError as error:
        if os.environ.get("SFT_TRACEBACK"):
            raise
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        remedy = "; what is whole is kept: make room and run the same command again" if full else ""
        sys.stderr.write(plain(f"failed: {error.filename or 'a file'}: {error.strerror or error}{remedy}\n"))
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sft-dist",
        description="Distributed supervised fine-tuning.",
        epilog="Config keys: docs/config.md",
    )
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(
        name: str, command: Callable[[argparse.Namespace, Console], int], text: str, *, takes: str = "config"
    ) -> argparse.ArgumentParser:
        sub = subparsers.add_parser(name, help=text, description=text)
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

    add("run", commands.run, "Prepare, train, export, evaluate and report.")
    add(
        "check",
        commands.check,
        "List every mistake in the config, and say what training would consist of. Nothing is kept.",
    )
    preview = add("preview", commands.preview, "Show turns and packed rows, and which tokens carry loss.")
    preview.add_argument(
        "--examples", type=_count, default=3, metavar="N", help="examples of each source (3)"
    )
    preview.add_argument("--html", type=Path, metavar="FILE", help="write a page as well")
    construct = add(
        "construct",
        commands.construct,
        "Generate examples with a teacher behind an HTTP server; goes on where it was ended.",
    )
    construct.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="SET",
        help="this set of construct.sets; may be repeated",
    )
    prepare = add("prepare", commands.prepare, "Build the token stores.")
    prepare.add_argument("--rebuild", action="store_true", help="replace stores that other settings built")
    prepare.add_argument(
        "--verify", action="store_true", help="check the checksums of what is there, build nothing"
    )
    prepare.add_argument(
        "--slice", default="0/1", metavar="I/N", help="build every N-th shard from the I-th (a Slurm array)"
    )
    score = add(
        "score", commands.score, "Score training examples with the base model, for data.filters.quality."
    )
    score.add_argument("--rebuild", action="store_true", help="start over where scores of other settings are")
    card = add("card", commands.card, "Write the dataset card: what is trained on, and what was left out.")
    card.add_argument("--out", type=Path, metavar="FOLDER", help="default: card/ in data.dir")
    train = add(
        "train",
        commands.train,
        "Train on this machine; prepares what is missing, continues what was interrupted.",
    )
    train.add_argument(
        "--smoke",
        action="store_true",
        help="only two steps on the heaviest batches, saved and exported, in a folder of its own",
    )
    write_run = add(
        "write-run",
        commands.write_run,
        "Validate and write the run folder without starting ranks (for launchers).",
    )
    write_run.add_argument("--run-dir", type=Path, required=True, help="the run folder")
    export = add("export", commands.export, "Write a checkpoint as a Hugging Face folder.", takes="run")
    export.add_argument("--checkpoint", metavar="NAME", help="such as step-00000100; the newest by default")
    export.add_argument("--out", type=Path, metavar="FOLDER", help="default: export/ of the run")
    add("evaluate", commands.evaluate, "Generate on held-out examples and tasks, and score.", takes="run")
    report = add(
        "report", commands.report, "Write the page of a run, or of a sweep, from its files.", takes="nothing"
    )
    which = report.add_mutually_exclusive_group(required=True)
    which.add_argument("run_dir", type=Path, nargs="?", metavar="RUN", help="a run folder, such as runs/demo")
    which.add_argument("--sweep", type=Path, metavar="FOLDER", help="a sweep's folder, such as runs/sweep")
    sweep = add(
        "sweep",
        commands.sweep,
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
        commands.compare,
        "Compare runs: losses, scores, and what differs in their configs.",
        takes="nothing",
    )
    compare.add_argument("run_dirs", type=Path, nargs="+", metavar="RUN")
    estimate = add(
        "estimate", commands.estimate, "Say what a run needs: memory by part, time, disk; and what would fit."
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
    doctor = add(
        "doctor", commands.doctor, "Examine this machine, or under srun every node, before training."
    )
    doctor.add_argument("--run", type=Path, metavar="RUN", help="take the config of this run folder")
    doctor.add_argument("--json", action="store_true", help="print JSON")
    submit = add("submit", commands.submit, "Submit to a Slurm cluster: cluster=NAME, then as for train.")
    submit.add_argument(
        "--dry-run", action="store_true", help="show the job files and the config, submit nothing"
    )
    add("watch", commands.watch, "Follow a run from its files, from any node.", takes="run")
    return parser


def _count(word: str) -> int:
    if not word.isdecimal() or not int(word):
        raise argparse.ArgumentTypeError(f"{word!r} is not a number above 0")
    return int(word)


if __name__ == "__main__":
    sys.exit(main())
