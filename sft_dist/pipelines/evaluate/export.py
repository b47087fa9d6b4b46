"""Run folder -> a Hugging Face folder, from any checkpoint, on any machine that sees it."""

from __future__ import annotations

from pathlib import Path

from sft_dist.checkpoint.export import export_checkpoint
from sft_dist.checkpoint.io import NAME, damage
from sft_dist.config.load import load_run_config
from sft_dist.core.errors import UserError
from sft_dist.core.runfolder import RunFolder
from sft_dist.pipelines.evaluate.verify import verify_export
from sft_dist.pipelines.train.engine import export_base, exports_adapter
from sft_dist.render.tokenizer import TextTokenizer
from sft_dist.report.model_card import write_model_card


def export(folder: RunFolder, checkpoint: str | None, out: Path | None) -> Path:
    """Write the named checkpoint, or the newest, to `out` or export/ of the run; return the folder.

    Raises:
        UserError: When there is no such checkpoint.
    """
    config = load_run_config(folder.path)
    have = sorted(p.name for p in folder.checkpoints.glob("step-*") if NAME.fullmatch(p.name))
    name = checkpoint or (have[-1] if have else "")
    if name not in have:  # one of our folders, never a path: `..` would lead out of the run
        raise UserError(
            f"{folder.path} has no checkpoint {name or '(none is complete)'}; it has: {', '.join(have) or 'none'}"
        )
    if wrong := damage(folder.checkpoints / name, weights_only=True):
        raise UserError(
            f"{folder.checkpoints / name} is damaged ({wrong}), so an export of it would be wrong; name another one with --checkpoint"
        )
    stores = folder.read_stores()
    target = (out or folder.export).resolve()
    if out is not None and target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(
            f"--out {out} exists and is not empty, and exporting would replace it; name a new folder"
        )
    tokenizer = TextTokenizer.load(stores["tokenizer"], added=config.render.added)
    export_checkpoint(
        folder.checkpoints / name,
        export_base(config, str(folder.path / "init") if config.model.shape else str(config.model.path)),
        target,
        dtype=config.model.dtype,
        tokenizer=tokenizer,
        template_text=stores["template_text"],
        stop_ids=stores["stop_ids"],
        as_adapter=exports_adapter(config),
    )
    if config.train.verify_export:
        verify_export(config, folder, target, vocab_size=tokenizer.vocab_size, expected=None)
    write_model_card(folder.path, target)
    return target
