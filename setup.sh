#!/usr/bin/env bash
# Installs the project and everything it needs; a second call does nothing when nothing changed.
#
#   ./setup.sh                        the active virtualenv or conda environment, else .venv/ in this folder
#   ./setup.sh EXTRAS=dev,gpu         which extras of pyproject.toml to install (default: dev)
#   ./setup.sh PYTHON=python3.12      the interpreter for a new .venv
#   ./setup.sh TORCH_SPEC=torch==2.12.1   which torch to install where there is none
#   ./setup.sh --print-python         only say which interpreter the other commands would use
#
# A torch that is already there is never replaced: clusters and vendors' images bring one that fits their driver.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")" || exit 1

say() { printf 'setup: %s\n' "$*"; }
die() { printf 'setup: %s\n' "$*" >&2; exit 1; }

print_python=0
for argument in "$@"; do
  case $argument in
    EXTRAS=* | TORCH_SPEC=* | PYTHON=*) declare "$argument" ;;
    --print-python) print_python=1 ;;
    -h | --help) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"; exit 0 ;;
    *) die "'$argument' is not an argument of setup.sh; see ./setup.sh --help" ;;
  esac
done
EXTRAS=${EXTRAS-dev}
TORCH_SPEC=${TORCH_SPEC:-torch==2.13.0}

# ---- which interpreter -----------------------------------------------------------------------------------------
# The base environment of conda belongs to conda itself, so it does not count as an active environment.
active_python() {
  local prefix
  for prefix in "${VIRTUAL_ENV:-}" "${CONDA_PREFIX:-}"; do
    [ -n "$prefix" ] && [ -x "$prefix/bin/python" ] || continue
    [ "$prefix" = "${CONDA_PREFIX:-}" ] && [ "${CONDA_DEFAULT_ENV:-}" = base ] && continue
    printf '%s\n' "$prefix/bin/python"
    return
  done
  # images put an environment on PATH without activating it
  python3 -c 'import sys; sys.prefix != sys.base_prefix and print(sys.prefix + "/bin/python")' 2>/dev/null
}
new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }
base_python() {
  local candidate
  for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11 python}; do
    command -v "$candidate" >/dev/null && new_enough "$candidate" && { command -v "$candidate"; return; }
  done
}

python=$(active_python)
created=.venv/bin/python
if [ "$print_python" = 1 ]; then
  printf '%s\n' "${python:-$PWD/$created}"
  exit 0
fi
if [ -n "$python" ]; then
  new_enough "$python" || die "the active environment has $("$python" -V 2>&1), but Python 3.11 or newer is needed; activate another one, or deactivate it and run ./setup.sh again"
else
  python=$PWD/$created
  if ! "$python" -c '' 2>/dev/null; then
    base=$(base_python)
    [ -n "$base" ] || die "no Python 3.11 or newer was found${PYTHON:+ as $PYTHON}; install one and name it: ./setup.sh PYTHON=/path/to/python3"
    flags=()
    "$base" -c 'import torch' 2>/dev/null && flags=(--system-site-packages)   # else the torch that is there could not be seen
    "$base" -m venv --clear ${flags[@]+"${flags[@]}"} .venv >/dev/null 2>&1 ||
      die "$base cannot create a virtual environment; install its venv module (Debian, Ubuntu: python3-venv), or activate an environment of your own"
    say "created .venv with $("$base" -V)${flags[0]:+, which sees the torch of $base}"
  fi
fi

# ---- nothing to do? --------------------------------------------------------------------------------------------
# The stamp lies in the environment (two checkouts may share one) and covers this folder, pyproject.toml and the
# extras. -P: a package counts as installed only when it is found from elsewhere than this folder.
stamp_of() {   # -> "HASH WHOLE FILE": what the stamp should hold, whether the packages are there, where it lies
  "$python" -P - "$EXTRAS" <<'PY'
import hashlib, importlib.util, os, sys
parts = [open("pyproject.toml", "rb").read(), os.getcwd().encode(), ",".join(sorted(sys.argv[1].split(","))).encode()]
whole = all(importlib.util.find_spec(name) for name in ("torch", "sft_dist"))
print(hashlib.sha256(b"\0".join(parts)).hexdigest(), int(whole), os.path.join(sys.prefix, ".sft_dist-setup"))
PY
}
read -r hash whole stamp < <(stamp_of)
[ -n "${stamp:-}" ] || die "$python does not run; remove .venv/ (or activate another environment) and run ./setup.sh again"
if [ "$whole" = 1 ] && [ "$(cat "$stamp" 2>/dev/null)" = "$hash" ]; then
  say "already complete in ${stamp%/*}"
  exit 0
fi

# ---- install ---------------------------------------------------------------------------------------------------
"$python" -m pip --version >/dev/null 2>&1 || "$python" -m ensurepip >/dev/null 2>&1 ||
  die "$python has no pip and cannot install one; add pip to that environment (Debian, Ubuntu: python3-pip) and run ./setup.sh again"
quiet=(--quiet)
[ -t 1 ] && quiet=()
pip_install() { "$python" -m pip install --disable-pip-version-check ${quiet[@]+"${quiet[@]}"} "$@"; }
torch_version() { "$python" -c 'import importlib.metadata as m, torch; print(m.version("torch"))' 2>/dev/null; }

found=$(torch_version)
if [ -n "$found" ]; then
  say "keeping the torch that is there: $found"
else
  say "installing $TORCH_SPEC (some minutes; TORCH_SPEC chooses another)"
  pip_install "$TORCH_SPEC" || die "pip could not install $TORCH_SPEC (its reason stands above); install torch yourself, or choose a version by TORCH_SPEC, and run ./setup.sh again"
  found=$(torch_version)
  [ -n "$found" ] || die "torch was installed but 'import torch' fails in $python; run that import to see why"
fi

constraints=$(mktemp) || die "no temporary file can be written; free some space in ${TMPDIR:-/tmp}"
trap 'rm -f "$constraints"' EXIT
printf 'torch==%s\n' "$found" > "$constraints"
isolation=()
case ,$EXTRAS, in
  *,flash,*) # flash-attn compiles against the torch that is there, which an isolated build could not see
    pip_install -c "$constraints" "hatchling>=1.26" editables setuptools wheel ninja packaging psutil ||
      die "pip could not install the build tools of the flash extra (its reason stands above)"
    isolation=(--no-build-isolation) ;;
esac
say "installing the project and its extras [$EXTRAS] (about a minute)"
pip_install -c "$constraints" ${isolation[@]+"${isolation[@]}"} -e ".${EXTRAS:+[$EXTRAS]}" ||
  die "pip could not install the project beside torch $found (its reason stands above); if that torch is too old, use another environment"
[ "$(torch_version)" = "$found" ] || die "torch $found was replaced by $(torch_version); reinstall torch $found and tell us which package asked for another"

printf '%s\n' "$hash" > "$stamp"
say "complete in ${stamp%/*} (torch $found)"
if [ "$python" = "$PWD/$created" ]; then say "to use it in this shell: . .venv/bin/activate"; fi
