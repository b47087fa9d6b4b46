"""Collect what a bare machine lacks to run bench/gpu.py, and show that nothing else is missing.

    python bench/gpu_wheels.py .wheels                  # wheels for Python 3.12: a minute, about 60 MiB, pyarrow most of it
    python bench/gpu_wheels.py .wheels --rehearse       # wheels for this Python; then bench/gpu.py --reduced on them

A bare machine has torch, transformers and triton with what they need, and no network. `--rehearse` makes an environment of
exactly that (links into this one), unpacks the wheels beside it, and runs the reduced form: its lines are printed.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PRESENT = ("torch", "transformers", "triton")
NEEDED = (
    "accelerate",
    "einops",
    "py-cpuinfo",
    "pydantic",
    "pydantic_core",
    "annotated-types",
    "typing-inspection",
    "hjson",
    "msgpack",
    "pyarrow",
    "rapidfuzz",
    "psutil",
    "xxhash",
)
BUILT = "deepspeed"  # has no wheel: built without its compiled operators, none of which we use
LIMIT_MIB = 64  # of what travels to such a machine, the project's own tree included
BENCH = Path(__file__).with_name("gpu.py")


def collect(folder, python):
    """Download or build the wheels, of the versions that are installed here."""
    folder.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    pinned = [f"{name}=={importlib.metadata.version(name)}" for name in NEEDED]
    platforms = [w for p in ("manylinux2014_x86_64", "manylinux_2_28_x86_64") for w in ("--platform", p)]
    options = ["--no-deps", "--only-binary=:all:", "--python-version", python, *platforms, "-d", str(folder)]
    subprocess.run([*pip, "download", *options, *pinned], check=True)
    subprocess.run(
        [*pip, "wheel", "--no-deps", "-w", str(folder), f"{BUILT}=={importlib.metadata.version(BUILT)}"],
        check=True,
        env=os.environ | {"DS_BUILD_OPS": "0", "DS_ACCELERATOR": "cpu"},
    )
    size = sum(f.stat().st_size for f in folder.glob("*.whl")) / 2**20
    print(f"{len(list(folder.glob('*.whl')))} wheels, {size:.1f} of at most {LIMIT_MIB} MiB")
    return size <= LIMIT_MIB


def closure(names):
    """Distributions that these need, by name, as far as they are installed here; extras are not asked for."""
    from packaging.requirements import Requirement

    found, queue = {}, list(names)
    while queue:
        name = queue.pop()
        try:
            dist = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        if dist.metadata["Name"] in found:
            continue
        found[dist.metadata["Name"]] = dist
        wanted = [Requirement(r) for r in dist.requires or []]
        queue += [r.name for r in wanted if r.marker is None or r.marker.evaluate({"extra": ""})]
    return found


def bare(folder):
    """Fill a folder with links to what a bare machine has."""
    for dist in closure(PRESENT).values():
        for top in {f.parts[0] for f in dist.files or [] if f.parts[0] not in ("..", "__pycache__")}:
            source, link = Path(dist.locate_file(top)), folder / top
            if source.exists() and not link.exists():
                link.symlink_to(source)


def rehearse(wheels):
    """Run the reduced form on a bare machine's packages and the wheels; return its exit code."""
    with tempfile.TemporaryDirectory() as scratch:
        site = Path(scratch) / "site"
        present = Path(scratch) / "present"
        site.mkdir()
        present.mkdir()
        bare(present)
        for wheel in wheels.glob("*.whl"):
            zipfile.ZipFile(wheel).extractall(site)
        run = [sys.executable, "-S", str(BENCH), "--reduced", "--out", str(Path(scratch) / "found.jsonl")]
        keep = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME", "OMP_NUM_THREADS")}
        env = keep | {"PYTHONPATH": f"{site}:{present}", "DS_ACCELERATOR": "cpu", "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(run, env=env, check=False, cwd=scratch, stdout=subprocess.PIPE, text=True)
        print(done.stdout)
        return done.returncode or int('"failed"' in done.stdout)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python", default="3.12")
    parser.add_argument("--rehearse", action="store_true")
    options = parser.parse_args()
    python = f"{sys.version_info.major}.{sys.version_info.minor}" if options.rehearse else options.python
    fits = collect(options.folder, python)
    return (rehearse(options.folder) if options.rehearse else 0) if fits else 1


if __name__ == "__main__":
    sys.exit(main())
