"""Where it runs: processes, nodes, rendezvous."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt

from sft_dist.config.base import Section


class LaunchConfig(Section):
    """Processes of one run. On Slurm the batch script sets nodes and addresses from the allocation."""

    nproc: PositiveInt | Literal["auto"] = Field(
        default="auto", description="Ranks a node; auto: one a GPU, one on a machine without."
    )
    nodes: PositiveInt = Field(
        default=1,
        description="Nodes; more than one is started by slurm/train.sbatch or launch/multi_node.sh.",
    )
    port: PositiveInt | None = Field(
        default=None, description="Rendezvous port; null: a free one (one node) or from the job id."
    )
