"""The estimate beside the live tensor bytes of real steps on two CPU ranks, part by part; and what it suggests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from sft_dist.cluster.estimate.estimate import (
    Measured,
    Work,
    export_bytes,
    state_bytes,
    suggestions,
    time_of,
    with_backward,
)
from sft_dist.cluster.estimate.memory import CHUNK_LOGITS, Setup, Shape, estimate_memory
from sft_dist.cluster.estimate.trainable import adapted, partly, sizes
from sft_dist.pack import CostModel, devices

HERE = Path(__file__).parent
RANKS = 2
SHAPES = {
    "grouped": {
        "vocab_size": 2048, "hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 6,
        "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": False,
    },
    "tied": {
        "vocab_size": 4096, "hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 3,
        "num_attention_heads": 6, "num_key_value_heads": 6, "tie_word_embeddings": True,
    },
}  # fmt: skip
BASE = {
    "stage": 3, "dtype": "bfloat16", "gradient_checkpointing": False, "lengths": [300, 724], "targets": 512,
    "reduce_bucket_size": 500_000, "prefetch_bucket_size": 100_000, "persistence_threshold": 1000, "sub_group_size": 10**6,
}  # fmt: skip
CASES = {
    "grouped": [
        BASE,
        BASE | {"gradient_checkpointing": True, "lengths": [2048], "targets": 2000},
        BASE | {"dtype": "float32", "gradient_checkpointing": True, "targets": 40},
        BASE | {"stage": 2},
        BASE | {"stage": 1, "dtype": "float32"},
        BASE | {"stage": 0, "dtype": "float32", "gradient_checkpointing": True},
        BASE | {"trainable": ["layers[3:]", "head"], "freeze": ["*norm*"]},
        # under stage 2 the reduce bucket, counted among the states, is given back between steps: 1 MB of these
        BASE | {"stage": 2, "freeze": ["embeddings", "layers[:2]"], "gradient_checkpointing": True},
    ],
    "tied": [
        BASE | {"dtype": "float32"},
        BASE | {"gradient_checkpointing": True},
        BASE | {"stage": 2, "gradient_checkpointing": True},
        BASE | {"dtype": "float32", "trainable": ["layers[2:]"]},
    ],
}


def setup(case: dict, **changes) -> Setup:
    tokens = sum(case["lengths"])
    values = {
        "ranks": RANKS,
        "tokens": tokens,
        "target_share": case["targets"] / tokens,
        "max_live_parameters": 10**9,
        "device": "cpu",
        **{
            k: case[k]
            for k in ("stage", "dtype", "gradient_checkpointing", "reduce_bucket_size", "sub_group_size")
        },
    }
    return Setup(**values | changes)


@pytest.fixture(scope="module", params=list(SHAPES))
def measured(request, tmp_path_factory) -> tuple[str, list[dict]]:
    """What two ranks held over real steps of one model, a case after the other in one launch."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("memory")
    config = LlamaConfig(**SHAPES[request.param], max_position_embeddings=4096, eos_token_id=2)
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    cases = [case | {"model": str(folder / "model")} for case in CASES[request.param]]
    (folder / "cases.json").write_text(json.dumps(cases))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={RANKS}"]
    command += [str(HERE / "memory_of_steps.py"), str(folder / "out.json"), str(folder / "cases.json")]
    kept = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    environment = kept | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return request.param, json.loads((folder / "out.json").read_text())


@pytest.mark.slow
def test_estimate_is_within_a_tenth_of_what_steps_hold(measured):
    name, found = measured
    shape = Shape.of(SHAPES[name])
    errors = {}
    for case, seen in zip(CASES[name], found, strict=True):
        chosen = case.get("trainable", []), case.get("freeze", [])
        said = estimate_memory(partly(shape, SHAPES[name], *chosen)[0], setup(case))
        assert shape.parameters == seen["parameters"]
        where = (
            f"stage {case['stage']} {case['dtype']} checkpointing {case['gradient_checkpointing']} {chosen}"
        )
        peak = max(seen["forward_peak"], seen["backward_peak"], seen["step_peak"])
        head = said.phases["backward of the head"]
        kept = head["activations"] + head["gathered parameters"]
        errors[f"{where}: peak"] = said.peak / peak - 1
        errors[f"{where}: states"] = sum(said.states.values()) / (seen["start"] + seen["gradients"]) - 1
        if not case["gradient_checkpointing"] and chosen == (
            [],
            [],
        ):  # frozen weights keep less: an upper bound
            errors[f"{where}: activations"] = kept / (seen["forward_end"] - seen["start"] - seen["head"]) - 1
    print("\n".join(f"{name} {k} {v:+.1%}" for k, v in errors.items()))  # with -s
    worst = {k: v for k, v in errors.items() if abs(v) > 0.1}
    assert not worst, worst


def test_chunk_is_that_of_the_loss():
    from sft_dist.model import loss

    assert loss.CHUNK_LOGITS == CHUNK_LOGITS


def test_parameters_of_known_models():
    """From the published config.json of each model; the sums are what their cards and files say."""
    qwen3_06 = {
        "model_type": "qwen3", "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
        "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "tie_word_embeddings": True,
    }  # fmt: skip
    llama_8 = {
        "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False,
    }  # fmt: skip
    qwen25_7 = {
        "model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
        "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False,
    }  # fmt: skip
    assert Shape.of(qwen3_06).parameters == 596_049_920
    assert Shape.of(llama_8).parameters == 8_030_261_248
    assert Shape.of(qwen25_7).parameters == 7_615_616_512
    for config in (qwen3_06, llama_8, qwen25_7):
        shape = Shape.of(config)
        assert sum(sizes(shape, config).values()) == shape.parameters


def test_what_is_trained_is_counted_as_the_trainer_chooses_it(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    from sft_dist.model.trainable import set_trainable
    from sft_dist.model.trainable import with_backward as of_live

    config = SHAPES["grouped"]
    hf = LlamaForCausalLM(LlamaConfig(**config))
    cost = CostModel(linear_flops_per_token=8.0, attention_flops_per_pair=1.0, head_flops_per_target=1.0)
    for trainable, freeze in (
        ([], []),
        (["layers[4:]"], []),
        (["head"], []),
        (["embeddings"], []),
        (["model.layers.*.mlp"], ["layers[:2]"]),
        (["*.bias", "*norm*", "layers[-1:]"], ["*q_proj*"]),
        ([], ["embeddings", "layers[0:3]", "head"]),
    ):
        known = [e for e in trainable if e != "*.bias"]  # which this model lacks, and choose() refuses
        set_trainable(hf, known, freeze)
        live = sum(p.numel() for p in hf.parameters() if p.requires_grad)
        shape, unknown = partly(SHAPE, config, known, freeze)
        assert (shape.trained, unknown) == (live, []), (trainable, freeze)
        said, real = with_backward(cost, shape), of_live(cost, hf)
        assert said.useful_flops(1, 1, 1) == pytest.approx(real.useful_flops(1, 1, 1)), (trainable, freeze)
        assert partly(SHAPE, config, trainable, freeze)[1] == [e for e in trainable if e == "*.bias"]


def test_adapters_and_whole_modules_beside_them():
    config, E, G, inner, L, V = SHAPES["grouped"], 128, 64, 352, 6, 2048

    def trained(**changes) -> int:
        given = {"rank": 2, "target_modules": (), "modules_to_save": (), "dora": False}
        return adapted(SHAPE, config, **given | changes).trained

    every = 2 * L * (2 * E + 2 * (E + G) + 2 * E + 3 * (E + inner))
    assert trained() == every
    assert trained(target_modules=("q_proj",)) == 2 * L * 2 * E
    assert trained(target_modules=("q_proj",), dora=True) == 2 * L * 2 * E + L * E
    assert trained(modules_to_save=("lm_head", "embed_tokens")) == every + 2 * V * E
    assert trained(modules_to_save=("norm",)) == every + E
    biased = config | {"attention_bias": True}  # no adapter sits on a bias
    given = {"rank": 2, "target_modules": (), "modules_to_save": (), "dora": False}
    assert adapted(Shape.of(biased), biased, **given).trained == every
    tied = config | {"tie_word_embeddings": True}  # one matrix, trained in place
    in_place = adapted(Shape.of(tied), tied, **given | {"modules_to_save": ("embed_tokens", "lm_head")})
    assert (in_place.trained, in_place.trains_head) == (every + V * E, True)
    assert in_place.parameters == Shape.of(tied).parameters + every
    with_head = adapted(SHAPE, config, rank=2, target_modules=(), modules_to_save=("lm_head",), dora=False)
    assert (with_head.trains_head, with_head.parameters) == (True, SHAPE.parameters + every + V * E)


SHAPE = Shape.of(SHAPES["grouped"])
GPU = setup(BASE, device="cuda")


def test_each_part_answers_to_its_setting():
    def states(**changes) -> dict[str, int]:
        return estimate_memory(SHAPE, setup(BASE, **changes)).states

    P = SHAPE.parameters
    assert states(stage=3, device="cuda") == {
        "weights": P, "gradients": 2 * P, "optimizer": 6 * P, "reduce bucket": 1_000_000,
    }  # fmt: skip
    assert states(stage=2, device="cuda")["weights"] == 2 * P
    assert states(stage=1, device="cuda")["gradients"] == 4 * P
    assert states(hpz=2, device="cuda")["weights"] == 2 * P
    offloaded = estimate_memory(
        SHAPE, setup(BASE, device="cuda", offload_optimizer=True, offload_parameters=True)
    )
    assert sum(offloaded.states.values()) == 1_000_000
    assert offloaded.host == 9 * P
    assert estimate_memory(SHAPE, setup(BASE, offload_optimizer=True, on_nvme=True)).host == 0
    adapters = estimate_memory(replace(SHAPE, trained=1000), GPU).states
    assert (adapters["gradients"], adapters["optimizer"]) == (2000, 6000)


def activations(**changes) -> int:
    return estimate_memory(SHAPE, setup(BASE, device="cuda", **changes)).phases["loss"]["activations"]


def test_activations_answer_to_their_settings():
    whole, half = activations(), activations(gradient_checkpointing=2)
    assert activations(gradient_checkpointing=True) < half < whole
    assert activations(gradient_checkpointing=True) < activations(gradient_checkpointing="selective") < whole
    assert activations(mlp_tiles=4) < whole
    offloaded = activations(gradient_checkpointing=True, offload_activations=True)
    assert offloaded < activations(gradient_checkpointing=True)
    assert activations(tokens=2048) == 2 * whole


def test_suggestions_fit_and_name_the_least_change_first():
    peak = estimate_memory(SHAPE, GPU).peak
    needed = round(peak * 1.05) + 2**30
    assert suggestions(SHAPE, GPU, rows=4, seq_len=256, limit_bytes=needed) == ()
    found = suggestions(SHAPE, GPU, rows=4, seq_len=256, limit_bytes=needed - 2_000_000)
    assert found[0].overrides == ("model.gradient_checkpointing=true",)
    assert all(s.peak <= needed - 2_000_000 for s in found)
    assert suggestions(SHAPE, GPU, rows=4, seq_len=256, limit_bytes=10**9) == ()  # nothing makes it fit


def test_time_of_a_device_and_from_a_run():
    cost = CostModel(linear_flops_per_token=100.0, attention_flops_per_pair=0.0)
    work = Work(steps=10, tokens=3600, targets=0, squares=0)
    setup = replace(GPU, ranks=2, tokens=900)
    given = {"fill": 1.0, "rows_per_step": 4, "rows": 1, "seq_len": 900, "ranks_per_node": 8}
    found = time_of(work, cost, setup, SHAPE, **given, device=devices.DEVICES["H100"], measured=None)
    parts = found.micro_step_ms
    slowest = max(parts["host"], parts["products"] + parts["attention"] + parts["memory"], parts["wires"])
    assert found.step_s == pytest.approx((2 * slowest + parts["once"]) / 1000)  # four rows on two ranks
    assert found.device_hours == pytest.approx(2 * found.hours)
    assert "confirmed by no GPU" in found.basis
    run = Measured(name="r", tokens_per_s=100.0, ranks=4, flops_per_token=600.0)  # a model of twice the size
    taken = time_of(work, cost, setup, SHAPE, **given, device=None, measured=run)
    assert taken.tokens_per_s == pytest.approx(100.0)  # half the ranks, half the FLOPs a token
    assert taken.hours == pytest.approx(0.1)
    assert time_of(work, cost, setup, SHAPE, **given, device=None, measured=None) is None


def test_sizes_on_disk():
    assert state_bytes(SHAPE, 8) == 12 * SHAPE.parameters
    assert state_bytes(replace(SHAPE, trained=10), 8) == 120
    assert export_bytes(SHAPE, "bfloat16") == 2 * SHAPE.parameters


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA GH200 480GB", "GH200"),
        ("NVIDIA B200", "B200"),
        ("NVIDIA A100-SXM4-40GB", "A100-SXM4-40GB"),
        ("a100", "A100"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA L4", "L4"),
    ],
)
def test_devices_by_the_name_of_the_driver(name, key):
    assert devices.find_device(name) == devices.DEVICES[key]
    assert devices.find_device("GeForce") is None
