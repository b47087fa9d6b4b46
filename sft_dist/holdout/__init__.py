"""Examples -> what is never trained on, decided once before anything is built from them. Next: construct, filters.

choose_split  `decide` reads every source once and chooses what is held out
holdout       `split` puts each example on its side of the decision, the same in every process
"""

from sft_dist.holdout.choose_split import Candidates, InstructionSample, decide
from sft_dist.holdout.holdout import Asked, Holdout, Side, descend, input_key, split, split_asked

__all__ = [
    "Asked",
    "Candidates",
    "Holdout",
    "InstructionSample",
    "Side",
    "decide",
    "descend",
    "input_key",
    "split",
    "split_asked",
]
