"""setup.sh: quick the second time, never replaces a torch, one clear sentence for each mistake."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]

# Stands for pip inside an environment: writes down what it is asked for and "installs" it as an empty package.
PIP = """
import os, pathlib, sys
site = pathlib.Path(__file__).parent.parent
arguments = [a for a in sys.argv[1:] if a not in ("--quiet", "--disable-pip-version-check")]
if arguments == ["--version"]: sys.exit()
constraint = ""
if "-c" in arguments:
    at = arguments.index("-c")
    constraint = pathlib.Path(arguments[at + 1]).read_text().strip()
    arguments[at + 1] = "FILE"
with open(site / "pip.log", "a") as log: print(*arguments, f"({constraint})" if constraint else "", file=log)
if os.environ.get("PIP_FAILS"): sys.exit("ERROR: no network")
def install(name, version):
    (site / name).mkdir(exist_ok=True)
    (site / name / "__init__.py").touch()
    for old in site.glob(f"{name}-*.dist-info/METADATA"): old.unlink(); old.parent.rmdir()
    (site / f"{name}-{version}.dist-info").mkdir()
    (site / f"{name}-{version}.dist-info" / "METADATA").write_text(f"Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n")
for argument in arguments:
    if argument.startswith("torch=="): install("torch", argument.split("==")[1])
if "-e" in arguments:
    install("sft_dist", "0.1.0")
    if os.environ.get("PIP_REPLACES_TORCH"): install("torch", "9.9.9")
"""


class Checkout:
    """A copy of setup.sh and pyproject.toml, with an environment whose pip is the one above."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "a checkout"
        self.folder.mkdir()
        for name in ("setup.sh", "pyproject.toml"):
            shutil.copy(REPOSITORY / name, self.folder / name)
        (self.folder / "sft_dist").mkdir()
        (self.folder / "sft_dist" / "__init__.py").touch()
        self.prefix = folder / "env"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", self.prefix], check=True)
        self.site = next(self.prefix.glob("lib/python*/site-packages"))
        (self.site / "pip").mkdir()
        (self.site / "pip" / "__init__.py").touch()
        (self.site / "pip" / "__main__.py").write_text(PIP)
        outside = [p for p in os.environ["PATH"].split(":") if not Path(p, "../pyvenv.cfg").exists()]
        self.environment = {"PATH": ":".join(outside), "HOME": str(folder), "VIRTUAL_ENV": str(self.prefix)}

    def setup(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            ["bash", "setup.sh", *arguments],
            cwd=self.folder,
            env={k: v for k, v in {**self.environment, **environment}.items() if v},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def asked(self) -> list[str]:
        """Return what pip was asked for since the last call."""
        log = self.site / "pip.log"
        lines = [" ".join(line.split()) for line in log.read_text().splitlines()] if log.exists() else []
        log.unlink(missing_ok=True)
        return lines

    def bring_torch(self, version: str) -> None:
        (self.site / "torch").mkdir()
        (self.site / "torch" / "__init__.py").touch()
        info = self.site / f"torch-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n")


@pytest.fixture
def checkout(tmp_path) -> Checkout:
    return Checkout(tmp_path)


def test_torch_first_then_the_project_beside_it(checkout):
    done = checkout.setup()
    assert done.returncode == 0, done.stderr
    assert checkout.asked() == ["install torch==2.13.0", "install -c FILE -e .[dev] (torch==2.13.0)"]
    assert f"complete in {checkout.prefix} (torch 2.13.0)" in done.stdout


def test_second_call_does_nothing(checkout):
    checkout.setup()
    checkout.asked()
    done = checkout.setup()
    assert (done.returncode, done.stdout, checkout.asked()) == (
        0,
        f"setup: already complete in {checkout.prefix}\n",
        [],
    )


@pytest.mark.parametrize("change", ["pyproject", "extras", "package removed"])
def test_a_change_installs_the_project_again_but_not_torch(checkout, change):
    checkout.setup()
    checkout.asked()
    if change == "pyproject":
        (checkout.folder / "pyproject.toml").write_text(
            (checkout.folder / "pyproject.toml").read_text() + "\n# changed\n"
        )
    if change == "package removed":
        shutil.rmtree(checkout.site / "sft_dist")
    extras = "dev,lora" if change == "extras" else "dev"
    assert checkout.setup(f"EXTRAS={extras}").returncode == 0
    assert checkout.asked() == [f"install -c FILE -e .[{extras}] (torch==2.13.0)"]


def test_extras_in_another_order_are_the_same(checkout):
    checkout.setup("EXTRAS=dev,lora")
    checkout.asked()
    assert "already complete" in checkout.setup("EXTRAS=lora,dev").stdout


def test_torch_that_is_there_stays(checkout):
    checkout.bring_torch("2.12.1+vendor.7")
    done = checkout.setup()
    assert checkout.asked() == ["install -c FILE -e .[dev] (torch==2.12.1+vendor.7)"]
    assert "keeping the torch that is there: 2.12.1+vendor.7" in done.stdout


def test_a_replaced_torch_is_an_error(checkout):
    checkout.bring_torch("2.12.1")
    done = checkout.setup(PIP_REPLACES_TORCH="1")
    assert done.returncode == 1
    assert "torch 2.12.1 was replaced by 9.9.9" in done.stderr
    assert "already" not in checkout.setup().stdout  # no stamp was left


def test_other_torch_and_extras(checkout):
    checkout.setup("TORCH_SPEC=torch==2.12.0", EXTRAS="dev,flash")
    torch, tools, project = checkout.asked()
    assert torch == "install torch==2.12.0"
    assert tools.startswith(
        "install -c FILE hatchling"
    )  # flash-attn is compiled against the torch that is there
    assert project == "install -c FILE --no-build-isolation -e .[dev,flash] (torch==2.12.0)"


def test_environment_of_its_own_when_none_is_active(checkout, tmp_path):
    """The interpreter that is found makes .venv; one that has torch makes it visible there."""
    for has_torch, flag in ((0, ""), (1, "--system-site-packages")):
        shutil.rmtree(checkout.folder / ".venv", ignore_errors=True)
        base = tmp_path / f"python-{has_torch}"
        base.write_text(
            f"""#!/bin/bash
case "$*" in
  *"import torch"*) exit {1 - has_torch} ;;
  "-m venv "*) echo "$@" > "{tmp_path}/venv.log"; cp -r "{checkout.prefix}" .venv ;;
  *) exec "{sys.executable}" "$@" ;;
esac
"""
        )
        base.chmod(0o755)
        done = checkout.setup(f"PYTHON={base}", VIRTUAL_ENV="")
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "venv.log").read_text().split()[2:] == [
            "--clear",
            *([flag] if flag else []),
            ".venv",
        ]
        assert "created .venv" in done.stdout
        assert ". .venv/bin/activate" in done.stdout
        assert (
            "already complete" in checkout.setup(VIRTUAL_ENV="").stdout
        )  # .venv is found again without PYTHON


@pytest.mark.parametrize(
    "environment, used",
    [
        ({"VIRTUAL_ENV": "{env}"}, "{env}"),
        ({"CONDA_PREFIX": "{env}", "CONDA_DEFAULT_ENV": "work"}, "{env}"),
        ({"CONDA_PREFIX": "{env}", "CONDA_DEFAULT_ENV": "base"}, "{checkout}/.venv"),
        ({"VIRTUAL_ENV": "/removed"}, "{checkout}/.venv"),
        ({"PATH": "{env}/bin:/usr/bin:/bin"}, "{env}"),
        ({}, "{checkout}/.venv"),
    ],
    ids=["virtualenv", "conda", "conda base", "stale", "on PATH", "none"],
)
def test_which_environment(checkout, environment, used):
    places = {"env": str(checkout.prefix), "checkout": str(checkout.folder)}
    filled = {k: v.format(**places) for k, v in environment.items()}
    done = checkout.setup("--print-python", **{"VIRTUAL_ENV": "", **filled})
    assert done.stdout.strip() == used.format(**places) + "/bin/python"


def old_python(folder: Path) -> Path:
    (folder / "bin").mkdir(parents=True)
    python = folder / "bin" / "python"
    python.write_text('#!/bin/bash\n[ "$1" = -V ] && echo "Python 3.9.2" && exit\nexit 1\n')
    python.chmod(0o755)
    return python


def test_mistakes_are_one_sentence(checkout, tmp_path):
    old = old_python(tmp_path / "old")
    (tmp_path / "no").mkdir()
    (tmp_path / "no" / "ensurepip.py").write_text("raise SystemExit(1)")
    cases = {
        "the active environment has Python 3.9.2, but Python 3.11 or newer is needed": checkout.setup(
            VIRTUAL_ENV=str(old.parent.parent)
        ),
        "no Python 3.11 or newer was found as": checkout.setup(f"PYTHON={old}", VIRTUAL_ENV=""),
        "'extras' is not an argument": checkout.setup("extras"),
    }
    shutil.rmtree(checkout.site / "pip")
    cases["has no pip and cannot install one"] = checkout.setup(PYTHONPATH=str(tmp_path / "no"))
    for sentence, done in cases.items():
        assert done.returncode == 1, sentence
        assert sentence in done.stderr
        assert len(done.stderr.splitlines()) == 1, done.stderr


def test_failing_pip_says_what_to_do(checkout):
    done = checkout.setup(PIP_FAILS="1")
    assert done.returncode == 1
    assert done.stderr.splitlines()[0] == "ERROR: no network"
    assert "pip could not install torch==2.13.0" in done.stderr.splitlines()[1]


def test_names_no_registry():
    assert "://" not in (REPOSITORY / "setup.sh").read_text()


def test_stamp_follows_the_checkout(checkout):
    """Two checkouts that share an environment do not think that the other's installation is theirs."""
    checkout.setup()
    stamp = (checkout.prefix / ".sft_dist-setup").read_text().strip()
    content = [
        (checkout.folder / "pyproject.toml").read_bytes(),
        str(checkout.folder.resolve()).encode(),
        b"dev",
    ]
    assert stamp == hashlib.sha256(b"\0".join(content)).hexdigest()
