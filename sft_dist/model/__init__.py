"""Packed documents -> loss: load a causal language model, attend inside documents only, project targets only.

In: token ids laid end to end with `cu_seqlens` (core.records.Batch). Out: weighted loss sum and per-target loss.
Next: train.

load         makes the model, from a folder, the hub or a shape; weight_files, vocabulary, initial, adapters help
attention    chooses a backend; backends: the backends; isolation_check: proves that documents do not see each other
packed       the model on packed rows; loss: weighted cross-entropy on targets
support      which models can be packed exactly; trainable: which parameters are trained
ulysses      one row over several ranks; activation_memory: recomputation, tiling, compilation
"""
