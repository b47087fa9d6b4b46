#!/usr/bin/env bash
# Uploads the offline Weights & Biases records of runs; for the login node, where there is internet.
#
#   slurm/wandb-sync.sh runs/sft-123 runs/sft-124     these runs
#   slurm/wandb-sync.sh                               every run under RUN_ROOT (runs/), and every trial of a sweep
#
# The newest record of a run holds the whole of it, under one run id; earlier attempts are left out, and so is what was uploaded before.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/../launch/env.sh"
shopt -s nullglob
if [ $# = 0 ]; then set -- "${RUN_ROOT:-runs}"/* "${RUN_ROOT:-runs}"/*/trial-*; fi

failed=0 found=0
for run in "$@"; do
  record=
  for record in "$run"/wandb/offline-run-*/ "$run"/wandb/wandb/offline-run-*/; do :; done  # their names begin with the time
  if [ -z "$record" ]; then continue; fi
  found=$((found + 1))
  if compgen -G "$record*.synced" >/dev/null; then continue; fi
  "$PYTHON" -m wandb sync "${record%/}" || failed=$((failed + 1))
done
if [ "$found" = 0 ]; then
  echo "wandb-sync.sh: no offline record under ${*:-${RUN_ROOT:-runs}}; was the run trained with wandb.mode=offline?" >&2
  exit 1
fi
if [ "$failed" -gt 0 ]; then
  echo "wandb-sync.sh: $failed of $found records could not be uploaded, see above; run it again" >&2
  exit 1
fi
