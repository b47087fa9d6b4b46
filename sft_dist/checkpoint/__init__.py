"""Training state <-> disk, whole or absent, independent of the number of ranks. Next: export, then evals."""
