#!/usr/bin/env bash
# Trains on this machine with torchrun, from overrides as `sft-dist train` takes them (which starts node.sh itself):
#
#   launch/local.sh experiment=demo train.epochs=2           (data prepared before: sft-dist prepare experiment=demo)
#
# NPROC    ranks; default: the GPUs, or 1 on a machine without
# RUN_DIR  the run folder; default: runs/local-<time>. An existing one is continued when no overrides are given.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/env.sh"
RUN_DIR=${RUN_DIR:-runs/local-$(date +%Y%m%d-%H%M%S)}
MASTER_ADDR=127.0.0.1
MASTER_PORT=${MASTER_PORT:-$("$PYTHON" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')}
export RUN_DIR MASTER_ADDR MASTER_PORT

if [ $# -gt 0 ] || [ ! -s "$RUN_DIR/config.json" ]; then "$PYTHON" -m sft_dist write-run --run-dir "$RUN_DIR" "$@"; fi
exec bash "$here/node.sh" -m sft_dist.pipelines.train.worker --run-dir "$RUN_DIR"
