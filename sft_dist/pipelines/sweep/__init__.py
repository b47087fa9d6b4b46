"""The command that runs a sweep, here or on Slurm: `define` its trials, `run` them, each by `trial`."""
