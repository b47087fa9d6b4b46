"""`auto`: the smallest stage and the least recomputation that fit, by figures that follow from shapes alone."""

from __future__ import annotations

from typing import Any

import pytest

from sft_dist.cluster.estimate.memory import Setup, Shape
from sft_dist.cluster.estimate.speed import Seconds, micro_step
from sft_dist.config.auto import Choice, asked, decided, is_decided, supposed
from sft_dist.config.root import RunConfig
from sft_dist.pack.devices import DEVICES, GIB, find_device
from sft_dist.pipelines.cluster.fit import Place, choose
from sft_dist.pipelines.train.planning import cost_of

QWEN_06B = {
    "model_type": "qwen3", "vocab_size": 151_936, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
    "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": True,
}  # fmt: skip
LLAMA_8B = {
    "model_type": "llama", "vocab_size": 128_256, "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": False,
}  # fmt: skip
LLAMA_70B = LLAMA_8B | {
    "hidden_size": 8192, "intermediate_size": 28_672, "num_hidden_layers": 80, "num_attention_heads": 64
}  # fmt: skip


def config_of(**sections: Any) -> RunConfig:
    base: dict[str, Any] = {
        "model": {"path": "somewhere"},
        "pack": {"seq_len": 8192},
        "train": {"tokens_per_step": 8192 * 512},
    }
    return RunConfig.model_validate({k: base.get(k, {}) | sections.get(k, {}) for k in {*base, *sections}})


def place(ranks: int, name: str = "H100", per_node: int = 8) -> Place:
    device = DEVICES.get(name)
    memory = device.memory_bytes if device else 32 * GIB
    return Place(
        ranks=ranks, per_node=min(ranks, per_node), device=device, name=name, memory_bytes=memory, can_compile=device is not None
    )  # fmt: skip


def test_a_small_model_on_one_gpu_gets_neither_partitions_nor_recomputation() -> None:
    choice, why = choose(config_of(), QWEN_06B, place(1))
    assert (choice.stage, choice.gradient_checkpointing, choice.compile) == (1, False, True)
    assert "ZeRO stage 1, nothing recomputed, layers compiled" in why
    assert "of 79.0 GiB" in why


def test_what_does_not_fit_is_partitioned_first_and_recomputed_then() -> None:
    eight, _ = choose(config_of(), LLAMA_8B, place(8))
    assert eight.stage >= 2
    many, _ = choose(config_of(), LLAMA_70B, place(64))
    assert many.stage == 3
    assert many.gradient_checkpointing is not False
    one, why = choose(config_of(), LLAMA_8B, place(1))
    assert "nothing fits: the least that is needed" in why
    assert one.gradient_checkpointing is True


def test_short_documents_run_several_rows_side_by_side() -> None:
    config = config_of(pack={"seq_len": 2048}, train={"tokens_per_step": 2048 * 512})
    choice, _ = choose(config, QWEN_06B, place(1), target_share=0.44, squares=300.0)
    assert choice.micro_rows > 1  # one row is bound by the host


def test_what_the_config_says_is_kept() -> None:
    said = config_of(
        deepspeed={"stage": 3}, model={"gradient_checkpointing": 2, "compile": False}, train={"micro_rows": 2}
    )
    assert is_decided(said)
    assert decided(said, Choice(stage=1, gradient_checkpointing=False, compile=True, micro_rows=4)) is said
    partly = config_of(model={"gradient_checkpointing": 2})
    assert choose(partly, QWEN_06B, place(1))[0].gradient_checkpointing == 2
    offload = config_of(deepspeed={"offload_optimizer": "cpu", "offload_params": "cpu"})
    assert choose(offload, QWEN_06B, place(1))[0].stage == 3  # nothing else is allowed
    muon = config_of(optim={"name": "muon"}, model={"dtype": "float32"})
    assert choose(muon, QWEN_06B, place(1))[0].stage == 0
    assert asked(supposed(muon))["stage"] == 0
    assert asked(supposed(config_of()))["stage"] == 3


def test_a_cpu_gets_the_first_that_fits() -> None:
    choice, why = choose(config_of(model={"dtype": "float32"}), QWEN_06B, place(2, "cpu"))
    assert (choice.stage, choice.gradient_checkpointing, choice.compile, choice.micro_rows) == (
        1,
        4,
        False,
        1,
    )
    assert "nothing is known of this device's speed" in why


def taken(text: dict[str, Any], name: str, **options: Any) -> Seconds:
    setup = Setup(**{
        "ranks": 1, "stage": 1, "dtype": "bfloat16", "tokens": 8192, "target_share": 1.0, "gradient_checkpointing": False,
        "reduce_bucket_size": 10**8, "max_live_parameters": 10**9, "sub_group_size": 10**8, **options,
    })  # fmt: skip
    return micro_step(
        Shape.of(text), setup, cost_of(text), DEVICES[name],
        tokens=8192, squares=8192.0**2, targets=8192, ranks_per_node=8,
    )  # fmt: skip


def test_what_bounds_a_micro_step() -> None:
    default = taken(QWEN_06B, "H100", stage=3, gradient_checkpointing=True)
    fast = taken(QWEN_06B, "H100", compiled=True)
    assert (
        0.15 < default.host < 0.25
    )  # seconds of Python for 28 layers: as long as the device needs for unfused layers
    assert fast.bound_by == "the device"
    assert fast.host < default.host / 4
    assert fast.memory < default.memory / 2
    # arithmetic apart from this code's: 29.3 TFLOP of products at 0.58 x 989, 141 GB at 0.8 x 3.35 TB/s
    assert fast.products == pytest.approx(29.3e12 / 574e12, rel=0.03)
    assert fast.memory == pytest.approx(141e9 / 2.68e12, rel=0.05)
    far = taken(LLAMA_8B, "H100", stage=3, ranks=64)
    assert far.bound_by == "the network"
    assert far.wires == pytest.approx(
        6 * 8.03e9 * 63 / 64 / 40e9, rel=0.02
    )  # two gathers and a reduction of bf16 weights
    assert taken(LLAMA_8B, "H100", stage=2, ranks=64).wires == pytest.approx(far.wires / 3)


@pytest.mark.parametrize(
    ("name", "teraflops", "gib"),
    [
        ("NVIDIA H100 80GB HBM3", 989, 79),
        ("NVIDIA H100 PCIe", 756, 79),
        ("NVIDIA H100 NVL", 835, 93),
        ("NVIDIA L40", 181, 44),
        ("NVIDIA L40S", 362, 44),
        ("NVIDIA L4", 121, 22),
        ("NVIDIA A100-SXM4-40GB", 312, 39),
        ("NVIDIA A100-SXM4-80GB", 312, 79),
        ("NVIDIA A10G", 70, 22),
        ("NVIDIA GH200 480GB", 989, 94),
    ],
)
def test_a_variant_is_not_taken_for_its_namesake(name: str, teraflops: int, gib: int) -> None:
    device = find_device(name)
    assert device is not None
    assert (device.peak_flops / 1e12, device.memory_bytes / GIB) == (teraflops, gib)
