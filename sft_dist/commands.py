"""What the sub-commands do: load the config, call one pipeline, print what it says. Each returns the exit code.

Pipelines are imported when they are called: a mistake in the config is told before torch is loaded.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from sft_dist.core.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from sft_dist.config import RunConfig

CHECK_EXAMPLES = 500  # of each source, evenly spread: what `check` renders when there is no store yet


def _load(options: argparse.Namespace) -> RunConfig:
    from sft_dist.config.load import load_config
    from sft_dist.pipelines.config_warnings import refuse_misspelt_model

    words: list[str] = options.config
    if not words and options.command not in WITHOUT_CONFIG:
        raise UserError(
            f"{options.command.__name__.replace('_', '-')} needs a config, for without one it would work on the demo set; name a file "
            "(my.yaml), or experiment=demo"
        )
    file = Path(words[0]) if words and "=" not in words[0] and not words[0].startswith("~") else None
    config = load_config(words[1:] if file else words, file)
    refuse_misspelt_model(config)
    return config


def _command(options: argparse.Namespace, name: str) -> str:
    return shlex.join(["sft-dist", name, *options.config])


def run(options: argparse.Namespace, console: Console) -> int:
    """Prepare, train, evaluate and report."""
    from sft_dist.pipelines.evaluate.command import evaluate
    from sft_dist.pipelines.train.command import train

    folder = train(_load(options), console, command=_command(options, "prepare"))
    if folder.status()["state"] != "finished":
        return 0
    evaluate(folder, console)
    return _show(folder.path, console)


def train(options: argparse.Namespace, console: Console) -> int:
    """Train, or take two steps of it."""
    from sft_dist.pipelines.train.command import train
    from sft_dist.pipelines.train.smoke import smoke

    if options.smoke:
        smoke(_load(options), console, command=_command(options, "prepare"))
        return 0
    folder = train(_load(options), console, command=_command(options, "prepare"))
    if folder.status()["state"] == "finished":
        console.print(f"next: sft-dist evaluate {folder.path}")
    return 0


def check(options: argparse.Namespace, console: Console) -> int:
    """Print what training would consist of."""
    from sft_dist.pipelines.data.check import check

    summary = check(_load(options), limit=CHECK_EXAMPLES)
    for line in summary.set_lines():
        console.print(line, soft_wrap=True, markup=False)
    console.print(summary.line(), soft_wrap=True)
    for warning in summary.warnings:
        sys.stderr.write(f"warning: {warning}\n")
    return 0


def preview(options: argparse.Namespace, console: Console) -> int:
    """Show turns and rows."""
    from sft_dist.pipelines.data.check import preview

    preview(_load(options), console, per_source=options.examples, html=options.html)
    return 0


def construct(options: argparse.Namespace, console: Console) -> int:
    """Generate examples."""
    from sft_dist.pipelines.data.construct import construct

    with console.status("constructing") as status:
        made = construct(_load(options), only=options.only, progress=status.update)
    for name, done in made.items():
        dropped = ", ".join(f"{n:,} {why}" for why, n in done.dropped.items()) or "none"
        console.print(f"{name}: {done.examples:,} examples in {done.path}; dropped: {dropped}")
    return 0


def prepare(options: argparse.Namespace, console: Console) -> int:
    """Build the token stores, or verify them."""
    from sft_dist.pipelines.data.prepare import prepare, prepare_until
    from sft_dist.shards import Store

    config = _load(options)
    if options.verify:
        return _verify(config, console, _command(options, "prepare"))
    index, _, count = options.slice.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise UserError(
            f"--slice {options.slice} is not I/N with I below N; a Slurm array gives it as $SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT"
        )
    part = int(index), int(count)
    if options.until:
        with console.status("preparing") as status:
            counts = prepare_until(config, options.until, part=part, progress=status.update)
        for name, records in counts.items():
            console.print(f"{name}: {options.until} of {records:,} records")
        return 0
    with console.status("preparing") as status:
        done = prepare(
            config,
            rebuild=options.rebuild,
            part=part,
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
    from sft_dist.selection.files import stored_sources
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


def query(options: argparse.Namespace, console: Console) -> int:
    """Print the answer to a question in SQL, tab-separated."""
    from sft_dist.core.terminal import plain
    from sft_dist.selection.query import query

    names, rows = query(options.folder, options.sql)
    console.file.write("\t".join(names) + "\n")  # as it is: a console would expand the tabs
    for row in rows:
        cells = ("" if value is None else " ".join(plain(str(value)).split()) for value in row)
        console.file.write("\t".join(cells) + "\n")
    return 0


def score(options: argparse.Namespace, console: Console) -> int:
    """Score training examples."""
    from sft_dist.pipelines.data.score import score

    with console.status("scoring") as status:
        paths = score(_load(options), rebuild=options.rebuild, progress=status.update)
    for path in paths.values():
        console.print(f"scores: {path}")
    return 0


def card(options: argparse.Namespace, console: Console) -> int:
    """Write the dataset card."""
    from sft_dist.pipelines.data.card import write_card

    config = _load(options)
    with console.status("reading the data") as status:
        paths = write_card(config, options.out, command=_command(options, "prepare"), progress=status.update)
    for path in paths:
        console.print(f"card: {path}")
    return 0


def write_run(options: argparse.Namespace, console: Console) -> int:
    """Write a run folder."""
    from sft_dist.core.runfolder import RunFolder
    from sft_dist.pipelines.before_ranks import refuse_mistakes
    from sft_dist.pipelines.data.prepare import prepare
    from sft_dist.pipelines.train.run_folder import set_up

    config = _load(options)
    run_dir: Path = options.run_dir
    config = config.model_copy(update={"name": run_dir.name, "run_root": str(run_dir.parent)})
    refuse_mistakes(config)
    prepared = prepare(config, build=False, command=_command(options, "prepare"))
    set_up(config, prepared, RunFolder(run_dir))
    console.print(f"{run_dir / 'config.json'} is written")
    return 0


def export(options: argparse.Namespace, console: Console) -> int:
    """Export a checkpoint."""
    from sft_dist.core.runfolder import RunFolder
    from sft_dist.pipelines.evaluate.export import export

    folder = RunFolder(options.run_dir)
    out = export(folder, options.checkpoint, options.out)
    console.print(f"the model lies in {out}")
    if clock := folder.read_stores().get("clock"):
        console.print(
            f"its chat template tells the date of the day on which it is served; training and evaluation were told {clock} (render.clock)"
        )
    if options.push:
        from sft_dist.pipelines.evaluate.push import push

        console.print(f"uploaded to {push(out, options.push)}")
    return 0


def evaluate(options: argparse.Namespace, console: Console) -> int:
    """Evaluate a run, and report."""
    from sft_dist.core.runfolder import RunFolder
    from sft_dist.pipelines.evaluate.command import evaluate
    from sft_dist.pipelines.evaluate.harness import KEY, evaluate_harness

    folder = RunFolder(options.run_dir)
    asked = [o.partition("=")[2] for o in options.overrides if o.startswith(f"{KEY}=")]
    if asked:
        if options.checkpoint:
            raise UserError(
                "harness= asks one model, the export or --model, so --checkpoint has no place beside it; export the checkpoint and name its folder"
            )
        rest = [o for o in options.overrides if not o.startswith(f"{KEY}=")]
        evaluate_harness(folder, ",".join(asked), console, rest, model=options.model)
        return _show(options.run_dir, console)
    checkpoints = options.checkpoint
    if checkpoints == ["all"]:
        checkpoints = sorted(p.name for p in folder.checkpoints.glob("step-*"))
    evaluate(folder, console, options.overrides, checkpoints=checkpoints, model=options.model)
    return _show(options.run_dir, console)


def merge(options: argparse.Namespace, console: Console) -> int:
    """Merge an adapter into its base."""
    from sft_dist.pipelines.evaluate.merge import merge

    with console.status("merging"):
        out = merge(options.adapter, options.out, options.base)
    console.print(f"the model lies in {out}", soft_wrap=True)
    return 0


def chat(options: argparse.Namespace, console: Console) -> int:
    """Talk with the model of a run; piped lines are answered one by one."""
    from sft_dist.core.runfolder import RunFolder
    from sft_dist.pipelines.evaluate.chat import NEW, QUIT, converse, open_talk

    with console.status("loading the model"):
        talk = open_talk(
            RunFolder(options.run_dir),
            model=options.model,
            max_new_tokens=options.max_new_tokens,
            system=options.system,
        )
    people = sys.stdin.isatty()
    if people:
        console.print(f"{NEW} begins another conversation, {QUIT} ends", markup=False)

    def lines() -> Iterator[str]:
        while True:
            if people:
                console.print("> ", end="", markup=False)
            if not (line := sys.stdin.readline()):
                return
            yield line

    converse(talk, lines(), lambda answer: console.print(answer, markup=False, soft_wrap=True))
    return 0


def report(options: argparse.Namespace, console: Console) -> int:
    """Report on a run or a sweep."""
    return _leaderboard(options.sweep, console) if options.sweep else _show(options.run_dir, console)


def sweep(options: argparse.Namespace, console: Console) -> int:
    """Run a sweep, or submit it."""
    from sft_dist.pipelines.sweep.run import run_sweep, submit_sweep
    from sft_dist.pipelines.sweep.trial import open_words

    folder = open_words(options.config)
    if options.submit or options.dry_run:
        submit_sweep(folder, console, dry_run=options.dry_run)
        return 0
    try:
        failed = run_sweep(folder, console)
    finally:
        if folder.trials():
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


def compare(options: argparse.Namespace, console: Console) -> int:
    """Compare runs."""
    from sft_dist.report.compare import compare

    if options.html:
        options.html.write_text(compare(options.run_dirs, "html"), encoding="utf-8")
        console.print(f"comparison: {options.html}", soft_wrap=True)
    else:
        console.print(compare(options.run_dirs))
    return 0


def estimate(options: argparse.Namespace, console: Console) -> int:
    """Print what a run needs."""
    import json

    from sft_dist.pipelines.cluster.estimate import estimate, show
    from sft_dist.pipelines.data.check import check

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


def doctor(options: argparse.Namespace, console: Console) -> int:
    """Examine the machine; 1 when it is not fit."""
    if options.prove:
        from sft_dist.cluster.local_ranks import gpus
        from sft_dist.pipelines.cluster.prove import prove

        return prove(console, options.prove, reduced=not gpus())
    from sft_dist.config.load import load_run_config
    from sft_dist.pipelines.cluster.doctor import doctor

    config = load_run_config(options.run) if options.run else _load(options)
    return doctor(config, console, as_json=options.json)


def submit(options: argparse.Namespace, console: Console) -> int:
    """Submit a run."""
    from sft_dist.pipelines.cluster.submit import submit

    command = _command(options, "prepare")
    submit(_load(options), console, command=command, limit=CHECK_EXAMPLES, dry_run=options.dry_run)
    return 0


def watch(options: argparse.Namespace, console: Console) -> int:
    """Follow a run."""
    from sft_dist.report.watch import watch

    console.print(watch(options.run_dir, console))
    return 0


def convert(options: argparse.Namespace, console: Console) -> int:
    """Convert a config of another trainer; 3 when the result changes by what cannot be had."""
    from rich.console import Console as Plain

    from sft_dist.config.convert import convert
    from sft_dist.core.files import write_text

    done = convert(options.file, ranks=options.ranks, trainer=options.trainer)
    out: Path | None = options.out
    if out is not None and out.exists():
        raise UserError(f"{out} exists, and writing would replace it; name another file with --out")
    told = console if out is not None else Plain(stderr=True, highlight=False, quiet=console.quiet)
    told.print(f"{options.file}: a config of {done.trainer}", markup=False, soft_wrap=True)
    lists = {
        "mapped": [f"{key} -> {ours}{f' ({remark})' if remark else ''}" for key, ours, remark in done.mapped],
        "written because the default differs": done.defaults,
        "not needed": [f"{key}: {why}" for key, why in done.not_needed],
        "cannot": [f"{key}: {why}{' (the result changes)' if c else ''}" for key, why, c in done.cannot],
    }
    for title, lines in lists.items():
        told.print(f"{title}: {len(lines)}", markup=False)
        for line in lines:
            told.print(f"  {line}", markup=False, soft_wrap=True)
    for name, text in done.files.items():
        write_text((out.parent if out else Path()) / name, text)
    if out is None:
        sys.stdout.write(done.yaml())
    else:
        write_text(out, done.yaml())
        told.print(f"next: sft-dist check {shlex.quote(str(out))}", markup=False, soft_wrap=True)
    return 3 if done.changes else 0


def audit(options: argparse.Namespace, console: Console) -> int:
    """Compare what another trainer and we would train on."""
    from rich.table import Table

    from sft_dist.config.load import load_config
    from sft_dist.pipelines.data.audit import audit

    ours = load_config([], options.ours) if options.ours else None
    with console.status("rendering a sample"):
        found = audit(
            options.file, ranks=options.ranks, trainer=options.trainer, ours=ours, limit=CHECK_EXAMPLES
        )
    table = Table("", found.trainer, "sft_dist")
    for row in found.rows():
        table.add_row(*row)
    console.print(table)
    console.print(
        f"of at most {CHECK_EXAMPLES} examples a source; counted by what the trainers document, no code of theirs is run"
    )
    for key, why in found.cannot:
        console.print(f"not seen here: {key}: {why}", markup=False, soft_wrap=True)
    return 0


def schema(_options: argparse.Namespace, _console: Console) -> int:
    """Print the JSON schema of the config."""
    import json

    from sft_dist.config import RunConfig

    sys.stdout.write(json.dumps(RunConfig.model_json_schema(), indent=1) + "\n")
    return 0


def completion(options: argparse.Namespace, _console: Console) -> int:
    """Print a completion script: commands first, then config groups, keys and files."""
    from pydantic import BaseModel

    from sft_dist.config import RunConfig
    from sft_dist.config.load import config_groups, group_choices

    words = [f"{group}={choice}" for group in config_groups() for choice in group_choices(group)]
    for name, field in RunConfig.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            words += [f"{name}.{key}=" for key in section.model_fields]
        else:
            words.append(f"{name}=")
    sys.stdout.write(
        "# bash, and zsh after `autoload bashcompinit && bashcompinit`\n"
        "_sft_dist() {\n"
        '  local word="${COMP_LINE:0:COMP_POINT}"; word="${word##* }"\n'
        f"  local words={shlex.quote(' '.join(words))}\n"
        f'  [ "$COMP_CWORD" = 1 ] && words={shlex.quote(" ".join(options.commands))}\n'
        '  COMPREPLY=($(compgen -W "$words" -- "$word") $(compgen -f -- "$word"))\n'
        '  local head="${word%"${word##*=}"}"; COMPREPLY=("${COMPREPLY[@]#"$head"}")\n'
        "}\ncomplete -o nospace -F _sft_dist sft-dist\n"
    )
    return 0


def recipes(_options: argparse.Namespace, console: Console) -> int:
    """List the shipped experiments and groups."""
    from sft_dist.config.load import config_groups, group_choices
    from sft_dist.pipelines.cluster.recipes import recipes

    for recipe in recipes():
        needs = "{} x {}, {} node(s); ".format(*recipe.needs) if recipe.needs else ""
        console.print(f"experiment={recipe.name}: {recipe.what}", markup=False, soft_wrap=True)
        if told := needs + recipe.calculated:
            console.print(
                f"    {told}{' (calculated)' if recipe.calculated else ''}", markup=False, soft_wrap=True
            )
    for group in config_groups():
        if group != "experiment":
            console.print(f"{group}=  {', '.join(group_choices(group))}", markup=False, soft_wrap=True)
    return 0


def init(options: argparse.Namespace, console: Console) -> int:
    """Write a config for a file of data."""
    from sft_dist.core.files import write_text
    from sft_dist.pipelines.data.init import init_config

    if options.out.exists():
        raise UserError(f"{options.out} exists, and writing would replace it; name another file with --out")
    write_text(options.out, init_config(options.data, options.model))
    console.print(
        f"{options.out} is written; next: sft-dist check {shlex.quote(str(options.out))}", markup=False
    )
    return 0


WITHOUT_CONFIG = (run, doctor)  # the one shows the demo, the other examines the machine
