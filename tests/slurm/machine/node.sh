#!/usr/bin/env bash
# node.sh crash N | up N | pids N   (a power cut / power on of one emulated node)
set -euo pipefail
ROOT=${ROOT:-/tmp/slurm-ci}
# shellcheck source=/dev/null
for f in vars node_up; do . "$ROOT/run/$f.sh"; done
n=$PFX-node$2; f=$ROOT/run/node-$n.pid
case $1 in
  crash) kill -KILL "$(cat "$f")" ;;   # MODE=netns: unshare --kill-child takes the whole PID namespace with it
  up)    node_up "$2" ;;
  pids)  ip netns pids "$n" ;;
esac
