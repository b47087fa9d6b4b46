"""A config of Axolotl, LLaMA-Factory, TRL or ms-swift -> one of ours, and three lists: mapped, not needed, cannot.

result   what a conversion collects
reading  the file -> its keys and the trainer that they belong to
rules    key -> what becomes of it
data     data sets of the other trainer -> sources
"""

from __future__ import annotations

from pathlib import Path

from sft_dist.config.convert.data import convert_data
from sft_dist.config.convert.defaults import DEFAULTS
from sft_dist.config.convert.reading import dataset_infos, read_other
from sft_dist.config.convert.result import Conversion
from sft_dist.config.convert.rules import convert_keys

__all__ = ["DEFAULTS", "Conversion", "convert"]


def convert(file: Path, *, ranks: int, trainer: str | None = None) -> Conversion:
    """Convert a config of another trainer.

    Args:
        file: Its YAML file, or the shell script that calls `swift sft`.
        ranks: GPUs that it ran on: a global batch is rows x accumulation x ranks there.
        trainer: Whose config it is; None: told from its keys.

    Raises:
        UserError: When the file cannot be read, or is of no trainer that is known.
    """
    trainer, keys = read_other(file, trainer)
    out = Conversion(trainer=trainer, name=file.stem)
    infos = dataset_infos(file) if trainer == "llama-factory" else {}
    left = convert_data(out, keys, infos)
    convert_keys(out, left, ranks=ranks)
    return out
