"""Stores -> an epoch's draw: indices only, so that a changed weight tokenises nothing. Next: pack, batch."""

from sft_dist.mix.corpus import Corpus
from sft_dist.mix.draw import Pool, draw, make_pool
from sft_dist.mix.rates import PRESETS, Mixture, SourceMix
from sft_dist.mix.table import MixtureLine, mixture_table

__all__ = [
    "PRESETS",
    "Corpus",
    "Mixture",
    "MixtureLine",
    "Pool",
    "SourceMix",
    "draw",
    "make_pool",
    "mixture_table",
]
