"""Distributed supervised fine-tuning: raw instruction sources in, a fine-tuned model and the evidence out.

The flow; docs/map.md walks through it::

    sources -> holdout -> construct (client -> teacher)               sft-dist construct (CPU, no torch; optional)
    sources -> holdout -> filters -> selection -> render -> shards    sft-dist prepare   (CPU, no torch)
    stores, selection -> dataset card                                 sft-dist card      (CPU, no torch)
    shards -> mix -> pack -> batch -> model -> train -> checkpoint    sft-dist train     (torchrun, srun)
    checkpoint -> export -> evals -> report                           sft-dist export, evaluate, report, compare
    config -> mistakes, memory and time, fit nodes, jobs, trials      sft-dist check, preview, estimate, doctor, submit, sweep, watch
"""

__version__ = "0.1.0"
