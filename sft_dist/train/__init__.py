"""Batches -> optimizer steps. `zero` is the only home of DeepSpeed's keys; `loop` is the loop. Next: checkpoint, evals."""
