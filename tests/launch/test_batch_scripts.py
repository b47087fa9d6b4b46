"""slurm/*: what follows an attempt (every row of the table in train.sbatch), arguments of the other scripts.

srun, scontrol, squeue and scancel are stand-ins on PATH; tests/slurm runs the same scripts on a real Slurm.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from sft_dist.config.load import load_config

REPOSITORY = Path(__file__).resolve().parents[2]
SLURM = REPOSITORY / "slurm"

# One attempt is one line of $PLAN: "STATE STEP CODE [signal|touch|hang]"; "-" writes no status.
SRUN = """#!/bin/bash
echo "srun $*" >> "$CALLS"
case " $* " in
  *" getent "*) getent ahostsv4 "${!#}" ;;
  *" hostname "*) echo "192.0.2.1 192.0.2.99" ;;
  *" true "*) exit "${ANSWER_CODE:-0}" ;;
  *" write-run "*) [ -z "${FREEZE_CODE:-}" ] || exit "$FREEZE_CODE"; echo '{
 "nproc": 3,
 "port": '"${PORT:-null}"'
}' > "$RUN_DIR/config.json" ;;
  *" begin "*) [ -z "${BEGIN_CODE:-}" ] || exit "$BEGIN_CODE"
    mkdir -p sweep/trial; printf '{\n "pruning": "%s"\n}\n' "${PRUNING:-none}" > sweep/sweep.json
    echo '{"nproc": 2}' > sweep/trial/config.json; printf 'SWEEP=%s\nTRIAL=%s\n' "$PWD/sweep" "$PWD/sweep/trial" ;;
  *" end "*) exit "$(sed -n "$(grep -c ' end ' "$CALLS")p" <<<"${END_CODES:-0}")" ;;
  *node.sh*)
    echo "attempt $ATTEMPT port $MASTER_PORT nproc ${NPROC:-} cpus $SRUN_CPUS_PER_TASK address $MASTER_ADDR" >> "$CALLS"
    read -r state step code what < <(sed -n "$(grep -c '^attempt' "$CALLS")p" "$PLAN")
    [ "$what" = signal ] && kill -USR1 "$PPID" && sleep 0.3
    [ "$what" = touch ] && touch "$RUN_DIR/control/stop"
    if [ "$what" = hang ]; then echo $$ > "$RUN_DIR/srun.pid"; fi
    if [ "$what" = slow ]; then   # moves now and then, while the clock of its disk is days behind and days ahead
      for i in 1 2 3 4 5 6; do printf '{\n "moved": %s\n}\n' $i > "$RUN_DIR/heartbeat"; touch -d "$((i % 2 * 4 - 2)) days" "$RUN_DIR/heartbeat"; sleep 0.5; done
    fi
    if [ "$what" = hang ]; then touch -d '2 days' "$RUN_DIR/heartbeat"; fi
    [ "$state" = - ] || printf '{\\n "state": "%s",\\n "step": %s\\n}\\n' "$state" "$step" > "$RUN_DIR/status.json"
    [ "$what" = hang ] && exec sleep 30
    exit "$code" ;;
esac
"""
SCONTROL = """#!/bin/bash
case $1 in
  show) echo node1; echo node2 ;;
  requeue) echo "requeue $2" >> "$CALLS"; [ -z "${REQUEUE_CODE:-}" ] || exit "$REQUEUE_CODE"; kill -KILL "$PPID" ;;
esac
"""
SQUEUE = """#!/bin/bash
case " $* " in
  *" %A "*) echo 70 ;;
  *" -s "*) grep -q '^attempt' "$CALLS" && echo "70.$(grep -c '^attempt' "$CALLS")" ;;
  *) [ -z "${OWNER_STATE:-}" ] || echo "$OWNER_STATE" ;;
esac
"""
SCANCEL = """#!/bin/bash
echo "scancel $*" >> "$CALLS"
[[ $* == 70.* ]] && kill "$(cat "$RUN_DIR/srun.pid")"
exit 0
"""
SBATCH = """#!/bin/bash
echo "sbatch $* [$RUN_DIR $SLICES]" >> "$CALLS"
echo $((100 + $(grep -c '^sbatch' "$CALLS")))
"""


class Job:
    """One batch job on two pretended nodes."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.run, self.calls_file = folder, folder / "run", folder / "calls"
        (folder / "bin").mkdir()
        tools = {"srun": SRUN, "scontrol": SCONTROL, "squeue": SQUEUE, "scancel": SCANCEL, "sbatch": SBATCH}
        for name, text in tools.items():
            (folder / "bin" / name).write_text(text)
            (folder / "bin" / name).chmod(0o755)
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_", "SRUN_"))}
        self.environment = {
            **kept,
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "PYTHON": "python3",
            "CALLS": str(self.calls_file),
            "PLAN": str(folder / "plan"),
            "RUN_DIR": str(self.run),
            "SFT_ROOT": str(REPOSITORY),
            "SFT_SITE_ENV": str(folder / "site.env"),
            "SLURM_JOB_ID": "70",
            "SLURM_JOB_NAME": "sft",
            "SLURM_JOB_NODELIST": "node[1-2]",
            "SLURM_SUBMIT_DIR": str(folder),
            "SLURM_CPUS_ON_NODE": "12",
            "POLL_S": "0.2",
            "STACKS_S": "0.2",
        }
        self.calls_file.touch()

    def submit(
        self, *arguments: str, plan: str = "", script: str = "train.sbatch", **environment: str
    ) -> subprocess.CompletedProcess:
        """Run a script as the batch step of a job."""
        (self.folder / "plan").write_text(plan)
        return subprocess.run(
            ["bash", str(SLURM / script), *arguments],
            cwd=self.folder,
            env={k: v for k, v in {**self.environment, **environment}.items() if v},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            check=False,
        )

    def calls(self, word: str) -> list[str]:
        return [line for line in self.calls_file.read_text().splitlines() if line.startswith(word)]


@pytest.fixture
def job(tmp_path) -> Job:
    return Job(tmp_path)


REQUEUED = -signal.SIGKILL  # as Slurm ends a script whose job it requeues
POLICY = {
    "finished": ("finished 40 0", {}, 0, 1, ""),
    "finished, though srun failed": ("finished 40 143", {}, 0, 1, ""),
    "fatal": ("fatal 3 1", {}, 2, 1, "the run cannot go on"),
    "stopped by a signal to the batch script": (
        "stopped 7 0 signal",
        {},
        REQUEUED,
        1,
        "requeue: stopped at step 7",
    ),
    "stopped by a signal to the step alone": ("stopped 7 0", {}, REQUEUED, 1, "requeue: stopped at step 7"),
    "stopped by control/stop": ("stopped 7 0 touch", {}, 0, 1, "stopped at step 7 by control/stop"),
    "signalled, but no checkpoint": (
        "running 7 1 signal",
        {},
        REQUEUED,
        1,
        "no checkpoint was written in time",
    ),
    "failed with progress, then well": ("running 7 1\nfinished 40 0", {}, 0, 2, ""),
    "failed before the first status, then well": ("- 0 1\nfinished 40 0", {}, 0, 2, "state none"),
    "failed with progress each time": ("running 7 1\nrunning 9 1", {}, REQUEUED, 2, "failed 2 times here"),
    "failed twice, no further": ("running 0 1\nrunning 0 1", {}, 1, 2, "came no further than step 0"),
    "failed at the same step again": (
        "running 7 1\nrunning 7 1\nrunning 7 1",
        {"TRIES": "3"},
        1,
        3,
        "no further than step 7",
    ),
    "progress clears the count": (
        "running 7 1\nrunning 7 1\nrunning 9 1\nrunning 9 1",
        {"TRIES": "4"},
        REQUEUED,
        4,
        "failed 4 times here",
    ),
    "a node does not answer": ("running 7 1", {"ANSWER_CODE": "1"}, REQUEUED, 1, "a node does not answer"),
    "silent": ("running 7 1 hang", {"HEARTBEAT_MAX": "1"}, REQUEUED, 1, "no heartbeat"),
    "slow, and the clock jumps": ("finished 40 0 slow", {"HEARTBEAT_MAX": "2"}, 0, 1, ""),
    "restart limit": ("stopped 7 0", {"SLURM_RESTART_COUNT": "20"}, 1, 1, "not requeued after 20 restarts"),
    "requeue refused": ("stopped 7 0", {"REQUEUE_CODE": "1"}, 1, 1, "continue with: RUN_DIR="),
}


@pytest.mark.parametrize("case", POLICY)
def test_restart_policy(job, case):
    plan, environment, code, attempts, phrase = POLICY[case]
    done = job.submit("experiment=demo", plan=plan + "\n", **environment)
    assert done.returncode == code, done.stdout
    assert phrase in done.stdout
    assert len(job.calls("attempt")) == attempts
    assert job.calls("requeue") == (["requeue 70"] if code == REQUEUED or case == "requeue refused" else [])


def test_each_attempt_has_its_own_name_and_port(job):
    job.submit("a=1", plan="running 7 1\nfinished 40 0\n")
    first, second = (line.split() for line in job.calls("attempt"))
    assert (first[1], second[1]) == ("0.1", "0.2")
    assert first[3] != second[3]
    assert 20000 <= int(first[3]) < 32768
    assert first[4:] == ["nproc", "3", "cpus", "12", "address", "192.0.2.1"]  # ranks from the frozen config


def test_requeued_job_goes_on_with_its_config_and_counts_failures_on(job):
    job.submit("a=1", plan="running 7 1\nrunning 7 1\n", TRIES="1")  # further than before: requeued
    job.calls_file.write_text("")
    done = job.submit("a=1", plan="running 7 1\nrunning 7 1\n", SLURM_RESTART_COUNT="1")
    assert done.returncode == 1
    assert "two attempts in a row" in done.stdout
    assert not [c for c in job.calls("srun") if "write-run" in c]
    assert [line.split()[1] for line in job.calls("attempt")] == ["1.1", "1.2"]
    job.calls_file.write_text("")
    assert job.submit("a=1", plan="finished 40 0\n").returncode == 0  # submitted anew: counted anew
    assert [c for c in job.calls("srun") if "write-run --run-dir" in c]


def test_stale_status_is_not_taken_for_this_attempts(job):
    job.run.mkdir()
    (job.run / "status.json").write_text('{"state": "stopped", "step": 5}')
    done = job.submit("a=1", plan="- 0 1\n- 0 1\n")
    assert done.returncode == 1
    assert not job.calls("requeue")


def test_requeue_after_the_end_does_nothing(job):
    job.run.mkdir()
    (job.run / "status.json").write_text('{"state": "finished", "step": 5}')
    assert job.submit("a=1", SLURM_RESTART_COUNT="1").returncode == 0
    assert not job.calls("attempt")


def test_data_are_prepared_first_when_asked(job):
    """Also after the first attempt broke off in it, a node having died; never again once the config is frozen."""

    def ours() -> list[str]:
        return [c.split(" -m sft_dist ")[1].split()[0] for c in job.calls("srun") if " -m sft_dist " in c]

    given = {"PREPARE": "1", "SLURM_RESTART_COUNT": "1"}
    job.submit("a=1", plan="stopped 7 0\n", **given)
    assert ours() == ["prepare", "write-run"]
    job.submit("a=1", plan="finished 40 0\n", **given)
    assert ours() == ["prepare", "write-run"]


@pytest.mark.parametrize(
    "code, phrase", [(2, "'write-run' refused what it was given"), (7, "'write-run' ended with exit code 7")]
)
def test_refused_config(job, code, phrase):
    done = job.submit("a=1", FREEZE_CODE=str(code))
    assert done.returncode == (2 if code == 2 else 1)
    assert phrase in done.stdout
    assert not job.calls("attempt") + job.calls("requeue")


def test_master_address_comes_from_the_allocation(job):
    job.submit("a=1", plan="finished 40 0\n", MASTER_ADDR="localhost")  # from someone's shell profile
    assert job.calls("attempt")[0].endswith("address 192.0.2.1")
    job.calls_file.write_text("")
    getent = job.folder / "bin" / "getent"
    getent.write_text(
        "#!/bin/bash\ncase $2 in\n"
        'node1) printf "127.0.1.1 STREAM\\n198.51.100.6 STREAM\\n198.51.100.8 STREAM\\n" ;;\n'
        'node1i) echo "198.51.100.7 STREAM" ;;\nesac\n'
    )
    getent.chmod(0o755)
    for suffix, address in (("", "198.51.100.6"), ("i", "198.51.100.7")):
        job.calls_file.write_text("")
        job.submit("a=1", plan="finished 40 0\n", MASTER_ADDR_SUFFIX=suffix)
        assert [c for c in job.calls("srun") if "-w node2" in c]  # as another node knows it
        assert job.calls("attempt")[0].endswith(f"address {address}")
    job.calls_file.write_text("")
    assert "the address of node1j is unknown" in job.submit("a=1", MASTER_ADDR_SUFFIX="j").stdout
    assert not job.calls("attempt")


def test_a_port_that_the_config_names_is_taken(job):
    job.submit("a=1", plan="running 7 1\nfinished 40 0\n", PORT="31234")
    assert [line.split()[3] for line in job.calls("attempt")] == ["31234", "31234"]


def test_several_tasks_a_node_are_refused(job):
    done = job.submit("a=1", plan="finished 40 0", SLURM_NTASKS="16")
    assert (done.returncode, "16 tasks on 2 node(s)" in done.stdout) == (2, True)
    assert not job.calls("srun")
    assert job.submit("a=1", plan="finished 40 0", SLURM_NTASKS="2").returncode == 0


def test_silent_attempt_gets_usr2_for_stacks_and_is_then_ended(job):
    job.submit("a=1", plan="running 7 1 hang\n", HEARTBEAT_MAX="5")
    assert job.calls("scancel") == ["scancel --signal=USR2 70.1", "scancel 70.1"]


def test_silent_attempt_whose_step_is_unknown_does_not_cancel_the_job(job):
    (job.folder / "bin" / "squeue").write_text("#!/bin/bash\n")
    job.submit("a=1", plan="running 7 1 hang\n", HEARTBEAT_MAX="5", END_S="1")
    assert job.calls("requeue") == ["requeue 70"]
    assert job.calls("scancel") == []


def test_signal_is_passed_to_the_step(job):
    (job.folder / "plan").write_text("stopped 7 0\n")
    slow = SRUN.replace('[ "$what" = touch ]', "sleep 2; [ x = y ]")
    (job.folder / "bin" / "srun").write_text(slow)
    process = subprocess.Popen(
        ["bash", SLURM / "train.sbatch", "a=1"], cwd=job.folder, env=job.environment, stdout=subprocess.PIPE
    )
    end = time.monotonic() + 20
    while not job.calls("attempt"):
        assert time.monotonic() < end
        time.sleep(0.05)
    time.sleep(1)
    process.send_signal(signal.SIGUSR1)
    process.communicate(timeout=30)
    assert job.calls("scancel") == ["scancel --signal=USR1 70.1"]
    assert (job.run / "control" / "stop").exists()


def test_signal_while_the_environment_is_unpacked_or_data_are_prepared(job):
    """The one comes before the script knows what to do with it; the other may outlast the time that is left."""
    (job.folder / "env.tar").touch()
    srun = job.folder / "bin" / "srun"
    given = {
        "STAGE_ENV": str(job.folder / "env.tar"),
        "LOCAL_SCRATCH": str(job.folder / "disk"),
        "PREPARE": "1",
    }
    for case in (
        '*stage_env.sh*) kill -USR1 "$PPID"; sleep 0.3 ;;',
        '*" prepare "*) kill -USR1 "$PPID"; exec sleep 40 ;;',
    ):
        srun.write_text(SRUN.replace('case " $* " in', f'case " $* " in\n  {case}'))
        job.calls_file.write_text("")
        began = time.monotonic()
        done = job.submit("a=1", plan="finished 40 0", **given)
        assert done.returncode == REQUEUED, done.stdout
        assert job.calls("requeue") == ["requeue 70"]
        assert not job.calls("attempt")
        assert time.monotonic() - began < 30


def test_new_settings_outlive_a_requeue_before_they_are_frozen(job):
    """Of a run that is submitted again: its folder has a config.json already."""
    job.run.mkdir()
    (job.run / "config.json").write_text('{"nproc": 1}')
    srun = job.folder / "bin" / "srun"
    srun.write_text(
        SRUN.replace(
            '*" write-run "*)', '*" write-run "*) [ -n "${GO:-}" ] || { kill -USR1 "$PPID"; exec sleep 40; };'
        )
    )
    assert job.submit("a=2", plan="finished 40 0").returncode == REQUEUED
    job.calls_file.write_text("")
    assert job.submit("a=2", plan="finished 40 0", SLURM_RESTART_COUNT="1", GO="1").returncode == 0
    assert [c for c in job.calls("srun") if c.endswith(f"write-run --run-dir {job.run} a=2")]
    assert job.calls("attempt")[0].split()[5] == "3"  # ranks by the new config
    job.calls_file.write_text("")
    assert job.submit("a=2", plan="finished 40 0", SLURM_RESTART_COUNT="2").returncode == 0  # frozen now
    assert not [c for c in job.calls("srun") if " write-run " in c]


def test_control_stop_of_a_person_counts_while_the_job_waits(job):
    (job.run / "control").mkdir(parents=True)
    (job.run / "control" / "stop").touch()
    done = job.submit("a=1", plan="finished 40 0", SLURM_RESTART_COUNT="1")
    assert (done.returncode, job.calls("attempt")) == (0, [])
    assert "stopped by control/stop" in done.stdout
    (job.run / "control" / "stop").write_text("1700000000\n")  # of the script itself, before it was requeued
    assert job.submit("a=1", plan="finished 40 0", SLURM_RESTART_COUNT="1").returncode == 0
    assert len(job.calls("attempt")) == 1


@pytest.mark.parametrize(("state", "requeued"), [("RUNNING", True), ("COMPLETING", False)])
def test_term_is_a_preemption_while_the_job_runs_else_its_end(job, state, requeued):
    srun = SRUN.replace('[ "$what" = signal ] && kill -USR1', '[ "$what" = signal ] && kill -TERM')
    (job.folder / "bin" / "srun").write_text(srun)
    done = job.submit("a=1", plan="stopped 7 0 signal\n", OWNER_STATE=state)
    assert done.returncode == (REQUEUED if requeued else 1), done.stdout
    assert job.calls("requeue") == ["requeue 70"] * requeued
    assert (job.run / "control" / "stop").read_text()


def test_element_of_an_array_is_requeued_by_its_own_name(job):
    done = job.submit(
        "a=1", plan="stopped 7 0\n", SLURM_ARRAY_JOB_ID="70", SLURM_ARRAY_TASK_ID="3", RUN_DIR=""
    )
    assert done.returncode == REQUEUED
    assert job.calls("requeue") == ["requeue 70_3"]
    assert (job.folder / "runs" / "sft-70_3" / "status.json").exists()


def test_run_folder_of_a_job_that_lives_is_refused(job):
    (job.run / "control").mkdir(parents=True)
    (job.run / "control" / "job").write_text("69\n")
    done = job.submit("a=1", OWNER_STATE="RUNNING")
    assert done.returncode == 2
    assert "belongs to job 69" in done.stdout
    assert not job.calls("attempt")
    assert job.submit("a=1", plan="finished 1 0\n").returncode == 0  # 69 has ended
    assert (job.run / "control" / "job").read_text() == "70\n"


def test_container_and_site_settings(job):
    (job.folder / "site.env").write_text(
        "CONTAINER=/images/sft.sif\nCONTAINER_OPTIONS='--nv --bind /data'\nSRUN_OPTIONS='--mpi=none'\n"
    )
    job.submit("a=1", plan="finished 1 0\n", PYTHON="")
    node = next(c for c in job.calls("srun") if "node.sh" in c)
    assert (
        f"--mpi=none apptainer exec --nv --bind /data /images/sft.sif bash {REPOSITORY}/launch/node.sh"
        in node
    )
    written = next(c for c in job.calls("srun") if "write-run" in c)
    assert (
        "/images/sft.sif python3 -m sft_dist write-run" in written
    )  # the host's interpreter is not in there


PYXIS = "--container-image=/images/sft.sqsh --container-mounts=/shared:/shared"


def test_the_environment_is_unpacked_on_every_node_before_it_is_used(job):
    (job.folder / "env.tar").touch()
    given = {"STAGE_ENV": str(job.folder / "env.tar"), "LOCAL_SCRATCH": str(job.folder / "disk")}
    assert job.submit("a=1", plan="finished 1 0", **given).returncode == 0
    calls = job.calls("srun")
    assert "--ntasks-per-node=1" in calls[0]
    place, version, running = calls[0].split(f"launch/stage_env.sh {job.folder}/env.tar ")[1].split()
    assert place.startswith(f"{job.folder}/disk/sft_dist-env-")
    assert running == "70"
    assert f"{place}/{version}/bin/python -m sft_dist write-run" in calls[1]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"STAGE_ENV": "/nowhere.tar"}, "STAGE_ENV=/nowhere.tar is no file"),
        ({"STAGE_ENV": "/nowhere.tar", "CONTAINER": "x.sif"}, "two environments"),
        ({"STAGE_ENV": "/nowhere.tar", "SRUN_OPTIONS": "--container-image=x"}, "two environments"),
    ],
)
def test_an_environment_that_cannot_be_unpacked(job, given, said):
    done = job.submit("a=1", **given)
    assert (done.returncode, said in done.stdout) == (2, True)
    assert not job.calls("srun")


def test_pyxis_starts_every_step_of_ours_in_the_container(job):
    """Slurm's own client commands stay outside: scontrol is not in an image."""
    (job.folder / "site.env").write_text(f"SRUN_OPTIONS='{PYXIS}'\n")
    assert job.submit("a=1", plan="finished 40 0", PYTHON="").returncode == 0
    ours = [c for c in job.calls("srun") if "sft_dist" in c]
    assert len(ours) == 2
    assert all(PYXIS in c for c in ours)
    assert "python3 -m sft_dist write-run" in ours[0]


@pytest.mark.parametrize(
    ("site", "expected"),
    [
        (
            "CONTAINER=/images/sft.sif",
            "beside exec --nv /images/sft.sif python3 -m sft_dist.pipelines.sweep.trial watch",
        ),
        (
            f"SRUN_OPTIONS='{PYXIS}'",
            f"-w node1 {PYXIS} --overlap python3 -m sft_dist.pipelines.sweep.trial watch",
        ),
    ],
)
def test_pruning_is_watched_from_inside_the_container(job, site, expected):
    (job.folder / "site.env").write_text(site + "\n")
    apptainer = job.folder / "bin" / "apptainer"
    apptainer.write_text('#!/bin/bash\necho "beside $*" >> "$CALLS"\n')
    apptainer.chmod(0o755)
    job.submit("a=1,2", plan="finished 40 0", script="sweep.sbatch", PRUNING="asha", PYTHON="", **ELEMENT)
    assert any(expected in c for c in [*job.calls("beside"), *job.calls("srun")]), job.calls_file.read_text()


@pytest.mark.parametrize("script", ["train.sbatch", "prepare.sbatch", "evaluate.sbatch", "sweep.sbatch"])
def test_wrong_folder_is_named(job, script):
    done = job.submit("a=1", script=script, SFT_ROOT="", SLURM_SUBMIT_DIR=str(job.folder))
    assert done.returncode == 2
    assert "is not the sft_dist repository" in done.stdout
    assert len(done.stdout.splitlines()) == 1


def test_prepare_slices(job):
    array = {"SLURM_ARRAY_JOB_ID": "70", "SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "8"}
    assert job.submit("a=1", script="prepare.sbatch", **array).returncode == 0
    assert job.submit("a=1", script="prepare.sbatch").returncode == 0
    one, whole = job.calls("srun")
    assert one.endswith("-m sft_dist prepare a=1 --slice 3/8")
    assert whole.endswith("-m sft_dist prepare a=1")
    again = {**array, "SLURM_ARRAY_TASK_COUNT": "1"}  # --array=3 alone
    assert job.submit("a=1", script="prepare.sbatch", **again).returncode == 2
    assert job.submit("a=1", script="prepare.sbatch", SLICES="8", **again).returncode == 0


def test_evaluate(job):
    assert "RUN_DIR is not set" in job.submit(script="evaluate.sbatch", RUN_DIR="").stdout
    assert "no config.json" in job.submit(script="evaluate.sbatch").stdout
    job.run.mkdir()
    (job.run / "config.json").touch()
    assert job.submit(script="evaluate.sbatch").returncode == 0
    (evaluate,) = job.calls("srun")
    assert evaluate.endswith(f"-m sft_dist evaluate {job.run}")


ELEMENT = {"SLURM_ARRAY_JOB_ID": "70", "SLURM_ARRAY_TASK_ID": "2", "RUN_DIR": ""}
TASK = "python3 -m sft_dist.pipelines.sweep.trial"


def test_sweep_element_is_begun_trained_and_ended(job):
    done = job.submit("my.yaml", "a=1,2", plan="finished 40 0", script="sweep.sbatch", PREPARE="1", **ELEMENT)
    assert done.returncode == 0, done.stdout
    calls = [c.split(" -w node1 ")[-1] for c in job.calls("srun") if " python3 " in c or "node.sh" in c]
    sweep = job.folder / "sweep"
    assert [calls[0], calls[-1]] == [f"{TASK} begin 2 -- my.yaml a=1,2", f"{TASK} end {sweep} 2"]
    assert f"sft_dist.pipelines.train.worker --run-dir {sweep}/trial" in calls[1]
    assert not [c for c in calls if " prepare " in c]  # begin did it: train.sbatch knows no overrides


def test_sweep_element_takes_run_root_from_the_site(job):
    """Quoted, as Hydra takes what has blanks, quotes or `=` in it."""
    for root in ("/shared/runs", "/my runs/a=b, it's"):
        job.calls_file.write_text("")
        job.submit("a=1,2", plan="finished 40 0", script="sweep.sbatch", RUN_ROOT=root, **ELEMENT)
        given = job.calls("srun")[0].split(" a=1,2 ")[1]
        assert load_config([given]).run_root == root


@pytest.mark.parametrize(("code", "exit_code"), [("3", 0), ("2", 2)])
def test_sweep_element_with_nothing_to_do_or_a_mistake(job, code, exit_code):
    done = job.submit("a=1,2", script="sweep.sbatch", BEGIN_CODE=code, **ELEMENT)
    assert done.returncode == exit_code
    assert not job.calls("attempt")


def test_sweep_element_whose_trial_another_job_holds_writes_no_outcome(job):
    control = job.folder / "sweep" / "trial" / "control"
    control.mkdir(parents=True)
    (control / "job").write_text("69_2\n")
    done = job.submit("a=1,2", script="sweep.sbatch", OWNER_STATE="PENDING", **ELEMENT)
    assert (done.returncode, "belongs to job 69_2" in done.stdout) == (2, True)
    assert not [c for c in job.calls("srun") if " end " in c]


def test_failed_sweep_element_is_begun_again(job):
    plan = "running 0 1\nrunning 0 1\nfinished 40 0"
    done = job.submit("a=1,2", plan=plan, script="sweep.sbatch", END_CODES="75\n0", **ELEMENT)
    assert done.returncode == 0, done.stdout
    assert "trial 2 failed (exit code 1); it is begun again" in done.stdout
    assert len([c for c in job.calls("srun") if " begin " in c]) == 2


def test_pruning_is_watched_beside_the_training_and_ends_with_it(job):
    python = job.folder / "bin" / "python3"
    python.write_text('#!/bin/bash\necho "beside $*" >> "$CALLS"\nexec sleep 50\n')
    python.chmod(0o755)
    began = time.monotonic()
    job.submit("a=1,2", plan="finished 40 0", script="sweep.sbatch", PRUNING="median", **ELEMENT)
    assert time.monotonic() - began < 30
    assert job.calls("beside") == [f"beside -m sft_dist.pipelines.sweep.trial watch {job.folder}/sweep 2"]


def test_a_sweep_is_an_array_of_something(job):
    assert "sbatch --array" in job.submit("a=1,2", script="sweep.sbatch").stdout
    assert "nothing is swept" in job.submit(script="sweep.sbatch", **ELEMENT).stdout


def test_chain(job):
    done = job.submit("a=1", script="chain.sh", SLICES="8", TRAIN_OPTIONS="--nodes=4 --exclusive")
    assert done.returncode == 0, done.stdout
    always, where = "sbatch --parsable --kill-on-invalid-dep=yes", f"[{job.run} 8]"
    assert job.calls("sbatch") == [
        f"{always} --array=0-7 --output=%x-%A_%a.out {SLURM}/prepare.sbatch a=1 {where}",
        f"{always} --dependency=afterok:101 {SLURM}/prepare.sbatch a=1 {where}",
        f"{always} --dependency=afterok:102 --nodes=4 --exclusive {SLURM}/train.sbatch a=1 {where}",
        f"{always} --dependency=afterok:103 {SLURM}/evaluate.sbatch {where}",
    ]
    assert "scancel 101 102 103 104" in done.stdout


def test_chain_dry_run_submits_nothing(job):
    done = job.submit("a=1", script="chain.sh", DRY_RUN="1")
    assert done.returncode == 0
    assert not job.calls("sbatch")
    assert done.stdout.count("sbatch") >= 4


def test_wandb_sync(job):
    for name in ("offline-run-1", "offline-run-2"):
        (job.run / "wandb" / name).mkdir(parents=True)
    python = job.folder / "bin" / "python3"
    python.write_text('#!/bin/bash\necho "sync $*" >> "$CALLS"\nexit "${SYNC_CODE:-0}"\n')
    python.chmod(0o755)
    assert job.submit(str(job.run), script="wandb-sync.sh").returncode == 0
    assert job.calls("sync") == [f"sync -m wandb sync {job.run}/wandb/offline-run-2"]
    failed = job.submit(str(job.run), script="wandb-sync.sh", SYNC_CODE="1")
    assert failed.returncode == 1
    assert "1 of 1 records could not be uploaded" in failed.stdout
    (job.run / "wandb" / "offline-run-2" / "run-1.wandb.synced").touch()
    assert (
        job.submit(str(job.run), script="wandb-sync.sh", SYNC_CODE="1").returncode == 0
    )  # nothing is left to do
    assert "no offline record" in job.submit(str(job.folder / "bin"), script="wandb-sync.sh").stdout


def test_wandb_sync_finds_runs_and_the_trials_of_sweeps(job):
    for name in ("runs/a", "runs/lr/trial-000"):
        (job.folder / name / "wandb" / "offline-run-1").mkdir(parents=True)
    python = job.folder / "bin" / "python3"
    python.write_text('#!/bin/bash\necho "sync $*" >> "$CALLS"\n')
    python.chmod(0o755)
    assert job.submit(script="wandb-sync.sh").returncode == 0
    assert job.calls("sync") == [
        f"sync -m wandb sync runs/{name}/wandb/offline-run-1" for name in ("a", "lr/trial-000")
    ]


SCRIPTS = [
    p
    for f in ("launch", "slurm", "docker")
    for s in ("*.sh", "*.sbatch")
    for p in sorted((REPOSITORY / f).rglob(s))
]


@pytest.mark.parametrize(
    "script", [*SCRIPTS, REPOSITORY / "setup.sh", REPOSITORY / ".ci" / "run"], ids=lambda p: p.name
)
def test_script_parses_and_is_executable(script):
    subprocess.run(["bash", "-n", script], check=True)
    text = script.read_text()
    assert text.startswith(("#!", "# shellcheck shell=bash"))
    assert os.access(script, os.X_OK) or not text.startswith("#!")
