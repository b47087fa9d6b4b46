"""Stores -> an epoch's draw: indices only, so that a changed weight tokenises nothing. Next: pack, batch."""

from sft_dist.config.sources import SourceMix
from sft_dist.mix.corpus import Corpus
from sft_dist.mix.sample import Pool, draw, make_pool
from sft_dist.mix.weights import PRESETS, Mixture

__all__ = [
    "PRESETS",
    "Corpus",
    "Mixture",
    "Pool",
    "SourceMix",
    "draw",
    "make_pool",
]
