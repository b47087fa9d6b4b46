#!/usr/bin/env bash
# Trains on several machines without Slurm. Start the same command on every one of them, with its own NODE_RANK:
#
#   RUN_DIR=/shared/runs/x launch/multi_node.sh 0 2 10.0.0.1 experiment=demo      on 10.0.0.1
#   RUN_DIR=/shared/runs/x launch/multi_node.sh 1 2 10.0.0.1 experiment=demo      on the other
#
# RUN_DIR must lie on a disk that all of them see; node 0 writes the config there. The ranks of all nodes start
# together once every node has joined, so the order of the commands does not matter (within JOIN_TIMEOUT_S).
# MASTER_PORT, NPROC, ATTEMPT as in node.sh; the port must be the same on all (default 29400).
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
if [ $# -lt 3 ]; then
  echo "multi_node.sh: too few arguments; usage: RUN_DIR=... launch/multi_node.sh NODE_RANK NNODES MASTER_ADDR [overrides...]" >&2
  exit 2
fi
. "$here/env.sh"
NODE_RANK=$1 NNODES=$2 MASTER_ADDR=$3
shift 3
if ! { [ "$NODE_RANK" -ge 0 ] && [ "$NODE_RANK" -lt "$NNODES" ]; } 2>/dev/null; then
  echo "multi_node.sh: NODE_RANK=$NODE_RANK must be one of 0 to NNODES-1, and NNODES=$NNODES a number" >&2
  exit 2
fi
if [ -z "${RUN_DIR:-}" ]; then
  echo "multi_node.sh: RUN_DIR is not set, so the nodes cannot share a run; set it to a folder that all of them see" >&2
  exit 2
fi
export NODE_RANK NNODES MASTER_ADDR RUN_DIR MASTER_PORT=${MASTER_PORT:-29400}

if [ "$NODE_RANK" = 0 ]; then
  rm -f "$RUN_DIR/control/stop"
  if [ $# -gt 0 ] || [ ! -s "$RUN_DIR/config.json" ]; then "$PYTHON" -m sft_dist write-run --run-dir "$RUN_DIR" "$@"; fi
fi
exec bash "$here/node.sh" -m sft_dist.pipelines.train.worker --run-dir "$RUN_DIR"
