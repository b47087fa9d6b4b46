#!/usr/bin/env bash
# Submits preparation, training and evaluation as one chain of jobs; runs on the login node and needs no Python there.
#
#   slurm/chain.sh experiment=demo
#   SLICES=16 TRAIN_OPTIONS='--nodes=4 --gpus-per-node=8 --exclusive' slurm/chain.sh my.yaml train.epochs=2
#
# SLICES            elements of the preparation array (4)
# PREPARE_OPTIONS, TRAIN_OPTIONS, EVALUATE_OPTIONS   further options of sbatch for each job
# RUN_DIR           the run folder; default: RUN_ROOT (runs/) / chain-<time>
# DRY_RUN=1         only show the commands
#
# A job whose predecessor failed is cancelled by Slurm instead of waiting for ever.
set -euo pipefail
SFT_ROOT=${SFT_ROOT:-$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)}
site=${SFT_SITE_ENV:-$SFT_ROOT/slurm/site.env}
# shellcheck source=/dev/null
if [ -f "$site" ]; then . "$site"; fi
command -v sbatch >/dev/null || [ -n "${DRY_RUN:-}" ] || { echo "chain.sh: there is no sbatch here; run this on a login node of the cluster" >&2; exit 2; }

SLICES=${SLICES:-4}
RUN_DIR=${RUN_DIR:-${RUN_ROOT:-runs}/chain-$(date +%Y%m%d-%H%M%S)}
[[ $RUN_DIR == /* ]] || RUN_DIR=$PWD/$RUN_DIR
export SFT_ROOT SLICES RUN_DIR
read -ra prepare_options <<<"${PREPARE_OPTIONS:-}"
read -ra train_options <<<"${TRAIN_OPTIONS:-}"
read -ra evaluate_options <<<"${EVALUATE_OPTIONS:-}"

submit() {   # -> job number
  if [ -n "${DRY_RUN:-}" ]; then
    { printf 'sbatch'; printf ' %q' "$@"; echo; } >&2
    echo JOB
    return
  fi
  local job
  job=$(sbatch --parsable --kill-on-invalid-dep=yes "$@") || { echo "chain.sh: sbatch refused a job, see above; cancel the earlier ones with scancel" >&2; exit 1; }
  echo "${job%%;*}"   # on a federation: job;cluster
}
after() { printf -- '--dependency=afterok:%s' "$1"; }

slices=$(submit --array="0-$((SLICES - 1))" --output=%x-%A_%a.out ${prepare_options[@]+"${prepare_options[@]}"} "$SFT_ROOT/slurm/prepare.sbatch" "$@")
whole=$(submit "$(after "$slices")" ${prepare_options[@]+"${prepare_options[@]}"} "$SFT_ROOT/slurm/prepare.sbatch" "$@")
train=$(submit "$(after "$whole")" ${train_options[@]+"${train_options[@]}"} "$SFT_ROOT/slurm/train.sbatch" "$@")
evaluate=$(submit "$(after "$train")" ${evaluate_options[@]+"${evaluate_options[@]}"} "$SFT_ROOT/slurm/evaluate.sbatch")
printf 'prepare  %s (%s slices), %s\ntrain    %s\nevaluate %s\nrun folder %s\nfollow   squeue -j %s,%s,%s,%s\ncancel   scancel %s %s %s %s\n' \
  "$slices" "$SLICES" "$whole" "$train" "$evaluate" "$RUN_DIR" "$slices" "$whole" "$train" "$evaluate" "$slices" "$whole" "$train" "$evaluate"
