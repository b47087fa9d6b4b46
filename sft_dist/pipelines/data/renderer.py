"""Config -> the renderer, its tokenizer trained first where the config asks for that."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path

from sft_dist.config import RunConfig
from sft_dist.core.errors import UserError
from sft_dist.core.files import checksum, read_object, replace_folder, write_checked
from sft_dist.render.renderer import Renderer
from sft_dist.render.tokenizer import TextTokenizer, train_tokenizer

CLOCK = "clock.json"  # in data.dir: what chat templates that ask for the date are told, fixed by the first preparation
ASKED = "trained.json"  # beside a trained tokenizer: what was asked for; few texts give a smaller vocabulary


def make_renderer(
    config: RunConfig,
    folder: Path,
    texts: Callable[[], Iterable[str]],
    *,
    rebuild: bool = False,
    command: str = "sft-dist prepare",
    clock: str | None = None,
) -> Renderer:
    """Return the renderer of a config; trains the tokenizer first where the config asks for it and there is none.

    Args:
        config: The run's config.
        folder: Where a trained tokenizer lies, as `tokenizer/`.
        texts: What it is trained on.
        rebuild: Train it anew when another size is asked for now; without it that is an error.
        command: The command that rebuilds, for errors.
        clock: What a template that asks for the date is told, ISO 8601; None: render.clock, or as `folder` was first
            prepared.

    Raises:
        UserError: For a tokenizer or template that cannot be used.
    """
    render = config.render
    if render.train_vocab_size is not None:
        trained = _trained(
            folder / "tokenizer", render.train_vocab_size, texts, rebuild=rebuild, command=command
        )
        tokenizer = TextTokenizer.load(str(trained), added=render.added)
    else:
        own = config.model.tokenizer is None
        named = config.model.path if own else config.model.tokenizer
        assert named is not None  # validated by the config
        try:
            tokenizer = TextTokenizer.load(named, config.model.revision if own else None, added=render.added)
        except UserError as error:
            if not own:
                raise
            raise UserError(f"model.path={named} gives no tokenizer: {error}") from None
    clock = clock or render.clock or _fixed_clock(folder, rebuild=rebuild, command=command)
    renderer = Renderer(
        tokenizer,
        template=render.template,
        train_on=render.train_on,
        thinking=render.thinking,
        train_empty_think=render.train_empty_think,
        system=render.system,
        template_kwargs=render.template_kwargs,
        expand_turns=render.expand_turns,
        clock=datetime.fromisoformat(clock) if clock else None,
    )
    if renderer.clock is None or clock:
        return renderer
    _fix_clock(folder, renderer.clock)
    # another slice of an array may have been faster: all take what stands there
    return make_renderer(config, folder, texts, rebuild=rebuild, command=command)


def _fixed_clock(folder: Path, *, rebuild: bool, command: str) -> str | None:
    """Return the clock of a data folder; None when it has none yet, or it is damaged and all is made anew."""
    file = folder / CLOCK
    if not file.is_file():
        return None
    remedy = f"what was rendered by it cannot be told apart any more; render anew with the clock of now: {command} --rebuild"
    try:
        said = str(read_object(file, remedy, {"clock": str})["clock"])
        datetime.fromisoformat(said)
    except UserError:
        if not rebuild:
            raise
    except ValueError:
        if not rebuild:
            raise UserError(f"{file} is damaged ({said} is no time); {remedy}") from None
    else:
        return said
    file.unlink()
    return None


def _fix_clock(folder: Path, clock: datetime) -> None:
    """Write the clock of a data folder, unless it has one."""
    aside = folder / f".{CLOCK}.{os.uname().nodename}.{os.getpid()}"
    write_checked(aside, {"clock": clock.isoformat(timespec="seconds")})
    try:
        os.link(aside, folder / CLOCK)
    except FileExistsError:
        pass
    finally:
        aside.unlink()


def _trained(
    path: Path, vocab_size: int, texts: Callable[[], Iterable[str]], *, rebuild: bool, command: str
) -> Path:
    """Return the folder of the trained tokenizer; trains it where there is none of this size."""
    asked = _asked(path, rebuild=rebuild, command=command)
    if asked is not None and asked != vocab_size and not rebuild:
        raise UserError(
            f"{path} was trained with render.train_vocab_size={asked}, and now it is {vocab_size}, so every id would mean something "
            f"else; take the old size back, or train and tokenise anew: {command} --rebuild"
        )
    if asked != vocab_size:
        aside = path.with_name(f".{path.name}.{os.uname().nodename}.{os.getpid()}")
        train_tokenizer(texts(), vocab_size).save(aside)
        files = {name: checksum(aside / name) for name in sorted(p.name for p in aside.iterdir())}
        write_checked(aside / ASKED, {"vocab_size": vocab_size, "files": files})
        try:  # whole or absent: a tokenizer without its special tokens would do other things
            replace_folder(aside, path)
        except OSError:
            shutil.rmtree(aside, ignore_errors=True)
            if _asked(path, rebuild=True, command=command) != vocab_size:
                raise
            # another slice of the array was faster: equal texts give an equal tokenizer
    return path


def _asked(path: Path, *, rebuild: bool, command: str) -> int | None:
    """Return the size that a trained tokenizer was asked for; None when there is none, or it is damaged and made anew.

    Raises:
        UserError: When a file of it is damaged, without `rebuild`.
    """
    if not (path / ASKED).is_file():
        return None
    remedy = f"every id could mean something else; train it and tokenise anew: {command} --rebuild"
    try:
        said = read_object(path / ASKED, remedy, {"vocab_size": int})
        for name, digits in said.get("files", {}).items():
            if not (path / name).is_file() or checksum(path / name) != digits:
                raise UserError(f"{path / name} is damaged (it does not match its checksum); {remedy}")
    except UserError:
        if not rebuild:
            raise
        return None
    return int(said["vocab_size"])
