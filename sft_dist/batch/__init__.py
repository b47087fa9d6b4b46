"""Corpus -> an epoch's plan -> the batches of each rank. Position is data: (epoch, step). Next: train."""

from sft_dist.batch.collate import collate, sequence_shard
from sft_dist.batch.epoch_plan import EpochPlan, PlanCounts, TaskCounts
from sft_dist.batch.planner import Planner

__all__ = [
    "EpochPlan",
    "PlanCounts",
    "Planner",
    "TaskCounts",
    "collate",
    "sequence_shard",
]
