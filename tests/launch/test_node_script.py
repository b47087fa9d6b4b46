"""launch/node.sh, local.sh, multi_node.sh: what torchrun is given, and where signals arrive."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

LAUNCH = Path(__file__).resolve().parents[2] / "launch"

# Stands for the interpreter: records how torchrun is called and plays it; anything else goes to the real one.
INTERPRETER = f"""#!{sys.executable}
import json, os, signal, subprocess, sys
if sys.argv[1:3] == ["-m", "sft_dist"]:
    os.makedirs(os.environ["RUN_DIR"], exist_ok=True)
    open(os.path.join(os.environ["RUN_DIR"], "config.json"), "w").write(json.dumps(sys.argv[3:]))
    sys.exit(2 if "mistake=1" in sys.argv else 0)
if sys.argv[1:3] != ["-m", "sft_dist.cluster.agent"]:
    os.execv({sys.executable!r}, [{sys.executable!r}, *sys.argv[1:]])
record = os.environ["RECORD"]
ranks = [subprocess.Popen([{sys.executable!r}, os.environ["RANK_SCRIPT"], str(i)]) for i in range(int(os.environ.get("RANKS", 0)))]
def forward(*_):
    open(record + ".term", "w").close()
    for rank in ranks: rank.kill()
signal.signal(signal.SIGQUIT, forward)
json.dump({{"arguments": sys.argv[3:], "environment": dict(os.environ)}}, open(record + ".aside", "w"))
os.rename(record + ".aside", record)
for rank in ranks: rank.wait()
sys.exit(int(os.environ.get("EXIT_CODE", 0)))
"""
RANK = """
import os, signal, sys, time
def stop(number, _):
    open(f"{os.environ['RECORD']}.rank{sys.argv[1]}.{signal.Signals(number).name}", "w").close()
    if number == signal.SIGUSR1: sys.exit()
open(f"{os.environ['RECORD']}.rank{sys.argv[1]}.early", "w").close()
while os.path.exists(os.environ["RECORD"] + ".hold"): time.sleep(0.01)
signal.signal(signal.SIGUSR1, stop)
signal.signal(signal.SIGUSR2, stop)
open(f"{os.environ['RECORD']}.rank{sys.argv[1]}.ready", "w").close()
time.sleep(30)
"""
TOOLS = ("bash", "env", "mkdir", "rm", "date", "tr", "grep", "nproc", "cat", "dirname", "sed", "getconf")


class Launch:
    """A sandbox: a PATH of basic tools without ip, pgrep or nvidia-smi, and the interpreter above."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.run = folder, folder / "run"
        self.bin = folder / "bin"
        self.bin.mkdir()
        for tool in TOOLS:
            (self.bin / tool).symlink_to(shutil.which(tool))
        self.add("python", INTERPRETER)
        (folder / "rank.py").write_text(RANK)
        self.environment = {
            "PATH": str(self.bin),
            "PYTHON": str(self.bin / "python"),
            "RUN_DIR": str(self.run),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": "29400",
            "RECORD": str(folder / "record"),
            "RANK_SCRIPT": str(folder / "rank.py"),
        }

    def add(self, name: str, text: str) -> None:
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def start(self, *arguments: str, script: str = "node.sh", **environment: str) -> subprocess.Popen:
        command = [str(self.bin / "bash"), str(LAUNCH / script), *arguments]
        return subprocess.Popen(
            command,
            env=self.environment | environment,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def call(self, *arguments: str, script: str = "node.sh", **environment: str) -> dict:
        """Run a script to its end; return torchrun's arguments and environment."""
        process = self.start(*arguments, script=script, **environment)
        output, _ = process.communicate(timeout=30)
        assert process.returncode == 0, output
        return json.loads((self.folder / "record").read_text())

    def exists(self, *names: str) -> None:
        """Wait until the record's marker files are there."""
        end = time.monotonic() + 20
        while missing := [n for n in names if not Path(f"{self.environment['RECORD']}{n}").exists()]:
            assert time.monotonic() < end, missing
            time.sleep(0.02)


@pytest.fixture
def launch(tmp_path) -> Launch:
    return Launch(tmp_path)


def option(record: dict, name: str) -> str:
    arguments = record["arguments"]
    return arguments[arguments.index(name) + 1]


def test_torchrun_arguments_of_one_node(launch):
    logs = str(launch.run / "logs" / "attempt-0.1" / "node-0")
    assert launch.call("-m", "sft_dist.pipelines.train.worker", "--run-dir", "x y", NPROC="2")[
        "arguments"
    ] == [
        *("--nnodes", "1", "--node-rank", "0", "--nproc-per-node", "2"),
        *("--rdzv-backend", "static", "--master-addr", "127.0.0.1", "--master-port", "29400"),
        *("--rdzv-conf", "timeout=600", "--max-restarts", "0"),
        *("--signals-to-handle", "SIGURG"),
        *("--log-dir", logs, "--redirects", "3", "--tee", "3", "--local-ranks-filter", "0"),
        *("-m", "sft_dist.pipelines.train.worker", "--run-dir", "x y"),
    ]


def test_environment_on_cpu(launch):
    environment = launch.call("x.py", NPROC="2", SLURM_CPUS_PER_TASK="8")["environment"]
    assert environment["DS_ACCELERATOR"] == "cpu"
    assert environment["GLOO_SOCKET_IFNAME"] == "lo"
    assert environment["OMP_NUM_THREADS"] == "4"
    assert environment["TORCHELASTIC_ERROR_FILE"] == str(launch.run / "logs/attempt-0.1/node-0/error.json")
    assert "TRITON_CACHE_DIR" not in environment  # on one's own machine the usual caches outlast the run


def test_what_is_set_wins(launch):
    mine = {
        "DS_ACCELERATOR": "xpu",
        "GLOO_SOCKET_IFNAME": "ib0",
        "OMP_NUM_THREADS": "3",
        "PYTHONWARNINGS": "",
    }
    environment = launch.call("x.py", NPROC="2", **mine)["environment"]
    assert {name: environment[name] for name in mine} == mine


def test_more_ranks_than_cores_still_get_a_thread(launch):
    assert launch.call("x.py", NPROC="16", SLURM_CPUS_PER_TASK="8")["environment"]["OMP_NUM_THREADS"] == "1"


@pytest.mark.parametrize(
    "visible, ranks, accelerator",
    [(None, "4", None), ("2,3", "2", None), ("", "1", "cpu")],
    ids=["all GPUs", "two of them", "none of them"],
)
def test_ranks_default_to_the_visible_gpus(launch, visible, ranks, accelerator):
    launch.add(
        "nvidia-smi",
        "#!/bin/bash\nfor i in 0 1 2 3; do echo \"GPU $i: NVIDIA H100\"; echo '  MIG 1g.10gb'; done\n",
    )
    record = launch.call("x.py", **({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}))
    assert option(record, "--nproc-per-node") == ranks
    assert record["environment"].get("DS_ACCELERATOR") == accelerator


def test_each_start_has_its_own_log_folder(launch):
    for _ in range(2):
        launch.call("x.py")
    assert sorted(p.name for p in (launch.run / "logs").iterdir()) == ["attempt-0.1", "attempt-0.2"]
    assert option(launch.call("x.py", ATTEMPT="3.2"), "--log-dir").endswith("attempt-3.2/node-0")


def slurm_step(node: int, address: str) -> dict[str, str]:
    return {
        "SLURM_JOB_ID": "7",
        "SLURM_NODEID": str(node),
        "SLURM_STEP_NUM_NODES": "2",
        "MASTER_ADDR": address,
    }


def test_node_of_a_slurm_step(launch, tmp_path):
    scratch = tmp_path / "nvme"
    scratch.mkdir()
    record = launch.call("x.py", LOCAL_SCRATCH=str(scratch), **slurm_step(1, "192.0.2.1"))
    assert (option(record, "--nnodes"), option(record, "--node-rank")) == ("2", "1")
    for name in ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "TORCH_EXTENSIONS_DIR"):
        assert record["environment"][name].startswith(f"{scratch}/sft_dist-7-1/")
    assert not list(scratch.iterdir())  # the launcher leaves no litter on the node


def test_loopback_means_one_node_even_inside_an_allocation(launch):
    record = launch.call("x.py", **slurm_step(1, "127.0.0.1"))
    assert (option(record, "--nnodes"), option(record, "--node-rank")) == ("1", "0")


def test_stop_file_of_the_run_before_is_removed_locally_but_not_under_slurm(launch, tmp_path):
    stop = launch.run / "control" / "stop"
    stop.parent.mkdir(parents=True)
    stop.touch()
    launch.call("x.py", LOCAL_SCRATCH=str(tmp_path), **slurm_step(0, "192.0.2.1"))
    assert stop.exists()  # the batch script may have written it a moment ago
    launch.call("x.py")
    assert not stop.exists()


def test_exit_code_is_torchruns(launch):
    process = launch.start("x.py", EXIT_CODE="3")
    process.communicate(timeout=30)
    assert process.returncode == 3


@pytest.mark.parametrize("with_pgrep", [True, False], ids=["pgrep", "proc"])
def test_usr1_reaches_every_rank_and_not_torchrun(launch, with_pgrep):
    if with_pgrep:
        (launch.bin / "pgrep").symlink_to(shutil.which("pgrep") or pytest.skip("no pgrep here"))
    process = launch.start("x.py", RANKS="2")
    launch.exists("", ".rank0.ready", ".rank1.ready")
    process.send_signal(signal.SIGUSR1)
    launch.exists(".rank0.SIGUSR1", ".rank1.SIGUSR1")
    assert process.wait(20) == 0
    assert not Path(f"{launch.environment['RECORD']}.term").exists()


def test_signals_before_the_ranks_have_handlers_are_harmless(launch):
    hold = Path(launch.environment["RECORD"] + ".hold")
    hold.touch()
    process = launch.start("x.py", RANKS="2")
    launch.exists("", ".rank0.early", ".rank1.early")
    process.send_signal(signal.SIGUSR1)
    process.send_signal(signal.SIGUSR2)
    time.sleep(0.3)
    hold.unlink()
    launch.exists(".rank0.ready", ".rank1.ready")
    process.send_signal(signal.SIGUSR1)
    assert process.wait(20) == 0


def test_usr2_reaches_the_ranks_and_the_run_goes_on(launch):
    process = launch.start("x.py", RANKS="2")
    launch.exists("", ".rank0.ready", ".rank1.ready")
    process.send_signal(signal.SIGUSR2)
    launch.exists(".rank0.SIGUSR2", ".rank1.SIGUSR2")
    assert process.poll() is None
    process.send_signal(signal.SIGUSR1)
    assert process.wait(20) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_term_and_hup_ask_for_a_checkpoint_as_ctrl_c_does(launch, number):
    process = launch.start("x.py", RANKS="1", EXIT_CODE="1")
    launch.exists("", ".rank0.ready")
    process.send_signal(number)
    launch.exists(".rank0.SIGUSR1")
    assert process.wait(20) == 1
    assert (launch.run / "control" / "stop").exists()
    assert not Path(f"{launch.environment['RECORD']}.term").exists()


def test_term_by_slurm_asks_for_a_checkpoint(launch):
    """Slurm kills what outlives its grace time; torchrun would after 30 seconds."""
    process = launch.start("x.py", RANKS="1", SLURM_JOB_ID="7", MASTER_ADDR="192.0.2.1", NNODES="1")
    launch.exists("", ".rank0.ready")
    process.send_signal(signal.SIGTERM)
    launch.exists(".rank0.SIGUSR1")
    assert process.wait(20) == 0
    assert not Path(f"{launch.environment['RECORD']}.term").exists()


def test_first_interrupt_asks_for_a_checkpoint_and_the_second_ends(launch):
    process = launch.start("x.py", RANKS="1")
    launch.exists("", ".rank0.ready")
    process.send_signal(signal.SIGINT)
    launch.exists(".rank0.SIGUSR1")
    assert process.wait(20) == 0
    assert (launch.run / "control" / "stop").exists()

    hold = Path(launch.environment["RECORD"] + ".hold")
    hold.touch()  # a rank that does not listen
    (launch.folder / "record").unlink()
    process = launch.start("x.py", RANKS="1")
    launch.exists("")
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
    launch.exists(".term")
    assert process.wait(20) == 0


@pytest.mark.parametrize("name", ["RUN_DIR", "MASTER_ADDR", "MASTER_PORT"])
def test_missing_variable_is_named(launch, name):
    process = launch.start("x.py", **{name: ""})
    output, _ = process.communicate(timeout=30)
    assert process.returncode != 0
    assert name in output


def test_local_freezes_the_config_and_finds_a_port(launch):
    launch.environment.pop("MASTER_PORT")
    record = launch.call("train.epochs=2", script="local.sh", NPROC="2")
    assert json.loads((launch.run / "config.json").read_text()) == [
        "write-run",
        "--run-dir",
        str(launch.run),
        "train.epochs=2",
    ]
    assert 1024 < int(option(record, "--master-port")) < 65536
    assert record["arguments"][-4:] == ["-m", "sft_dist.pipelines.train.worker", "--run-dir", str(launch.run)]

    launch.call(script="local.sh")  # without overrides an existing run is continued as it is
    assert "train.epochs=2" in (launch.run / "config.json").read_text()


def test_local_ends_on_a_refused_config(launch):
    process = launch.start("mistake=1", script="local.sh")
    process.communicate(timeout=30)
    assert process.returncode == 2
    assert not (launch.folder / "record").exists()


def test_multi_node(launch, tmp_path):
    common = {"script": "multi_node.sh", "LOCAL_SCRATCH": str(tmp_path)}
    record = launch.call("1", "2", "192.0.2.1", "a=1", **common)
    assert not (launch.run / "config.json").exists()  # node 0 writes it
    assert (option(record, "--nnodes"), option(record, "--node-rank"), option(record, "--master-addr")) == (
        "2",
        "1",
        "192.0.2.1",
    )
    launch.call("0", "2", "192.0.2.1", "a=1", **common)
    assert json.loads((launch.run / "config.json").read_text())[-1] == "a=1"


@pytest.mark.parametrize(
    "arguments, environment, message",
    [
        (("0", "2"), {}, "too few arguments"),
        (("2", "2", "192.0.2.1"), {}, "must be one of 0 to NNODES-1"),
        (("zero", "2", "192.0.2.1"), {}, "must be one of 0 to NNODES-1"),
        (("0", "2", "192.0.2.1"), {"RUN_DIR": ""}, "RUN_DIR is not set"),
    ],
)
def test_multi_node_mistakes(launch, arguments, environment, message):
    process = launch.start(*arguments, script="multi_node.sh", **environment)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 2
    assert message in output
    assert len(output.splitlines()) == 1


@pytest.mark.parametrize(
    "address, name", [("127.0.0.1", "lo"), ("127.3.2.1", "lo"), ("no-such-host.invalid", "")]
)
def test_interface(address, name):
    found = subprocess.run(
        [sys.executable, LAUNCH / "interface.py", address], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == name


def test_real_torchrun(tmp_path):
    """Two ranks meet, USR1 stops them, the logs are where the layout says."""
    (tmp_path / "rank.py").write_text(
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGUSR1, lambda *_: sys.exit(print('stopped', flush=True)))\n"
        "print('rank', os.environ['RANK'], 'of', os.environ['WORLD_SIZE'], flush=True)\n"
        f"open(os.path.join({str(tmp_path)!r}, 'ready' + os.environ['RANK']), 'w').close()\n"
        "time.sleep(60)\n"
    )
    port = subprocess.run(
        [
            sys.executable,
            "-c",
            "import socket; s = socket.socket(); s.bind(('127.0.0.1', 0)); print(s.getsockname()[1])",
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    environment = {
        **os.environ,
        "PYTHON": sys.executable,
        "RUN_DIR": str(tmp_path / "run"),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "NPROC": "2",
    }
    process = subprocess.Popen(
        ["bash", LAUNCH / "node.sh", tmp_path / "rank.py"], env=environment, stdout=subprocess.PIPE, text=True
    )
    end = time.monotonic() + 60
    while len(list(tmp_path.glob("ready*"))) < 2:
        assert time.monotonic() < end
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGUSR1)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert output.splitlines() == ["[default0]:rank 0 of 2", "[default0]:stopped"]
    logs = sorted((tmp_path / "run/logs/attempt-0.1/node-0").glob("*/attempt_0/*/stdout.log"))
    assert [p.read_text() for p in logs] == ["rank 0 of 2\nstopped\n", "rank 1 of 2\nstopped\n"]


def test_a_scratch_folder_that_is_not_ours_is_not_used(launch, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    disk = tmp_path / "disk"
    disk.mkdir()
    (disk / "sft_dist-7-0").symlink_to(elsewhere)
    process = launch.start("x.py", SLURM_JOB_ID="7", LOCAL_SCRATCH=str(disk), NODE_RANK="0", NNODES="1")
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "belongs to another user or is a link" in output
    assert list(elsewhere.iterdir()) == []


def test_a_scratch_folder_is_made_for_the_user_alone(launch, tmp_path):
    called = launch.call(
        "x.py", SLURM_JOB_ID="7", LOCAL_SCRATCH=str(tmp_path / "disk"), NODE_RANK="0", NNODES="1"
    )
    assert called["environment"]["TRITON_CACHE_DIR"].startswith(str(tmp_path / "disk" / "sft_dist-7-0"))
