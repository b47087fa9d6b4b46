"""The command line: one sub-command a stage. Parses, calls one of commands.py, turns errors into a sentence.

sft-dist run                                    everything: prepare, train, export, evaluate, report
sft-dist check my.yaml                          mistakes, and what training would consist of
sft-dist preview my.yaml                        which tokens carry loss
sft-dist train my.yaml train.epochs=2           train; prepares what is missing
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from sft_dist import __version__, commands
from sft_dist.config.convert.reading import TRAINERS
from sft_dist.config.other_trainers import OTHER_COMMANDS
from sft_dist.core.errors import NO_NAME, UserError, disk_error, nearest

if TYPE_CHECKING:
    from rich.console import Console


# Exit codes of every command, in one place; launchers and scripts read them.
EXIT_CODES = {
    0: "done",
    1: "a failure of the machine or of ours; the same command may succeed later (doctor: a node is not fit)",
    2: "a mistake in the command, the config or the data; the same command fails in the same way",
    3: "convert: written, but the result changes by what cannot be had",
    130: "ended by Ctrl-C",
}

# Command -> examples for its --help.
EXAMPLES: dict[str, tuple[str, ...]] = {
    "run": ("sft-dist run", "sft-dist run my.yaml train.epochs=2"),
    "check": ("sft-dist check my.yaml", "sft-dist check experiment=chat_lora model=qwen3_4b"),
    "preview": ("sft-dist preview my.yaml --examples 5", "sft-dist preview my.yaml --html page.html"),
    "construct": ("sft-dist construct my.yaml --only grown",),
    "prepare": ("sft-dist prepare my.yaml", "sft-dist prepare my.yaml --slice 3/8"),
    "query": ('sft-dist query data "SELECT source, outcome, count(*) FROM records GROUP BY ALL"',),
    "score": ("sft-dist score my.yaml",),
    "card": ("sft-dist card my.yaml --out card",),
    "train": ("sft-dist train my.yaml", "sft-dist train my.yaml optim.lr=2e-5 --smoke"),
    "write-run": ("sft-dist write-run my.yaml --run-dir runs/mine",),
    "export": (
        "sft-dist export runs/mine --checkpoint step-00000100 --out model",
        "sft-dist export runs/mine --push me/my-model",
    ),
    "merge": ("sft-dist merge adapter --out model",),
    "evaluate": ("sft-dist evaluate runs/mine",),
    "chat": ("sft-dist chat runs/mine", "echo 'What is a verb?' | sft-dist chat runs/mine"),
    "report": ("sft-dist report runs/mine", "sft-dist report --sweep runs/sweep"),
    "sweep": ("sft-dist sweep my.yaml optim.lr=1e-5,2e-5", "sft-dist sweep runs/sweep"),
    "compare": ("sft-dist compare runs/a runs/b",),
    "estimate": ("sft-dist estimate my.yaml --device H100 --ranks 8",),
    "doctor": ("sft-dist doctor my.yaml", "srun --nodes=4 --ntasks-per-node=1 sft-dist doctor my.yaml"),
    "submit": ("sft-dist submit my.yaml cluster=mysite --dry-run",),
    "watch": ("sft-dist watch runs/mine",),
    "convert": ("sft-dist convert axolotl.yml --ranks 8 --out my.yaml",),
    "audit": ("sft-dist audit axolotl.yml --ranks 8", "sft-dist audit axolotl.yml --ranks 8 --ours my.yaml"),
    "recipes": ("sft-dist recipes",),
    "init": ("sft-dist init data.jsonl --model Qwen/Qwen3-0.6B --out my.yaml",),
    "schema": ("sft-dist schema > sft_dist.schema.json",),
    "completion": ('eval "$(sft-dist completion)"',),
}


class _Parser(argparse.ArgumentParser):
    """Argparse's parser, which names the nearest command and keeps the layout of examples."""

    def error(self, message: str) -> NoReturn:
        """Print one sentence and exit with code 2."""
        if found := re.match(r"argument COMMAND: invalid choice: '([^']*)'", message):
            word = found[1]
            message = f"{word!r} is no command." + (
                f" Use {OTHER_COMMANDS[word]!r}." if word in OTHER_COMMANDS else nearest(word, EXAMPLES)
            )
        sys.stderr.write(f"error: {message}\nsee: {self.prog} --help\n")
        raise SystemExit(2)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return its exit code (EXIT_CODES)."""
    from sft_dist.core.terminal import SafeConsole, plain

    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and (not hasattr(options, "config") or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.config += rest  # overrides behind an option, which argparse leaves over
    traceback = options.verbose or bool(os.environ.get("SFT_TRACEBACK"))
    if options.verbose:
        logging.basicConfig(level=logging.DEBUG)
    # rich would fold lines at 80 columns in a log file; COLUMNS says how wide its reader wants them
    console: Console = SafeConsole(
        highlight=False,
        width=None if sys.stdout.isatty() or os.environ.get("COLUMNS") else 240,
        quiet=options.quiet,
    )
    try:
        return int(options.command(options, console))
    except UserError as error:
        sys.stderr.write(plain(f"error: {error}\n"))
        return 2
    except RuntimeError as error:
        if traceback:
            raise
        sys.stderr.write(plain(f"failed: {error}\n"))
        return 1
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if traceback:
            raise
        mistake = error.errno in NO_NAME
        sys.stderr.write(plain(f"{'error' if mistake else 'failed'}: {disk_error(error)}\n"))
        return 2 if mistake else 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    layout = argparse.RawDescriptionHelpFormatter
    codes = "\n".join(f"  {code:3}  {text}" for code, text in EXIT_CODES.items())
    parser = _Parser(
        prog="sft-dist",
        description="Distributed supervised fine-tuning.",
        epilog=f"Config keys and their meaning: sft-dist schema. Exit codes:\n{codes}",
        formatter_class=layout,
    )
    parser.add_argument("--version", action="version", version=f"sft-dist {__version__}")
    loud = parser.add_mutually_exclusive_group()
    loud.add_argument("-v", "--verbose", action="store_true", help="log details, and show tracebacks")
    loud.add_argument("-q", "--quiet", action="store_true", help="print warnings and errors only")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(
        name: str, command: Callable[[argparse.Namespace, Console], int], text: str, *, takes: str = "config"
    ) -> argparse.ArgumentParser:
        examples = "\n".join(f"  {line}" for line in EXAMPLES[name])
        sub = subparsers.add_parser(
            name, help=text, description=text, epilog=f"Examples:\n{examples}", formatter_class=layout
        )
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
    prepare.add_argument(
        "--until",
        choices=("facts", "selection"),
        help="stop after reading (with --slice: the blocks of a slice), or when it is decided what is kept",
    )
    query = add(
        "query",
        commands.query,
        "Ask in SQL what became of every record of a prepared data folder (docs/data.md).",
        takes="nothing",
    )
    query.add_argument(
        "folder", type=Path, metavar="FOLDER", help="a data folder, or a run's, whose data is meant"
    )
    query.add_argument("sql", metavar="SQL", help="one statement over the view `records`")
    score = add(
        "score", commands.score, "Score training examples with the base model, for data.filters.scores.ifd."
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
    export.add_argument(
        "--push",
        metavar="OWNER/NAME",
        help="upload the folder to the Hugging Face hub too, as a private model",
    )
    merge = add(
        "merge", commands.merge, "Merge an adapter (peft) into its base, as a whole model.", takes="nothing"
    )
    merge.add_argument("adapter", type=Path, metavar="FOLDER", help="of the adapter")
    merge.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="a new folder")
    merge.add_argument("--base", metavar="PATH", help="folder or hub id; default: what the adapter names")
    chat = add(
        "chat",
        commands.chat,
        "Talk with the model of a run; piped lines are answered one by one.",
        takes="run",
    )
    chat.add_argument("--model", metavar="FOLDER", help="a model folder or hub id instead of the export")
    chat.add_argument("--system", metavar="TEXT", help="the system turn")
    chat.add_argument(
        "--max-new-tokens", type=_count, metavar="N", help="default: eval.max_new_tokens of the run"
    )
    evaluate = add(
        "evaluate", commands.evaluate, "Generate on held-out examples and tasks, and score.", takes="run"
    )
    evaluate.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="changes of eval or launch, such as eval.metric=auto; harness=FILE.yaml asks task files of lm-evaluation-harness instead",
    )
    evaluate.add_argument(
        "--checkpoint",
        action="append",
        default=[],
        metavar="NAME",
        help="instead of the export, such as step-00000100; may be repeated (a curve); all: every one",
    )
    evaluate.add_argument("--model", metavar="FOLDER", help="a model folder or hub id instead")
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
    compare.add_argument(
        "--html", type=Path, metavar="FILE", help="write a page with curves and paired differences"
    )
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
    estimate.add_argument(
        "--like",
        type=Path,
        metavar="RUN",
        help="take the measured speed of this run, or of a file that doctor --prove wrote",
    )
    estimate.add_argument("--json", action="store_true", help="print JSON (bytes, seconds, hours)")
    doctor = add(
        "doctor", commands.doctor, "Examine this machine, or under srun every node, before training."
    )
    doctor.add_argument("--run", type=Path, metavar="RUN", help="take the config of this run folder")
    doctor.add_argument("--json", action="store_true", help="print JSON")
    doctor.add_argument(
        "--prove",
        type=Path,
        metavar="FILE",
        help="measure this machine's GPU in five minutes (kernels, resume, waits, speed, memory) and write what was found",
    )
    submit = add("submit", commands.submit, "Submit to a Slurm cluster: cluster=NAME, then as for train.")
    submit.add_argument(
        "--dry-run", action="store_true", help="show the job files and the config, submit nothing"
    )
    add("watch", commands.watch, "Follow a run from its files, from any node.", takes="run")
    convert = add(
        "convert",
        commands.convert,
        "Convert a config of Axolotl, LLaMA-Factory, TRL or ms-swift; say what is mapped, not needed, or cannot be had.",
        takes="nothing",
    )
    convert.add_argument("file", type=Path, metavar="FILE", help="a YAML file, or a script with `swift sft`")
    convert.add_argument("--ranks", type=_count, required=True, metavar="N", help="GPUs that it was run on")
    convert.add_argument("--from", dest="trainer", choices=TRAINERS, help="told from the keys by default")
    convert.add_argument("--out", type=Path, metavar="FILE", help="default: the standard output")
    audit = add(
        "audit",
        commands.audit,
        "Count what another trainer's masks, cuts and packing would train on of the same data, beside ours.",
        takes="nothing",
    )
    audit.add_argument("file", type=Path, metavar="FILE", help="as for convert")
    audit.add_argument("--ranks", type=_count, required=True, metavar="N", help="GPUs that it was run on")
    audit.add_argument("--from", dest="trainer", choices=TRAINERS, help="told from the keys by default")
    audit.add_argument(
        "--ours",
        type=Path,
        metavar="FILE",
        help="our config; default: the converted one with our own defaults",
    )
    add(
        "recipes",
        commands.recipes,
        "List shipped experiments, with what they need, and groups.",
        takes="nothing",
    )
    init = add(
        "init", commands.init, "Look at a file or folder of data, and write a config for it.", takes="nothing"
    )
    init.add_argument("data", type=Path, metavar="FILE_OR_FOLDER", help="records of a known layout")
    init.add_argument("--model", default="Qwen/Qwen3-0.6B", metavar="PATH", help="folder or hub id")
    init.add_argument("--out", type=Path, default=Path("my.yaml"), metavar="FILE", help="default: my.yaml")
    add("schema", commands.schema, "Print the JSON schema of the config, for editors.", takes="nothing")
    words = add(
        "completion",
        commands.completion,
        "Print a script that completes words in bash and zsh.",
        takes="nothing",
    )
    words.set_defaults(commands=tuple(EXAMPLES))
    return parser


def _count(word: str) -> int:
    if not word.isdecimal() or not int(word):
        raise argparse.ArgumentTypeError(f"{word!r} is not a number above 0")
    return int(word)


if __name__ == "__main__":
    sys.exit(main())
