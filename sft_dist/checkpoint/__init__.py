"""Training state <-> disk, whole or absent, independent of the number of ranks. Next: evals.

slices       parts of parameters and optimizer states, by name and offset
io           checkpoints on disk: write, find, read; background: write beside training; remote: copies at a URL
export_plan  checkpoint -> the tensors of a Hugging Face folder; export: writes the folder
"""
