#!/usr/bin/env bash
# Unpacks a Python environment on this node's own disk, once; slurm/job.sh starts it on every node when STAGE_ENV is set:
#
#   launch/stage_env.sh /shared/envs/sft_dist.tar.gz /local/me/env       -> /local/me/env/bin/python
#
# One import of what training needs looks for 28,000 files and opens 4,600; hundreds of ranks that start together ask a
# shared disk for millions, an archive for one. Any archive that tar reads, with bin/python at its top:
#
#   tar -C /shared/envs/sft_dist -czf /shared/envs/sft_dist.tar.gz .     a virtual environment (its base Python stays)
#   conda pack -p /shared/envs/sft_dist -o /shared/envs/sft_dist.tar.gz  a conda environment
#
# Commands inside (bin/torchrun, ...) name the old place, so only `bin/python -m` is used.
set -euo pipefail
archive=$1 target=$2
fail() { echo "stage_env.sh: $(hostname): $1" >&2; rm -rf "$target"; exit 1; }

mkdir -p "$(dirname "$target")"
exec 9>"$target.lock"
flock 9   # another job of ours may be unpacking the same
if [ -e "$target/.whole" ]; then exit 0; fi
rm -rf "$target"   # cut short
mkdir "$target"
tar -xf "$archive" -C "$target" || fail "$archive could not be unpacked to $target; check the archive and the room there"
[ -x "$target/bin/python" ] || fail "$archive has no bin/python at its top (or its base interpreter is not on this node); make it with: tar -C ENVIRONMENT -czf $archive ."
if [ -e "$target/bin/conda-unpack" ]; then "$target/bin/python" "$target/bin/conda-unpack"; fi
touch "$target/.whole"
