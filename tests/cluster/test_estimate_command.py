"""`sft-dist estimate` from config to figures: ranks and device of the site, an earlier run's speed, what would fit."""

from __future__ import annotations

import json

import pytest

from sft_dist.cli import main
from sft_dist.config.load import config_to_json, load_config
from sft_dist.core.errors import UserError
from sft_dist.pipelines.cluster.estimate import estimate, host_memory
from sft_dist.pipelines.cluster.estimate_inputs import model_config
from sft_dist.pipelines.train.planning import Summary

SUMMARY = Summary(
    examples=100, tokens=4000, target_tokens=1000, fill=0.5, steps=10, drops={}, squares_per_token=40.0
)
DEMO = ["experiment=demo", "render.train_vocab_size=2048"]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SFT_DIST_CLUSTERS", str(tmp_path))


def test_ranks_and_device_come_from_the_site(tmp_path):
    (tmp_path / "juno.yaml").write_text("{gpus_per_node: 4, gpu_type: a100, device: H200}")
    config = load_config([*DEMO, "cluster=juno", "launch.nproc=auto", "launch.nodes=3"])
    said = estimate(config, SUMMARY)
    assert (said["ranks"], said["device"], said["device_bytes"] >> 30) == (12, "H200", 139)
    (tmp_path / "juno.yaml").write_text("{gpus_per_node: 4, gpu_type: a100}")
    assert estimate(config, SUMMARY)["device_bytes"] >> 30 == 79
    assert estimate(config, SUMMARY, ranks=2, device="H100", memory_gib=60)["device_bytes"] >> 30 == 60
    (tmp_path / "juno.yaml").write_text("{gpus_per_node: 4}")  # not a table of figures for the CPU
    with pytest.raises(UserError, match="asks for 4 GPUs a node and does not say which"):
        estimate(config, SUMMARY)
    assert estimate(config, SUMMARY, device="H100")["device"] == "H100"
    (tmp_path / "juno.yaml").write_text("{mem: 12G}")
    nodes = load_config([*DEMO, "cluster=juno", "launch.nproc=2", "launch.nodes=3"])
    assert estimate(nodes, SUMMARY)["device_bytes"] == 6 << 30  # of a node there, not of this machine


def test_the_settings_of_the_config_reach_the_parts():
    def states(*overrides: str) -> dict:
        return estimate(load_config([*DEMO, *overrides]), SUMMARY, ranks=2, device="H100")["memory"]

    plain = states("model.gradient_checkpointing=false")
    assert states("deepspeed.stage=2")["states"]["weights"] == 2 * plain["states"]["weights"]
    assert states("deepspeed.reduce_bucket_size=1000000")["states"]["reduce bucket"] == 4_000_000
    assert states("deepspeed.offload_optimizer=cpu")["host"] == 8 * 1_115_264
    assert states("deepspeed.hpz_partition_size=2")["states"]["weights"] == 2 * plain["states"]["weights"]

    def layers(*overrides: str) -> int:
        return states("model.gradient_checkpointing=false", *overrides)["phases"]["loss"]["activations"]

    assert layers("train.micro_rows=8") == 2 * layers()
    assert layers("train.sequence_parallel=2") == layers() // 2
    assert layers("model.mlp_tiles=2") < layers()
    assert layers("model.gradient_checkpointing=true", "model.offload_activations=true") < layers(
        "model.gradient_checkpointing=true"
    )


def test_adapters_train_little(tmp_path):
    E, inner, layers = 128, 384, 4
    base = {"model_type": "llama", "hidden_size": E, "intermediate_size": inner, "num_hidden_layers": layers}
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text(
        json.dumps(base | {"num_attention_heads": 4, "vocab_size": 2048})
    )
    whole = [*DEMO, "model.shape=null", "model.path=base"]
    config = load_config([*whole, "+lora.rank=4"])
    said = estimate(config, SUMMARY, ranks=2, device="H100")
    # four of six FLOPs where a weight is frozen; attention has none to freeze
    full = estimate(load_config(whole), SUMMARY, ranks=2, device="H100")
    products = [s["time"]["micro_step_ms"]["products"] for s in (said, full)]
    assert 0.6 < products[0] / products[1] < 0.7
    assert said["trained_parameters"] == layers * 4 * (4 * 2 * E + 3 * (E + inner))
    assert said["checkpoint_bytes"] == 12 * said["trained_parameters"]


def test_parts_that_are_frozen_need_no_state():
    def said(*overrides: str) -> dict:
        return estimate(load_config([*DEMO, *overrides]), SUMMARY, ranks=2, device="H100")

    whole, part = said(), said("model.trainable=['layers[2:]']")
    assert part["trained_parameters"] < whole["trained_parameters"]
    assert part["checkpoint_bytes"] == 12 * part["trained_parameters"]
    assert part["time"]["micro_step_ms"]["products"] < whole["time"]["micro_step_ms"]["products"]
    assert said("model.freeze=[nothing.*]")["not_found"] == ["nothing.*"]


def test_host_memory_and_disk(tmp_path):
    P = 1_115_264

    def said(*overrides: str, **given) -> dict:
        return estimate(load_config([*DEMO, *overrides]), SUMMARY, ranks=2, **{"device": "H100"} | given)

    assert said()["host_bytes"] == 12 * P  # the copy that a checkpoint is written from
    assert (
        said("optim.ema_decay=0.9")["host_bytes"] == (16 + 8) * P
    )  # the average, its copy, and one of the weights
    assert said("deepspeed.offload_optimizer=cpu")["host_bytes"] == 12 * P + 16 * P
    assert said("launch.nodes=2")["host_bytes"] == 6 * P
    here = said(device="cpu")
    assert (here["host_limit_bytes"], here["host_bytes"] > 2 * here["memory"]["peak"]) == (
        host_memory(),
        True,
    )
    for mem, limit in (("1M", 1 << 20), ("480G", 480 << 30), ("'0'", None)):
        (tmp_path / "juno.yaml").write_text(f"{{gpus_per_node: 2, gpu_type: a100, mem: {mem}}}")
        assert said("cluster=juno")["host_limit_bytes"] == limit
    export = 4 * P if load_config(DEMO).model.dtype == "float32" else 2 * P
    assert said("checkpoint.keep_last=2")["disk_bytes"] == 3 * 12 * P + export
    assert (
        said("checkpoint.keep_last=2", "checkpoint.keep_best=1", "train.eval_every_steps=5")["disk_bytes"]
        == 4 * 12 * P + export
    )
    assert (
        said("checkpoint.keep_last=3", "checkpoint.optimizer_keep_last=1")["disk_bytes"]
        == (2 * 12 + 2 * 4) * P + export
    )


def test_too_little_host_memory_is_said(tmp_path, capsys):
    (tmp_path / "juno.yaml").write_text("{gpus_per_node: 2, gpu_type: a100, mem: 1M}")
    small = ["experiment=demo", "data.sources.demo.examples_per_task=5"]
    assert main(["estimate", *small, "cluster=juno"]) == 0
    assert "NOT ENOUGH: ask for more (mem of the site profile)" in capsys.readouterr().out


def test_steps_tokens_and_time():
    said = estimate(load_config([*DEMO]), SUMMARY, ranks=2, device="H100")
    assert (said["steps"], said["tokens"]) == (10, 10 * 4096 // 2)
    assert said["time"]["basis"].startswith(
        "calculated, confirmed by no GPU: a micro-step is bound by the host"
    )
    assert said["time"]["device_hours"] == 2 * said["time"]["hours"]
    assert estimate(load_config([*DEMO]), SUMMARY, ranks=2)["time"] is None  # a CPU's peak is not known


def test_the_speed_of_an_earlier_run(tmp_path):
    config = load_config(DEMO)
    run = tmp_path / "earlier"
    run.mkdir()
    (run / "config.json").write_text(config_to_json(config))
    (run / "plan.json").write_text(
        json.dumps({"tokens": 4000, "examples": 100, "target_tokens": 1000, "world_size": 2})
    )
    with pytest.raises(UserError, match="no more than 3 measured steps"):
        estimate(config, SUMMARY, ranks=4, like=run)
    speeds = [1, 1, 1, 500, 1000, 1500]  # the first three warm up
    lines = [json.dumps({"kind": "train", "tokens_per_s": s}) for s in speeds]
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    said = estimate(config, SUMMARY, ranks=4, like=run)
    assert said["time"]["tokens_per_s"] == pytest.approx(2000)  # the same model and data on twice the ranks
    assert "earlier" in said["time"]["basis"]


@pytest.mark.parametrize("given", [{"ranks": 0}, {"ranks": -1}, {"memory_gib": 0.0}])
def test_nothing_is_no_number_of_ranks(given):
    with pytest.raises(UserError, match="must be above zero"):
        estimate(load_config(DEMO), SUMMARY, **given)


def test_what_is_unknown_is_said(tmp_path):
    with pytest.raises(UserError, match="the device 'X1' is unknown"):
        estimate(load_config(DEMO), SUMMARY, ranks=2, device="X1")
    absent = load_config([*DEMO, "model.shape=null", "model.path=nobody/nothing", "render.template=chatml"])
    with pytest.raises(UserError, match="run: hf download nobody/nothing config.json"):
        model_config(absent)
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text('{"model_type": "t5", "d_model": 4}')
    with pytest.raises(UserError, match="this t5 model has no num_hidden_layers"):
        estimate(load_config([*DEMO, "model.shape=null", "model.path=base"]), SUMMARY, ranks=2)


def test_the_command_prints_a_table_and_json(capsys):
    small = ["experiment=demo", "data.sources.demo.examples_per_task=5"]
    assert main(["estimate", *small, "--ranks", "2", "--device", "H100"]) == 0
    table = capsys.readouterr().out
    assert "reduce bucket" in table
    assert "device-hours" in table
    assert main(["estimate", *small, "--ranks", "2", "--device", "L4", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["fits"]
    assert sum(said["memory"]["parts"].values()) == said["memory"]["peak"]
