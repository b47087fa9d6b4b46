"""Site profile and config -> sbatch files and the chain of jobs."""
