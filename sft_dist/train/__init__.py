"""Batches -> optimizer steps, logged. Next: checkpoint, evals.

loop      the steps; guard: bad losses, and requests to stop or save
zero      the DeepSpeed config: the only home of its keys
optim     parameter groups and optimizers; schedule: learning rate of a step; ema: averaged weights
metrics   one reduction a step -> what is logged by run_log and tracker
evaluate  the held-out loss during training
"""
