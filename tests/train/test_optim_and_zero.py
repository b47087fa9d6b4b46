"""The schedule as a closed form; DeepSpeed's keys, what we derive and what a user may add."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from sft_dist.checkpoint import slices
from sft_dist.config.optimizers import OPTIMIZERS, Optimizer, Rule
from sft_dist.config.root import RunConfig
from sft_dist.config.train import DeepSpeedConfig, OptimConfig
from sft_dist.core.errors import UserError
from sft_dist.train import zero
from sft_dist.train.optim import make_optimizer, parameter_groups
from sft_dist.train.schedule import SCHEDULES, lr_at, warmup_steps
from sft_dist.train.zero import DERIVED, zero_config

DECAY, MUON = OptimConfig(weight_decay=0.1), OptimConfig(name="muon", weight_decay=0.1)


def schedule(name: str, total: int = 10, warmup: int = 2, **options: Any) -> list[float]:
    optim = OptimConfig(lr=1.0, schedule=name, warmup_steps=warmup, decay_share=0.4, **options)
    return [round(lr_at(s, optim, total_steps=total, tokens_per_step=1), 4) for s in range(total)]


def test_schedules_by_eye() -> None:
    assert schedule("constant") == [0.5, 1, 1, 1, 1, 1, 1, 1, 1, 1]
    assert schedule("linear") == [0.5, 1, 1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]
    assert schedule("linear", min_lr_share=0.2)[-1] == 0.3
    assert schedule("wsd") == [0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25]
    cosine = schedule("cosine")
    assert cosine[6] == 0.5  # half-way between warm-up and end
    assert cosine[1:] == sorted(cosine[1:], reverse=True)
    assert cosine[-1] > 0


def test_warm_up_is_a_share_or_steps_or_tokens() -> None:
    def steps(**options: Any) -> int:
        return warmup_steps(OptimConfig(**options), total_steps=1000, tokens_per_step=1000)

    assert (steps(), steps(warmup_share=0.1), steps(warmup_steps=5), steps(warmup_steps=0)) == (30, 100, 5, 0)
    assert [steps(warmup_tokens=tokens) for tokens in (1, 1000, 1001, 5000)] == [1, 1, 2, 5]


def test_the_table_and_the_config_name_the_same_schedules() -> None:
    assert tuple(SCHEDULES) == get_args(OptimConfig.model_fields["schedule"].annotation)


def test_vectors_do_not_decay() -> None:
    groups = parameter_groups(nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3)), DECAY)
    assert [(g["weight_decay"], [tuple(p.shape) for p in g["params"]]) for g in groups] == [
        (0.1, [(3, 2)]),
        (0.0, [(3,), (3,), (3,)]),
    ]


class Tower(nn.Module):
    """Embedding, two layers, norm and head, named as models name them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(5, 2)
        self.inner = nn.Module()
        self.inner.layers = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
        self.norm = nn.LayerNorm(2, bias=False)
        self.lm_head = nn.Linear(2, 5, bias=False)


def names(module: nn.Module, group: dict[str, Any]) -> list[str]:
    return [n for n, p in module.named_parameters() if any(p is q for q in group["params"])]


def test_each_layer_learns_slower_than_the_one_above_it() -> None:
    module = Tower()
    groups = parameter_groups(module, OptimConfig(weight_decay=0.1, layer_lr_decay=0.5))
    assert {g["lr_scale"]: names(module, g) for g in groups if g["weight_decay"]} == {
        1.0: ["lm_head.weight"],
        0.5: ["inner.layers.1.weight"],
        0.25: ["inner.layers.0.weight"],
        0.125: ["embed_tokens.weight"],
    }
    assert {g["lr_scale"]: names(module, g) for g in groups if not g["weight_decay"]} == {
        1.0: ["norm.weight"],
        0.5: ["inner.layers.1.bias"],
        0.25: ["inner.layers.0.bias"],
    }


class Adapted(nn.Module):
    """A layer with an adapter, named as peft names it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.ModuleDict()])
        self.layers[0]["lora_A"] = nn.ModuleDict({"default": nn.Linear(4, 2, bias=False)})
        self.layers[0]["lora_B"] = nn.ModuleDict({"default": nn.Linear(2, 4, bias=False)})


def test_the_second_matrices_of_adapters_have_a_rate_of_their_own() -> None:
    """LoRA+, arXiv 2402.12354."""
    module = Adapted()
    optim = OptimConfig(weight_decay=0.0)
    groups = parameter_groups(module, optim, lr_ratio=16.0)
    assert {g["lr_scale"]: names(module, g) for g in groups} == {
        1.0: ["layers.0.lora_A.default.weight"],
        16.0: ["layers.0.lora_B.default.weight"],
    }
    assert [g["lr_scale"] for g in parameter_groups(module, optim)] == [1.0]


def test_muon_refuses_experts_that_are_one_tensor() -> None:
    module = Tower()
    module.inner.layers[0].experts = nn.Parameter(torch.zeros(4, 2, 2))
    with pytest.raises(
        UserError, match=r"inner.layers.0.experts holds those of all experts.*optim.name=adamw"
    ):
        parameter_groups(module, MUON)
    assert parameter_groups(module, DECAY)


def test_muon_takes_the_matrices_of_layers_and_adamw_the_rest() -> None:
    """Three steps equal torch's own two optimizers side by side; all states lie in one place."""

    def gradients(module: nn.Module, seed: int) -> None:
        torch.manual_seed(seed)
        for p in module.parameters():
            p.grad = torch.randn_like(p)

    torch.manual_seed(0)
    ours, theirs = Tower(), Tower()
    theirs.load_state_dict(ours.state_dict())
    optimizer = make_optimizer(parameter_groups(ours, MUON), MUON)
    named = dict(theirs.named_parameters())
    matrices = [p for n, p in named.items() if "layers" in n and p.ndim == 2]
    options = {"lr": 0.01, "betas": (0.9, 0.95), "eps": 1e-8}
    twins = [
        torch.optim.Muon(matrices, lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(
            [named["embed_tokens.weight"], named["lm_head.weight"]], weight_decay=0.1, **options
        ),
        torch.optim.AdamW([p for p in named.values() if p.ndim == 1], weight_decay=0.0, **options),
    ]
    for step in range(3):
        gradients(ours, step), gradients(theirs, step)
        for group in optimizer.param_groups:
            group["lr"] = 0.01
        for part in (optimizer, *twins):
            part.step()
    for name, p in ours.named_parameters():
        torch.testing.assert_close(p, named[name], rtol=1e-5, atol=1e-6)
    assert sum("momentum_buffer" in s for s in optimizer.state.values()) == 2
    assert sum("exp_avg" in s for s in optimizer.state.values()) == 5


def test_one_entry_adds_an_optimizer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The entry alone names it for the config, makes it, says which states a checkpoint holds and how large they are."""
    rule = Rule(torch_class="SGD", states=("momentum_buffer",), options={"momentum": 0.9})
    monkeypatch.setitem(OPTIMIZERS, "sgd", Optimizer(about="momentum", rule=rule))
    optim = OptimConfig(name="sgd", weight_decay=0.1)
    module = Tower()
    optimizer = make_optimizer(parameter_groups(module, optim), optim)
    assert isinstance(optimizer, torch.optim.SGD)
    engine = SimpleNamespace(module=module, optimizer=optimizer, zero_optimization_stage=lambda: 0)
    slices.allocate_states(engine)
    kinds = {kind for piece in slices.local_slices(engine) for kind in piece.views}
    assert kinds == {"master", "momentum_buffer"}
    assert OPTIMIZERS["sgd"].state_bytes == 4
    for p in module.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert slices.optimizer_step(engine) == 0  # it keeps no count


def make(
    stage: int = 3,
    dtype: str = "bfloat16",
    clip: float | None = 1.0,
    extra: dict[str, Any] | None = None,
    **options: Any,
) -> dict[str, Any]:
    section = DeepSpeedConfig(
        stage=stage,
        reduce_bucket_size=5,
        prefetch_bucket_size=5,
        persistence_threshold=5,
        max_live_parameters=5,
        sub_group_size=5,
        extra=extra or {},
        **options,
    )
    return zero_config(section, dtype=dtype, clip=clip)


def test_what_deepspeed_would_default_to_wrongly_is_explicit() -> None:
    config = make()
    assert config["gradient_clipping"] == 1.0
    assert make(clip=None)["gradient_clipping"] == 0.0  # the default of 1.0 would clip in silence
    assert config["data_types"] == {"grad_accum_dtype": "fp32"}
    assert config["managed_gradient_accumulation"] is False
    assert config["zero_optimization"]["reduce_scatter"] is True
    assert make(stage=1)["zero_optimization"]["overlap_comm"] is False


def test_extra_is_merged_last_and_may_not_contradict() -> None:
    config = make(extra={"zero_optimization": {"round_robin_gradients": True}, "wall_clock_breakdown": True})
    assert config["zero_optimization"]["round_robin_gradients"] is True
    assert config["zero_optimization"]["stage"] == 3
    assert config["wall_clock_breakdown"] is True


@pytest.mark.parametrize("key", sorted(DERIVED))
def test_derived_keys_are_refused(key: str) -> None:
    *path, last = key.split(".")
    extra: Any = {last: 1}
    for part in reversed(path):
        extra = {part: extra}
    with pytest.raises(UserError, match=f"deepspeed.extra.{key} is derived"):
        make(extra=extra)


def test_offload_and_hpz_reach_deepspeed() -> None:
    keys = make(offload_optimizer="cpu", offload_params="cpu", hpz_partition_size=8)["zero_optimization"]
    assert (keys["offload_optimizer"]["device"], keys["offload_param"]["device"]) == ("cpu", "cpu")
    assert keys["zero_hpz_partition_size"] == 8
    assert "offload_optimizer" not in make()["zero_optimization"]
    assert make(offload_optimizer="cpu")["zero_force_ds_cpu_optimizer"] is False


@pytest.mark.parametrize("name", ["quantized_weights", "quantized_gradients"])
def test_quantised_communication_is_sent_on_a_gpu_and_refused_without(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(zero, "device_type", lambda: "cuda")
    assert make(**{name: True})["zero_optimization"][f"zero_{name}"] is True
    monkeypatch.setattr(zero, "device_type", lambda: "cpu")
    with pytest.raises(UserError, match=f"deepspeed.{name} needs DeepSpeed's CUDA quantiser"):
        make(**{name: True})


def test_offload_to_disk_without_libaio_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from deepspeed.ops import op_builder

    monkeypatch.setattr(op_builder.AsyncIOBuilder, "is_compatible", lambda self, verbose: False)
    with pytest.raises(UserError, match="install libaio-dev"):
        make(offload_optimizer="nvme", nvme_path="/tmp")


SHAPE = {"model": {"shape": {}, "dtype": "float32"}, "render": {"train_vocab_size": 300}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optim": {"name": "adamw_8bit"}}, "optim.name=adamw_8bit is not supported"),
        ({"optim": {"name": "schedule_free"}}, "optim.name=schedule_free is not supported"),
        ({"optim": {"name": "muon"}, "deepspeed": {"stage": 2}}, "optim.name=muon.*it needs whole matrices"),
        ({"deepspeed": {"stage": 2, "offload_params": "cpu"}}, "offload_params needs partitioned weights"),
        ({"deepspeed": {"stage": 1, "hpz_partition_size": 2}}, "hpz_partition_size needs partitioned"),
        ({"deepspeed": {"stage": 2, "quantized_weights": True}}, "quantized_weights needs partitioned"),
        ({"deepspeed": {"stage": 0, "offload_optimizer": "cpu"}}, "offload_optimizer moves partitioned"),
        ({"deepspeed": {"offload_optimizer": "nvme"}}, "set deepspeed.nvme_path"),
        ({"deepspeed": {"offload_params": "cpu"}}, "set offload_optimizer too"),
        (
            {"model": {"gradient_checkpointing": "selective"}, "deepspeed": {"stage": 3}},
            "gathers and frees weights between",
        ),
        ({"model": {"offload_activations": True, "gradient_checkpointing": False}}, "recomputes none"),
        ({"loss": {"neftune_alpha": 5}, "train": {"sequence_parallel": 2}}, "loss.neftune_alpha"),
        ({"train": {"export_ema": True}}, "set optim.ema_decay"),
        ({"train": {"profile": [5, 3]}}, "ends before it begins"),
        (
            {"optim": {"ema_decay": 0.9}, "deepspeed": {"offload_optimizer": "nvme", "nvme_path": "/tmp"}},
            "average in host memory",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(changes: dict[str, Any], message: str) -> None:
    values = {k: {**SHAPE.get(k, {}), **changes.get(k, {})} for k in {*SHAPE, *changes}}
    with pytest.raises(ValidationError, match=message):
        RunConfig.model_validate(values)


@pytest.mark.parametrize("value", [True, False, 2, "selective"])
def test_checkpointing_takes_a_switch_a_number_or_selective(value: Any) -> None:
    model = {**SHAPE["model"], "gradient_checkpointing": value}
    values = {**SHAPE, "model": model, "deepspeed": {"stage": 2}}
    read = RunConfig.model_validate(values).model.gradient_checkpointing
    assert (read, type(read)) == (value, type(value))


def test_a_key_that_deepspeed_does_not_know_is_refused() -> None:
    with pytest.raises(UserError, match="deepspeed.extra.zero_optimization.nonesuch"):
        make(extra={"zero_optimization": {"nonesuch": 1}})


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        (
            {"wall_clock_brekdown": True},
            "wall_clock_brekdown is no key that DeepSpeed knows.*wall_clock_breakdown",
        ),
        ({"zero_optimization": {}, "comms_loger": {}}, "comms_loger is no key that DeepSpeed knows"),
        ({"wandb": {"enabled": "perhaps"}}, "DeepSpeed refuses deepspeed.extra"),
        ({"amp": {"enabled": True}}, "DeepSpeed refuses deepspeed.extra.*has been removed"),
        ({"zero_optimization": False}, "zero_optimization=False would replace a whole section"),
    ],
)
def test_what_deepspeed_would_ignore_or_cannot_read_is_refused(extra: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        make(extra=extra)


def test_keys_that_deepspeed_reads_are_let_through() -> None:
    extra = {
        "wall_clock_breakdown": True,
        "memory_breakdown": True,
        "disable_python_gc": True,
        "aio": {"block_size": 4096},
        "flops_profiler": {"enabled": False},
        "comms_logger": {"enabled": True},
        "tensorboard": {"enabled": False},
        "zero_optimization": {"round_robin_gradients": True},
    }
    config = make(extra=extra)
    assert {k: config[k] for k in extra if k != "zero_optimization"} == {
        k: v for k, v in extra.items() if k != "zero_optimization"
    }
    assert config["zero_optimization"]["round_robin_gradients"] is True
