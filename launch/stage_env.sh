#!/usr/bin/env bash
# Unpacks a Python environment on this node's own disk, once; slurm/job.sh starts it on every node when STAGE_ENV is set:
#
#   launch/stage_env.sh /shared/envs/sft_dist.tar.gz /local/me/sft_dist-env-me VERSION "71 72"
#
#   -> /local/me/sft_dist-env-me/VERSION/bin/python
#
# One import of what training needs looks for 28,000 files and opens 4,600; hundreds of ranks that start together ask a
# shared disk for millions, an archive for one. Any archive that tar reads, with bin/python at its top:
#
#   tar -C /shared/envs/sft_dist -czf /shared/envs/sft_dist.tar.gz .     a virtual environment (its base Python stays)
#   conda pack -p /shared/envs/sft_dist -o /shared/envs/sft_dist.tar.gz  a conda environment
#
# Commands inside (bin/torchrun, ...) name the old place, so only `bin/python -m` is used.
#
# An archive that changes is a new VERSION. The others are removed when it is unpacked, but for those that one of the jobs
# in the last argument uses, the numbers of the user's running jobs. Without this job among them nothing is removed.
set -euo pipefail
archive=$1 place=$2 target=$2/$3 jobs=" ${4:-} " job=${SLURM_JOB_ID:-}
fail() { echo "stage_env.sh: $(hostname): $1" >&2; rm -rf "$target"; exit 1; }

mkdir -p "$(dirname "$place")"
[ -e "$place" ] || mkdir -m 700 "$place" 2>/dev/null || true   # another job of ours may have been first
[ -O "$place" ] || { echo "stage_env.sh: $(hostname): $place belongs to another user, so nothing is run from there; set LOCAL_SCRATCH" >&2; exit 1; }
exec 9>"$place/lock"
flock 9   # another job of ours may be unpacking the same, or remove what it takes for unused
if [ ! -e "$target/.whole" ]; then
  if [ -n "$job" ] && [[ $jobs == *" $job "* ]]; then   # else the list is not one of jobs that live
    for other in "$place"/*/; do
      for user in "$other".jobs/*; do if [[ $jobs == *" ${user##*/} "* ]]; then continue 2; fi; done
      rm -rf "$other"
    done
  fi
  rm -rf "$target"   # cut short
  mkdir "$target"
  tar -xf "$archive" -C "$target" || fail "$archive could not be unpacked to $target; check the archive and the room there"
  [ -x "$target/bin/python" ] || fail "$archive has no bin/python at its top (or its base interpreter is not on this node); make it with: tar -C ENVIRONMENT -czf $archive ."
  if [ -e "$target/bin/conda-unpack" ]; then "$target/bin/python" "$target/bin/conda-unpack"; fi
  touch "$target/.whole"
fi
if [ -n "$job" ]; then mkdir -p "$target/.jobs" && : > "$target/.jobs/$job"; fi
