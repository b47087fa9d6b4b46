# shellcheck shell=bash
# What every batch script here needs: the site's settings, the environment, one way to run a command on the first
# node or on all. Sourced with SFT_ROOT set (sbatch spools a copy of the script, so its own folder says nothing).

site=${SFT_SITE_ENV:-$SFT_ROOT/slurm/site.env}
# shellcheck source=/dev/null
if [ -f "$site" ]; then . "$site"; fi
# Inside a container the host's interpreter does not exist.
if [ -n "${CONTAINER:-}" ] || [[ ${SRUN_OPTIONS:-} == *--container-image* ]]; then PYTHON=${PYTHON:-python3}; fi
. "$SFT_ROOT/launch/env.sh"

# `sbatch --export=...` makes srun drop the environment, PATH included, unless told otherwise.
export SLURM_EXPORT_ENV=ALL
# srun of Slurm 22.05 and newer ignores SLURM_CPUS_PER_TASK, and all ranks would share one core.
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-${SLURM_CPUS_ON_NODE:-1}}
export SLURM_CPUS_PER_TASK=$SRUN_CPUS_PER_TASK

# The name of this job, or of this element of an array: the number alone can mean the whole array.
id=${SLURM_ARRAY_JOB_ID:-${SLURM_JOB_ID:-}}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}

log() { printf '%s [job %s.%s] %s\n' "$(date +%FT%T)" "$id" "${SLURM_RESTART_COUNT:-0}" "$*"; }
die() { log "$1"; exit "${2:-2}"; }
field() { sed -n 's/.*"'"$2"'": *"\{0,1\}\([^",}]*\).*/\1/p' "$1" 2>/dev/null | head -n 1; }   # FILE KEY of flat JSON
uptime_s() { local up; read -r up _ < /proc/uptime; echo "${up%.*}"; }   # unlike date and SECONDS, a clock that nobody sets

hosts=()
mapfile -t hosts < <(scontrol show hostnames "${SLURM_JOB_NODELIST:-}")
[ "${#hosts[@]}" -gt 0 ] || die "this script runs inside a Slurm job; submit it with sbatch"

options=() container=()
read -ra options <<<"${SRUN_OPTIONS:-}"
if [ -n "${CONTAINER:-}" ]; then
  read -ra container <<<"${CONTAINER_OPTIONS:---nv}"
  container=(apptainer exec "${container[@]}" "$CONTAINER")
fi

# The environment on each node's own disk, in the same place on all; unpacked once, and found there by later jobs.
if [ -n "${STAGE_ENV:-}" ]; then
  if [ -n "${CONTAINER:-}" ] || [[ ${SRUN_OPTIONS:-} == *--container-image* ]]; then
    die "STAGE_ENV and a container are two environments; set one of them"
  fi
  [ -f "$STAGE_ENV" ] || die "STAGE_ENV=$STAGE_ENV is no file, so there is no environment to unpack; launch/stage_env.sh says how to make it"
  place=$(local_disk)/sft_dist-env-$(id -un)
  version=$(stat -c '%n %s %Y' "$STAGE_ENV" | cksum | cut -d ' ' -f 1)
  # %A is SLURM_JOB_ID, of each element of an array too
  running=$(squeue -h -u "$(id -un)" -t running,suspended,completing -o %A 2>/dev/null | tr '\n' ' ')
  srun --ntasks-per-node=1 --kill-on-bad-exit=1 --quiet ${options[@]+"${options[@]}"} \
    bash "$SFT_ROOT/launch/stage_env.sh" "$STAGE_ENV" "$place" "$version" "$running" ||
    die "the environment $STAGE_ENV could not be unpacked on every node, see above" 1
  export PYTHON=$place/$version/bin/python
fi

# Prefixes of commands. Arrays, not functions: what runs in the background is then srun itself and not a subshell.
# shellcheck disable=SC2034  # used by the scripts that source this
on_first=(srun --nodes=1 --ntasks=1 -w "${hosts[0]}" ${options[@]+"${options[@]}"} ${container[@]+"${container[@]}"})
# shellcheck disable=SC2034
on_all=(srun --kill-on-bad-exit=1 --wait=60 --label ${options[@]+"${options[@]}"} ${container[@]+"${container[@]}"})
