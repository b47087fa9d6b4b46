"""launch/stage_env.sh: an archive of an environment becomes an interpreter on this node, once."""

from __future__ import annotations

import os
import subprocess
import venv
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "launch" / "stage_env.sh"


@pytest.fixture
def archive(tmp_path) -> Path:
    """A virtual environment with one module, `planted`."""
    made = tmp_path / "made here"
    venv.create(made, with_pip=False, symlinks=True)
    site = next((made / "lib").glob("python*/site-packages"))
    (site / "planted.py").write_text("SAID = 'from the archive'\n")
    file = tmp_path / "my env.tar.gz"
    subprocess.run(["tar", "-C", str(made), "-czf", str(file), "."], check=True)
    return file


def stage(archive: Path, target: Path, jobs: str = "", job: str = "") -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", str(SCRIPT), str(archive), str(target.parent), target.name, jobs],
        env={**{k: v for k, v in os.environ.items() if k != "SLURM_JOB_ID"}, "SLURM_JOB_ID": job},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_it_runs_from_where_it_was_unpacked(archive, tmp_path):
    target = tmp_path / "local disk" / "env"
    assert stage(archive, target).returncode == 0
    code = "import planted, sys; print(planted.SAID, sys.prefix)"
    said = subprocess.run(
        [str(target / "bin" / "python"), "-c", code], capture_output=True, text=True, check=True
    )
    assert said.stdout == f"from the archive {target}\n"


def test_it_is_unpacked_once_and_one_cut_short_is_done_again(archive, tmp_path):
    target = tmp_path / "env"
    stage(archive, target)
    (target / "mark").touch()
    assert stage(archive, target).returncode == 0
    assert (target / "mark").exists()
    (target / ".whole").unlink()
    assert stage(archive, target).returncode == 0
    assert not (target / "mark").exists()


def test_other_versions_make_room_when_no_running_job_uses_them(archive, tmp_path):
    place = tmp_path / "env of me"

    def versions() -> list[str]:
        return sorted(p.name for p in place.iterdir() if p.is_dir())

    assert stage(archive, place / "1", job="70", jobs="70 ").returncode == 0
    assert stage(archive, place / "2", job="71", jobs="70 71 ").returncode == 0
    assert versions() == ["1", "2"]  # job 70 runs from it
    assert stage(archive, place / "3", job="72", jobs="").returncode == 0
    assert versions() == ["1", "2", "3"]  # squeue said nothing, not even this job
    assert stage(archive, place / "3", job="73", jobs="73 ").returncode == 0
    assert versions() == ["1", "2", "3"]  # nothing was unpacked
    assert stage(archive, place / "4", job="74", jobs="7 73 74 ").returncode == 0
    assert versions() == ["3", "4"]  # 73 found it there; 70 to 72 have ended


def test_a_folder_of_another_user_is_not_run_from(archive, tmp_path):
    place = tmp_path / "env"
    place.mkdir()
    if os.geteuid() != 0:
        pytest.skip("giving a folder away needs root")
    os.chown(place, 12345, -1)
    done = stage(archive, place / "1")
    assert done.returncode == 1
    assert "belongs to another user" in done.stderr
    assert list(place.iterdir()) == []


def test_what_is_no_environment_is_named_and_leaves_nothing(tmp_path):
    (tmp_path / "file.tar").write_text("torn")
    done = stage(tmp_path / "file.tar", tmp_path / "env")
    assert (done.returncode, (tmp_path / "env").exists()) == (1, False)
    assert "could not be unpacked" in done.stderr
    subprocess.run(
        ["tar", "-C", str(tmp_path), "-cf", str(tmp_path / "file.tar"), "--files-from=/dev/null"], check=True
    )
    done = stage(tmp_path / "file.tar", tmp_path / "env")
    assert (done.returncode, (tmp_path / "env").exists()) == (1, False)
    assert "has no bin/python at its top" in done.stderr
