"""Site profile and config -> job files; what is refused, in one sentence. No Slurm."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml

from sft_dist.cli import main
from sft_dist.cluster.slurm.job_chain import CONFIG, chain, files, send, shown
from sft_dist.cluster.slurm.sbatch import SECRETS_FILE, Job, environment, options, render, sbatch
from sft_dist.cluster.slurm.site import load_site
from sft_dist.config.cluster import SiteProfile
from sft_dist.config.load import load_config
from sft_dist.core.errors import UserError
from sft_dist.core.process import resource
from sft_dist.pipelines.cluster.submit import at_site

RUN = Path("/shared/runs/x")
TRAIN = Job(kind="train", name="x", folder=RUN / "slurm", exports={"RUN_DIR": str(RUN)}, nodes=4)
PREPARE = Job(kind="prepare", name="x-slices", folder=RUN / "slurm", array="0-7")
EVALUATE = Job(kind="evaluate", name="x-evaluate", folder=RUN / "slurm")


def test_header_of_a_training_job():
    site = SiteProfile(
        account="p1", partition="gpu", qos="long", constraint="a100", reservation="r", gpus_per_node=8, cpus_per_task=64,
        mem="0", exclusive=True, time="1-00:00:00", signal_s=120, sbatch=("--mail-type=END",),
    )  # fmt: skip
    assert options(site, TRAIN) == [
        "--job-name=x",
        "--account=p1",
        "--partition=gpu",
        "--qos=long",
        "--constraint=a100",
        "--reservation=r",
        "--nodes=4",
        "--ntasks-per-node=1",
        "--cpus-per-task=64",
        "--mem=0",
        "--time=1-00:00:00",
        "--signal=B:USR1@120",
        "--output=/shared/runs/x/slurm/%x-%j.out",
        "--requeue",
        "--open-mode=append",
        "--exclusive",
        "--gpus-per-node=8",
        "--mail-type=END",
    ]


def test_preparation_takes_the_cpu_queue_and_no_gpus():
    site = SiteProfile.model_validate(
        {"account": "p1", "partition": "gpu", "constraint": "a100", "gpus_per_node": 8, "exclusive": True}
        | {
            "prepare": {
                "partition": "cpu",
                "cpus_per_task": 16,
                "mem": "32G",
                "time": "30",
                "sbatch": ["--nice=1"],
            }
        }
    )
    assert options(site, PREPARE) == [
        "--job-name=x-slices",
        "--account=p1",
        "--partition=cpu",
        "--nodes=1",
        "--ntasks-per-node=1",
        "--cpus-per-task=16",
        "--mem=32G",
        "--time=30",
        "--array=0-7",
        "--output=/shared/runs/x/slurm/%x-%A_%a.out",
        "--requeue",
        "--open-mode=append",
        "--nice=1",
    ]


@pytest.mark.parametrize(
    ("form", "kind", "expected"),
    [
        ("gpus-per-node", None, ["--gpus-per-node=4"]),
        ("gpus-per-node", "h100", ["--gpus-per-node=h100:4"]),
        ("gres", "h100", ["--gres=gpu:h100:4"]),
        ("none", None, []),
    ],
)
def test_forms_of_asking_for_gpus(form, kind, expected):
    site = SiteProfile(gpus_per_node=4, gpu_type=kind, gpu_request=form)
    assert [o for o in options(site, TRAIN) if "gpu" in o] == expected
    assert [o for o in options(site, EVALUATE) if "gpu" in o] == expected


def test_evaluation_may_ask_for_fewer_gpus():
    site = SiteProfile.model_validate({"gpus_per_node": 4, "evaluate": {"gpus": 1}})
    assert "--gpus-per-node=1" in options(site, EVALUATE)


def test_environment_modules_setup_and_scratch():
    site = SiteProfile(
        modules=("cuda/13", "gcc"), setup=(". /env/bin/activate",), python="/env/bin/python", env={"A": "b c"},
        scratch="/local/$USER", srun=("--mpi=none",),
    )  # fmt: skip
    assert environment(site, TRAIN, Path("/repo")) == [
        "module load cuda/13",
        "module load gcc",
        ". /env/bin/activate",
        'export LOCAL_SCRATCH="/local/$USER"',
        "export SFT_ROOT=/repo",
        "export SFT_SITE_ENV=none",
        "export PYTHON=/env/bin/python",
        "export SRUN_OPTIONS=--mpi=none",
        "export A='b c'",
        "export RUN_DIR=/shared/runs/x",
    ]


def test_containers():
    image = {
        "runtime": "apptainer",
        "image": "/i.sif",
        "mounts": ["/data", "/a:/b"],
        "options": ["--cleanenv"],
    }
    lines = environment(SiteProfile.model_validate({"container": image}), TRAIN, Path("/repo"))
    assert "export CONTAINER=/i.sif" in lines
    assert (
        "export CONTAINER_OPTIONS='--nv --bind /data:/data,/a:/b,/repo:/repo,/shared/runs/x:/shared/runs/x --cleanenv'"
        in lines
    )
    assert not [line for line in lines if "PYTHON=" in line]  # the host's interpreter does not exist inside
    pyxis = SiteProfile.model_validate({"container": {"runtime": "pyxis", "image": "i.sqsh"}})
    assert (
        "export SRUN_OPTIONS='--container-image=i.sqsh --container-mounts=/repo:/repo,/shared/runs/x:/shared/runs/x'"
        in environment(pyxis, TRAIN, Path("/repo"))
    )


def test_the_trials_of_a_sweep_are_seen_in_the_container():
    site = SiteProfile.model_validate({"container": {"runtime": "apptainer", "image": "/i.sif"}})
    job = Job(kind="sweep", name="lr", folder=Path("/shared/runs/lr/slurm"), array="0-2")
    [options] = [x for x in environment(site, job, Path("/repo")) if "CONTAINER_OPTIONS" in x]
    assert ",/shared/runs/lr:/shared/runs/lr'" in options


def test_an_environment_of_each_node(tmp_path):
    site = SiteProfile(stage_env=str(tmp_path / "env.tar"))
    assert f"export STAGE_ENV={tmp_path}/env.tar" in environment(site, TRAIN, Path("/repo"))
    with pytest.raises(UserError, match="stage_env=.* is no file"):
        at_site(load_config(["experiment=demo"]), site)
    (tmp_path / "env.tar").touch()
    at_site(load_config(["experiment=demo"]), site)
    with pytest.raises(ValueError, match="two environments"):
        SiteProfile.model_validate(
            {"stage_env": "/e.tar", "container": {"runtime": "apptainer", "image": "/i.sif"}}
        )


def test_a_folder_that_no_list_of_mounts_can_carry():
    site = SiteProfile.model_validate({"container": {"runtime": "apptainer", "image": "/i.sif"}})
    job = Job(kind="train", name="x", folder=RUN, exports={"RUN_DIR": "/my runs/x"})
    with pytest.raises(UserError, match="/my runs/x would be mounted"):
        environment(site, job, Path("/repo"))


@pytest.mark.parametrize(
    ("folder", "written"),
    [
        ("/a b", '"/a b/%x-%j.out"'),
        ("/50%", "/50%%/%x-%j.out"),
        ("/it's #1", '"/it\'s #1/%x-%j.out"'),
        ('/"a"', '"/\\"a\\"/%x-%j.out"'),
    ],
)
def test_output_is_written_as_sbatch_reads_it(folder, written):
    job = Job(kind="train", name="x", folder=Path(folder))
    assert f"--output={written}" in options(SiteProfile(), job)


def test_the_file_runs_our_script_with_its_arguments():
    job = Job(kind="train", name="x", folder=Path("/my runs/50%"), arguments=("a b.yaml", "x=1"))
    lines = render(SiteProfile(), job).splitlines()
    assert lines[0] == "#!/bin/bash"
    assert '#SBATCH --output="/my runs/50%%/%x-%j.out"' in lines
    assert lines[-1] == f"exec bash {resource('slurm') / 'train.sbatch'} 'a b.yaml' x=1"


def test_chain_and_its_switches():
    settings = {
        "nodes": 2,
        "prepare_tasks": 0,
        "evaluate": False,
        "doctor": False,
        "time": None,
        "sbatch": (),
    }
    assert list(chain(RUN, **settings)) == ["train"]
    jobs = chain(
        RUN,
        **settings
        | {"prepare_tasks": 3, "evaluate": True, "doctor": True, "time": "10", "sbatch": ("--nice=5",)},
    )
    assert list(jobs) == ["facts", "selection", "slices", "stores", "train", "evaluate"]
    assert [jobs[n].array for n in ("facts", "selection", "slices", "stores")] == ["0-2", None, "0-2", None]
    assert jobs["facts"].arguments[1:] == ("--until", "facts")
    assert jobs["selection"].arguments[1:] == ("--until", "selection")
    assert jobs["train"].exports == {"RUN_DIR": "/shared/runs/x", "DOCTOR": "1"}
    assert {"--time=10", "--nice=5", "--nodes=2"} <= set(options(SiteProfile(), jobs["train"]))


def test_the_submitted_config_reads_back_as_it_was(tmp_path):
    config = load_config(
        [
            "experiment=demo",
            "cluster=x",
            "optim.lr=1e-05",
            "render.system='say \\${this}'",
            "submit.sbatch=['--nice=1']",
        ]
    )
    assert config.render.system == "say ${this}"
    text = files(SiteProfile(), {}, config.model_dump(mode="json"))[CONFIG]
    (tmp_path / "config.yaml").write_text(text)
    assert load_config([], tmp_path / "config.yaml") == config


def test_what_the_site_decides(tmp_path):
    site = SiteProfile(run_root=str(tmp_path), wandb_offline=True, gpus_per_node=8)
    config = at_site(load_config(["experiment=demo", "launch.nproc=auto"]), site)
    assert (config.run_root, config.wandb.mode, config.launch.nproc) == (str(tmp_path), "offline", 8)
    own = at_site(load_config(["experiment=demo", "run_root=/r", "wandb.mode=online"]), site)
    assert (own.run_root, own.wandb.mode, own.launch.nproc) == ("/r", "online", 2)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("acount: p1", "acount: unknown key. Did you mean 'account'?"),
        ("prepare: {tim: 1}", "prepare.tim: unknown key. Did you mean 'time'?"),
        ("time: 24", "time: this is a text; put quotes around it"),
        ("modules: cuda", "modules: this is a list; put brackets around it"),
        ("prepare: cpu", "prepare: this is a section; give its keys"),
        ("container: apptainer", "container: this is a section"),
        (
            "{stage_env: a, container: {runtime: apptainer, image: i}}",
            "used: stage_env and container are two",
        ),
        ("time: tomorrow", "'tomorrow' is no time limit of Slurm"),
        ("partition: a b", "write one word as sbatch takes it"),
        ("sbatch: [nice]", "'nice' is no option"),
        ("env: {a-b: c}", "'a-b' cannot be an environment variable"),
        ("container: {runtime: apptainer, image: 'a b'}", "has white space"),
        ("[1]", "holds a list, not a mapping"),
        ("a: [", "is not readable as YAML"),
    ],
)
def test_a_bad_profile_is_named(tmp_path, monkeypatch, text, said):
    monkeypatch.setenv("SFT_DIST_CLUSTERS", str(tmp_path))
    (tmp_path / "juno.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        load_site("juno")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_profiles_by_name_and_by_path(tmp_path, monkeypatch):
    monkeypatch.delenv("SFT_DIST_CLUSTERS", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    folder = tmp_path / "sft_dist" / "clusters"
    folder.mkdir(parents=True)
    (folder / "juno.yaml").write_text(yaml.safe_dump({"account": "p1"}))
    assert load_site("juno").account == load_site(str(folder / "juno.yaml")).account == "p1"
    with pytest.raises(UserError, match=r"has no site profile .*that folder has juno. Did you mean 'juno'\?"):
        load_site("jun")


def test_without_sbatch(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="there is no sbatch on this machine"):
        sbatch(tmp_path / "train.sbatch")


def test_commands_say_what_is_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SFT_DIST_CLUSTERS", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "juno.yaml").write_text("account: p1\n")
    assert main(["submit", "experiment=demo"]) == 2
    assert "add cluster=NAME" in capsys.readouterr().err
    assert main(["watch", "nowhere"]) == 2
    assert "no run to follow" in capsys.readouterr().err
    assert main(["submit", "experiment=demo", "cluster=juno"]) == 2
    assert "add submit.prepare_tasks=8" in capsys.readouterr().err


def test_dry_run_shows_everything_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SFT_DIST_CLUSTERS", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "juno.yaml").write_text("{account: p1, gpus_per_node: 1, gpu_type: v100}")
    small = ["data.sources.demo.examples_per_task=5", "submit.prepare_tasks=2"]
    assert main(["submit", "experiment=demo", "cluster=juno", *small, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "#SBATCH --account=p1" in said
    assert "examples_per_task: 5" in said
    assert "no estimate: the device 'v100' is unknown" in said  # which is no reason not to submit
    assert sorted(p.name for p in tmp_path.iterdir()) == ["juno.yaml"]


def test_what_is_told_can_be_pasted(tmp_path, monkeypatch, capsys):
    """Also from a folder with a blank; and a run that is in the queue is not submitted again."""
    monkeypatch.setenv("SFT_DIST_CLUSTERS", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name, text in (
        ("sbatch", "echo 71"),
        ("squeue", 'echo "$*" > asked; echo 71; echo 71'),
    ):
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    (tmp_path / "juno.yaml").write_text(f"run_root: {tmp_path}/my runs\n")
    words = [
        "experiment=demo",
        "cluster=juno",
        "data.sources.demo.examples_per_task=5",
        "submit.prepare_tasks=2",
    ]
    assert main(["submit", *words]) == 0
    run = f"{tmp_path}/my runs/demo"
    told = capsys.readouterr().out.splitlines()[-12:]
    assert told == [
        "facts             job 71",
        "selection         job 71",
        "slices            job 71",
        "stores            job 71",
        "train             job 71",
        "queue             squeue -j 71,71,71,71,71",
        f"run folder        {run}",
        f"output            {run}/slurm/*.out",
        f"follow            sft-dist watch '{run}'",
        "save and requeue  scancel --signal=USR1 --batch 71",
        f"save and end      touch '{run}'/control/stop",
        "end at once       scancel 71 71 71 71 71",
    ]
    assert main(["submit", *words]) == 2
    assert "cancel it with: scancel 71, or" in capsys.readouterr().err
    assert (tmp_path / "asked").read_text() == "-h -j 71,71,71,71,71 -o %F\n"


def test_a_line_end_in_an_option_is_refused():
    job = Job(kind="train", name="x", folder=Path("/runs\n#SBATCH --uid=0"))
    with pytest.raises(UserError, match="would run as shell"):
        render(SiteProfile(), job)


def test_secrets_stand_in_a_private_file_alone_and_a_dry_run_hides_them(tmp_path, monkeypatch):
    site = SiteProfile(env={"WANDB_API_KEY": "s3cr3t 'x'", "HF_TOKEN": "t0k3n", "NCCL_DEBUG": "WARN"})
    jobs = {"train": Job(kind="train", name="x", folder=tmp_path / "slurm")}
    texts = files(site, jobs, {"name": "x"})
    told = shown(tmp_path, texts)
    for secret in ("s3cr3t", "t0k3n"):
        assert secret not in texts["train.sbatch"]
        assert secret not in told
    assert "WANDB_API_KEY=(hidden)" in told
    assert "NCCL_DEBUG=WARN" in texts["train.sbatch"]
    monkeypatch.setattr("sft_dist.cluster.slurm.job_chain.sbatch", lambda *_: "1")
    send(tmp_path, texts, jobs)
    file = tmp_path / "slurm" / SECRETS_FILE
    assert file.stat().st_mode & 0o777 == 0o600
    read = subprocess.run(
        ["bash", "-c", f"set -a; . {file}; set +a; env"], capture_output=True, text=True, check=True
    ).stdout
    assert "WANDB_API_KEY=s3cr3t 'x'\n" in read
