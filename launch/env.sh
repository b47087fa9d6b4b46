# shellcheck shell=bash
# Defaults of every launch, sourced by the scripts beside it and by slurm/*.sbatch. What is already set wins.

SFT_ROOT=${SFT_ROOT:-$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)}
export SFT_ROOT

# The interpreter: the active environment, else the .venv that setup.sh made here, else (in a container) python3.
if [ -z "${PYTHON:-}" ]; then
  PYTHON=python3
  if [ -x "$SFT_ROOT/setup.sh" ]; then PYTHON=$("$SFT_ROOT/setup.sh" --print-python); fi
  [ -x "$PYTHON" ] || PYTHON=python3
fi
export PYTHON

# Prints a folder on a disk of this node: the first of these that can be made and written.
local_disk() {
  local folder
  for folder in "${LOCAL_SCRATCH:-}" "${SLURM_TMPDIR:-}" "${TMPDIR:-}" /tmp; do
    if [ -n "$folder" ] && mkdir -p "$folder" 2>/dev/null && [ -w "$folder" ]; then echo "$folder"; return; fi
  done
}

# The last lines of a rank that is killed reach its log, and a segmentation fault leaves Python stacks there.
export PYTHONUNBUFFERED=${PYTHONUNBUFFERED:-1} PYTHONFAULTHANDLER=${PYTHONFAULTHANDLER:-1}
# torch 2.13 warns at every collective that DeepSpeed 0.19 makes, thousands of lines a minute.
export PYTHONWARNINGS=${PYTHONWARNINGS-ignore::FutureWarning}
# Ranks read tokens, they never make them; tokenizers' thread pool would only warn about forks.
export TOKENIZERS_PARALLELISM=${TOKENIZERS_PARALLELISM:-false}
# Rows of varying documents fragment the CUDA cache, and DeepSpeed then flushes it (microsoft/DeepSpeed#3582).
export PYTORCH_ALLOC_CONF=${PYTORCH_ALLOC_CONF:-expandable_segments:True}
