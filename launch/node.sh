#!/usr/bin/env bash
# Runs the ranks of one node: the only caller of torchrun (through cluster/agent.py). Everything after the environment goes to torchrun as it is:
#
#   RUN_DIR=runs/x MASTER_ADDR=127.0.0.1 MASTER_PORT=29400 NPROC=2 \
#     launch/node.sh -m sft_dist.pipelines.train.worker --run-dir runs/x
#
# RUN_DIR       the run folder, on a disk that all nodes share
# MASTER_ADDR   address of node 0 (not its name: that may resolve to 127.0.1.1); 127.0.0.1 means one node
# MASTER_PORT   a port that is free on node 0
# NPROC         ranks on this node; default: its GPUs, or 1 on a machine without
# NODE_RANK, NNODES   default: from the Slurm step, or one node
# ATTEMPT       names the log folder, "restart.try"; default: the next free one
# JOIN_TIMEOUT_S   how long a node waits for the others (600)
#
# USR1, TERM, HUP, or Ctrl-C: the ranks agree on a step, write a checkpoint and end with status "stopped"; a second TERM, HUP or
# Ctrl-C on one's own machine: torchrun ends the ranks.   USR2: every rank writes the stacks of its threads to its log.
# Nothing stays behind: torchrun ends with this script, and the ranks with torchrun (cluster/agent.py), kill -9 included.
#
# Why Slurm starts this and not torchrun: with proctrack/cgroup it delivers every signal but KILL to its direct child
# alone; torchrun would die of USR1, and its ranks would never see it.
trap '' USR1 USR2   # torchrun and the ranks inherit this: a signal before their own handlers stand must not end them
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/env.sh"
: "${RUN_DIR:?the run folder}" "${MASTER_ADDR:?the address of node 0}" "${MASTER_PORT:?a free port of node 0}"

by_hand=''
node=${NODE_RANK:-${SLURM_NODEID:-0}} nnodes=${NNODES:-${SLURM_STEP_NUM_NODES:-1}}
mkdir -p "$RUN_DIR/control"
case $MASTER_ADDR in
  127.* | localhost)   # one machine, even inside an interactive Slurm allocation of several
    node=0 nnodes=1 by_hand=1
    rm -f "$RUN_DIR/control/stop" ;;   # left by the run before; under Slurm the batch script does this, once a restart
esac

if [ -z "${ATTEMPT:-}" ]; then
  try=1
  while [ -e "$RUN_DIR/logs/attempt-0.$try/node-$node" ]; do try=$((try + 1)); done
  ATTEMPT=0.$try
fi
logs=$RUN_DIR/logs/attempt-$ATTEMPT/node-$node
mkdir -p "$logs" || exit 1

# ---- devices ---------------------------------------------------------------------------------------------------
gpus=0
if [ -n "${CUDA_VISIBLE_DEVICES-unset}" ] && command -v nvidia-smi >/dev/null; then
  gpus=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU ')
  if [ "$gpus" -gt 0 ] && [ -n "${CUDA_VISIBLE_DEVICES:-}" ]; then gpus=$(tr ',' '\n' <<<"$CUDA_VISIBLE_DEVICES" | grep -c .); fi
fi
# DeepSpeed guesses its accelerator from the packages that it finds; on a node without GPUs the guess can be wrong.
if [ "$gpus" = 0 ]; then export DS_ACCELERATOR=${DS_ACCELERATOR:-cpu}; fi
nproc_per_node=${NPROC:-$((gpus > 0 ? gpus : 1))}

# torchrun would set 1 thread a rank. SLURM_CPUS_PER_TASK is this task's share; nproc respects an affinity mask.
cores=${SLURM_CPUS_PER_TASK:-$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)}
threads=$((cores / nproc_per_node))
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((threads > 0 ? threads : 1))}

# ---- network ---------------------------------------------------------------------------------------------------
# Gloo needs to be told (see interface.py); NCCL finds its interfaces itself unless the site sets NCCL_SOCKET_IFNAME.
if [ -z "${GLOO_SOCKET_IFNAME:-}" ]; then
  interface=$("$PYTHON" "$here/interface.py" "$MASTER_ADDR")
  if [ -n "$interface" ]; then export GLOO_SOCKET_IFNAME=$interface; fi
fi

# ---- scratch ---------------------------------------------------------------------------------------------------
# Compiled kernels on NFS or Lustre: lock files hang, thousands of small files are slow (microsoft/DeepSpeed#5205, #2176).
# On one's own machine the usual caches under the home folder are right, and outlast the run.
scratch=
if [ -n "${SLURM_JOB_ID:-}" ] || [ "$nnodes" -gt 1 ]; then
  scratch=$(local_disk)/sft_dist-${SLURM_JOB_ID:-$$}-$node
  # Others of the node can foresee its name, and compiled kernels run as code: what is not ours is never read.
  (umask 077 && mkdir -p "$scratch") || exit 1
  if [ -L "$scratch" ] || [ ! -O "$scratch" ]; then
    echo "node.sh: $scratch belongs to another user or is a link, so nothing is run from there; set LOCAL_SCRATCH" >&2
    exit 1
  fi
  export TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-$scratch/triton} TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-$scratch/inductor}
  export TORCH_EXTENSIONS_DIR=${TORCH_EXTENSIONS_DIR:-$scratch/torch_extensions}
fi

# ---- evidence --------------------------------------------------------------------------------------------------
# Exit codes lie (torchrun turns all into 1, Slurm into 143): the root cause of a node's failure goes to one file.
export TORCHELASTIC_ERROR_FILE=$logs/error.json
# NCCL's flight recorder is on by default since torch 2.13 and dumps here when a collective times out (torchfrtrace).
export TORCH_FR_DUMP_TEMP_FILE=$logs/flight_rank_ TORCH_NCCL_DEBUG_INFO_TEMP_FILE=$logs/flight_rank_

# ---- run -------------------------------------------------------------------------------------------------------
# Static rendezvous: c10d's would sort ranks by address string, and a restarted job could meet another's store.
# Restarts are the caller's decision, from status.json. The console shows local rank 0; each rank has its own files.
pid=
ranks() { if command -v pgrep >/dev/null; then pgrep -P "$pid"; else cat /proc/"$pid"/task/*/children 2>/dev/null; fi; }
to_ranks() {
  local rank
  for rank in $([ -n "$pid" ] && ranks); do kill -s "$1" "$rank" 2>/dev/null; done
}
interrupts=0
on_interrupt() {
  interrupts=$((interrupts + 1))
  if [ "$interrupts" = 1 ]; then
    echo "stopping at the next step, with a checkpoint; press Ctrl-C again to end at once" >&2
    date +%s > "$RUN_DIR/control/stop"   # for ranks that have no handler yet
    to_ranks USR1
  else
    end_ranks
  fi
}
on_term() {   # torchrun alone would kill the ranks after 30 s, in the middle of a checkpoint
  if [ -n "${SLURM_JOB_ID:-}" ] && [ -z "$by_hand" ]; then to_ranks USR1; else on_interrupt; fi
}
end_ranks() { if [ -n "$pid" ]; then kill -s QUIT "$pid" 2>/dev/null; fi; }

binding=()
if [ -n "${NUMA_BINDING:-}" ]; then binding=(--numa-binding "$NUMA_BINDING"); fi   # node, socket, exclusive, core-complex
"$PYTHON" -m sft_dist.cluster.agent \
  --nnodes "$nnodes" --node-rank "$node" --nproc-per-node "$nproc_per_node" \
  --rdzv-backend static --master-addr "$MASTER_ADDR" --master-port "$MASTER_PORT" \
  --rdzv-conf "timeout=${JOIN_TIMEOUT_S:-600}" --max-restarts 0 \
  --signals-to-handle SIGURG ${binding[@]+"${binding[@]}"} \
  --log-dir "$logs" --redirects 3 --tee 3 --local-ranks-filter 0 "$@" </dev/null &
pid=$!
trap 'to_ranks USR1' USR1
trap 'to_ranks USR2' USR2
trap on_interrupt INT
trap on_term TERM HUP

while :; do   # a trapped signal ends `wait` early
  wait "$pid"
  status=$?
  kill -0 "$pid" 2>/dev/null || break
done
if [ -n "$scratch" ]; then rm -rf "$scratch"; fi
exit "$status"
