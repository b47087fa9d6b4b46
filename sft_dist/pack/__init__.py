"""Documents -> rows of `seq_len` tokens -> micro-steps of equal cost. Next: batch.

`assign` packs, `balance` deals, `cost` is the FLOP model that balance, MFU and the estimator share, `shuffle` is
the one permutation of the planning stages.
"""

from sft_dist.pack.assign import assign_rows
from sft_dist.pack.balance import deal, imbalance, order_rows
from sft_dist.pack.cost import CostModel
from sft_dist.pack.shuffle import shuffle

__all__ = ["CostModel", "assign_rows", "deal", "imbalance", "order_rows", "shuffle"]
