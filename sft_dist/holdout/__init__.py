"""Examples -> what is never trained on, decided once before anything is built from them. Next: construct, filters.

choose_split  `decide` reads every source once and chooses what is held out
holdout       `split` puts each example on its side of the decision, the same in every process
"""

from sft_dist.holdout.choose_split import decide
from sft_dist.holdout.holdout import Holdout, Side, descend, input_key, split

__all__ = ["Holdout", "Side", "decide", "descend", "input_key", "split"]
