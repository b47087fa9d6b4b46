"""docker/: what the images install fits pyproject.toml; the check script works in this environment."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

REPOSITORY = Path(__file__).resolve().parents[2]
DOCKER = REPOSITORY / "docker"
PYPROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


PINS = {
    canonical(line.split("==")[0]): line.split("==")[1].strip()
    for line in (DOCKER / "constraints.txt").read_text().splitlines()
    if "==" in line
}


def test_what_the_wheel_takes_along_reaches_the_image():
    ignored = (REPOSITORY / ".dockerignore").read_text().split()
    wheel = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    for path in [*wheel["packages"], *wheel["force-include"], PROJECT["readme"]]:
        assert path.split("/")[0] not in ignored


def test_requirements_leave_out_what_other_stages_install():
    done = subprocess.run(
        [sys.executable, DOCKER / "requirements.py", "sweep", "gpu", "flash"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    names = {canonical(Requirement(line).name) for line in done.stdout.splitlines()}
    assert {"transformers", "pydantic", "optuna"} <= names
    assert not names & {"torch", "deepspeed", "flash-attn"}


EXTRAS = re.search(r'^ARG EXTRAS="(.*)"$', (DOCKER / "Dockerfile").read_text(), re.MULTILINE)[1].split()


@pytest.mark.parametrize(
    "requirement",
    [*PROJECT["dependencies"], *(r for e in EXTRAS for r in PROJECT["optional-dependencies"][e])],
)
def test_pins_cover_and_fit_the_project(requirement):
    wanted = Requirement(requirement)
    if wanted.name == "torch":  # TORCH_SPEC
        text = (DOCKER / "Dockerfile").read_text()
        assert re.search(r"^ARG TORCH_SPEC=torch==(\S+)", text, re.MULTILINE)[1] in wanted.specifier
        return
    pin = PINS.get(canonical(wanted.name))
    assert pin, f"add {wanted.name}==VERSION to docker/constraints.txt"
    assert pin in wanted.specifier


def test_one_version_of_each_in_all_files():
    texts = [(DOCKER / name).read_text() for name in ("Dockerfile", "Dockerfile.cpu")]
    for name in ("TORCH_SPEC", "DEEPSPEED_VERSION"):
        values = {re.search(rf"^ARG {name}=(\S+)", text, re.MULTILINE)[1] for text in texts}
        assert len(values) == 1
    assert f"ARG DEEPSPEED_VERSION={PINS['deepspeed']}" in texts[0]
    torch = re.search(r"^ARG TORCH_SPEC=(\S+)", texts[0], re.MULTILINE)[1]
    assert f"TORCH_SPEC:-{torch}}}" in (REPOSITORY / "setup.sh").read_text()


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.cpu"])
def test_image_runs_as_an_ordinary_user_and_source_comes_after_dependencies(name):
    lines = (DOCKER / name).read_text().splitlines()
    assert "USER 10001" in lines
    source, dependencies = (
        lines.index("COPY . /build/source"),
        next(i for i, line in enumerate(lines) if "requirements.txt" in line),
    )
    assert dependencies < source


def test_compose_names_files_that_exist():
    services = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]
    assert set(services) == {"gpu", "cpu"}
    for service in services.values():
        assert (REPOSITORY / service["build"]["dockerfile"]).is_file()


@pytest.mark.slow
def test_check_script():
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, DOCKER / "check.py"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines() if line.startswith(("ok", "FAILED"))] == [
        "ok"
    ] * 4
