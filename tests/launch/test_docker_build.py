"""docker/Dockerfile.cpu is really built, and its check script passes inside: by buildah, without a Docker engine.

The base image is made here by debootstrap, with the package sources of this machine, so no registry of images is asked.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000), pytest.mark.takes(1700)]


def call(*command: object, **environment: str) -> str:
    done = subprocess.run(
        list(map(str, command)),
        cwd=REPOSITORY,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command[:3]} ...\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def mirror() -> tuple[str, str]:
    """Return the release of this Debian or Ubuntu, and where it installs packages from."""
    release = re.search(r"^VERSION_CODENAME=(\S+)", Path("/etc/os-release").read_text(), re.MULTILINE)[1]
    sources = [*Path("/etc/apt").glob("sources.list.d/*.sources"), *Path("/etc/apt").glob("sources.list*")]
    text = "\n".join(p.read_text() for p in sources if p.is_file())
    found = re.search(r"^(?:URIs:\s*|deb\s+(?:\[.*?\]\s*)?)(\S+)", text, re.MULTILINE)
    if not found:
        pytest.skip("this machine names no source of packages, so no base image can be made")
    return release, found[1]


def package_access() -> tuple[dict[str, str], dict[str, str]]:
    """Return what lets pip inside reach what it reaches here: environment variables; files and folders here -> inside."""
    names = [k for k in os.environ if k.startswith("PIP_") or k.lower().endswith(("_proxy", "_bundle"))]
    environment = {k: os.environ[k] for k in names}
    listed = subprocess.run(["pip", "config", "list"], capture_output=True, text=True, check=False).stdout
    found = re.findall(r"(?<![\w:/])/[\w./-]+", listed.replace("file://", " "))
    mounts = {p.removesuffix("/simple"): p.removesuffix("/simple") for p in found if Path(p).is_dir()}
    own = Path("~/.config/pip/pip.conf").expanduser()
    mounts |= {
        str(p): q
        for p, q in ((Path("/etc/pip.conf"), "/etc/pip.conf"), (own, "/root/.config/pip/pip.conf"))
        if p.is_file()
    }
    # at a path of its own, for the package ca-certificates writes to the usual one
    if Path(CERTIFICATES).is_file():
        mounts[CERTIFICATES] = inside = "/opt/certificates.crt"
        environment = {k: inside if v == CERTIFICATES else v for k, v in environment.items()}
        environment["PIP_CERT"] = inside
    return environment, mounts


def test_cpu_image_builds_and_passes_its_check(tmp_path):
    missing = [
        p for p in ("buildah", "debootstrap") if not shutil.which(p, path=f"{os.environ['PATH']}:/usr/sbin")
    ]
    if missing or os.geteuid() != 0:
        pytest.skip(
            f"needs root, and {', '.join(missing) or 'nothing else'} (apt-get install buildah debootstrap)"
        )
    release, archive = mirror()
    environment, mounts = package_access()
    base = tmp_path / "base"
    call(
        "debootstrap",
        "--variant=minbase",
        release,
        base,
        archive,
        PATH=f"{os.environ['PATH']}:/usr/sbin:/sbin",
    )
    (base / "etc" / "apt" / "sources.list").unlink(missing_ok=True)
    for name in ("sources.list", "sources.list.d", "apt.conf.d", "keyrings", "trusted.gpg.d"):
        source = Path("/etc/apt") / name
        if source.is_dir():
            shutil.copytree(source, base / "etc" / "apt" / name, dirs_exist_ok=True)
        elif source.is_file():
            shutil.copy(source, base / "etc" / "apt" / name)
    store = ("--root", tmp_path / "store", "--runroot", tmp_path / "run", "--storage-driver", "vfs")

    def buildah(*command: object) -> str:
        return call("buildah", *store, *command, BUILDAH_ISOLATION="chroot", STORAGE_DRIVER="vfs")

    try:
        container = buildah("from", "scratch").strip()
        buildah("add", "--quiet", container, base, "/")
        for name, value in environment.items():  # in the base, so that every stage has them
            buildah("config", "--env", f"{name}={value}", container)
        buildah("commit", "--quiet", "--rm", container, "localhost/base")
        torch = importlib.metadata.version("torch")
        buildah(
            *("bud", "--isolation", "chroot", "--network", "host", "--file", "docker/Dockerfile.cpu"),
            *("--build-arg", "BASE_IMAGE=localhost/base", "--build-arg", f"TORCH_SPEC=torch=={torch}"),
            *(f"--volume={here}:{inside}:ro" for here, inside in mounts.items()),
            *("--tag", "localhost/sft_dist", "."),
        )
        image = buildah("from", "--pull-never", "localhost/sft_dist").strip()
        said = buildah("run", "--isolation", "chroot", image, "--", "python", "/opt/sft_dist/check.py")
        lines = [line.split()[0] for line in said.splitlines() if line.startswith(("ok", "FAILED"))]
        assert lines == ["ok"] * 4, said
        assert buildah("run", "--isolation", "chroot", image, "--", "id", "-u").strip() == "10001"
    finally:
        subprocess.run(["buildah", *map(str, store), "rm", "--all"], check=False, capture_output=True)
        subprocess.run(
            ["buildah", *map(str, store), "rmi", "--all", "--force"], check=False, capture_output=True
        )
