"""YAML and overrides -> RunConfig, frozen and validated. Imports no torch.

root             RunConfig, and rules that concern several sections
data             data, render, mix, pack; sources, filters, construct: what a source, a rule, a generated set may say
model            model, lora
train            train, optim, loss, deepspeed, checkpoint, eval, wandb
cluster          launch, submit, profiles of sites; sweep: which settings are tried
load             composes with Hydra, validates, explains each mistake
other_trainers   answers keys of other trainers with ours; reference: docs/config.md from the schema

A function may take its own section, never the whole RunConfig, except in `pipelines/`.
"""

from sft_dist.config.root import RunConfig

__all__ = ["RunConfig"]
