"""Packed documents -> loss: load a causal language model, attend inside documents only, project targets only.

In: token ids laid end to end with `cu_seqlens` (core.records.Batch). Out: weighted loss sum and per-target loss.
Next: train.
"""
