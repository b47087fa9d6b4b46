"""Distributed supervised fine-tuning: raw instruction sources in, a fine-tuned model and the evidence out.

The flow, one package a stage (docs/map.md walks through it)::

    sources -> holdout -> filters -> render -> shards            sft-dist prepare
    shards -> mix -> pack -> batch -> model -> train -> checkpoint   sft-dist train
    checkpoint -> evals -> report                                sft-dist export, evaluate, report
"""

__version__ = "0.1.0"
