"""Training examples + a teacher -> more examples: Self-Instruct, InstructWild, Evol-Instruct, answers. Next: filters.

Every method is a row of stages on disk. A stage's journal holds what became of each item, in the order of the items; the
client's cache holds every answer that was paid for. A relaunch reads both and goes on where the last one was ended.
What is held out, and what descends from it, never enters: `training_only` stands at every entrance.
The table of methods is `METHODS` in pipelines/data/construct.py.
"""

from sft_dist.construct.answer import answer
from sft_dist.construct.constrain import constrained
from sft_dist.construct.converse import converse
from sft_dist.construct.evolve import evolve
from sft_dist.construct.instructwild import instructwild
from sft_dist.construct.novelty import NoveltyPool
from sft_dist.construct.output import Made
from sft_dist.construct.seed_examples import SeedExample, group_seeds, training_only
from sft_dist.construct.self_instruct import self_instruct
from sft_dist.construct.teacher import Teacher

__all__ = [
    "Made",
    "NoveltyPool",
    "SeedExample",
    "Teacher",
    "answer",
    "constrained",
    "converse",
    "evolve",
    "group_seeds",
    "instructwild",
    "self_instruct",
    "training_only",
]
