"""Makefile: the targets exist, lint is one line a check and goes on after a failure."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
TARGETS = ("help", "setup", "demo", "test", "test-slow", "test-cluster", "lint", "format", "docs", "clean")
CHECKS = ("ruff check", "ruff format", "mypy", "import-linter", "shellcheck", "hadolint")
pytestmark = pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")


def make(*arguments: str, environment: Path | None = None) -> subprocess.CompletedProcess:
    variables = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}
    if environment is not None:
        variables["VIRTUAL_ENV"] = str(environment)
    return subprocess.run(
        ["make", *arguments],
        cwd=REPOSITORY,
        env=variables,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def tools(tmp_path) -> Path:
    """An environment whose tools all succeed."""
    (tmp_path / "bin").mkdir()
    for name in ("python", "ruff", "lint-imports", "shellcheck", "hadolint"):
        tool = tmp_path / "bin" / name
        tool.write_text(f'#!/bin/sh\necho "{name} $@" >> "{tmp_path}/calls"\n')
        tool.chmod(0o755)
    return tmp_path


@pytest.mark.parametrize("target", TARGETS)
def test_target_exists(target, tools):
    done = make("--dry-run", target, environment=tools)
    assert done.returncode == 0, done.stderr


def test_bare_make_lists_the_targets():
    listed = re.findall(r"^make (\S+)", make().stdout, re.MULTILINE)
    assert listed == list(TARGETS)


def test_lint_is_one_line_a_check(tools):
    done = make("lint", environment=tools)
    assert done.stdout.splitlines() == [f"lint: {name:<14} ok" for name in CHECKS]
    assert done.returncode == 0


def test_lint_goes_on_after_a_failure_and_fails(tools):
    (tools / "bin" / "lint-imports").write_text("#!/bin/sh\necho 'sft_dist.core imports torch'\nexit 1\n")
    done = make("lint", environment=tools)
    assert done.returncode != 0
    assert done.stdout.splitlines()[3:6] == [
        "lint: import-linter  FAILED",
        "sft_dist.core imports torch",
        "lint: shellcheck     ok",
    ]


def test_every_shell_script_is_checked(tools):
    make("lint", environment=tools)
    checked = next(
        line for line in (tools / "calls").read_text().splitlines() if line.startswith("shellcheck")
    ).split()[1:]
    there = [
        p
        for folder in ("launch", "slurm", "docker", "tests")
        for s in ("*.sh", "*.sbatch")
        for p in (REPOSITORY / folder).rglob(s)
    ]
    assert sorted(checked) == sorted(
        [".ci/run", "setup.sh", *(str(p.relative_to(REPOSITORY)) for p in there)]
    )
