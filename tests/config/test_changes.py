"""Which settings may change once a run or a sweep has begun: an attribute of the field, read by both."""

from __future__ import annotations

from sft_dist.config.changes import differences, fixed, flatten

DECIDES = [
    "optim.lr",
    "data.sources",
    "data.sources.a.path",
    "pack.seq_len",
    "seed",
    "train.tokens_per_step",
    "loss.dft",
    "lora",
    "mix",
]
LENGTH_AND_PLACE = [
    "train.epochs",
    "train.micro_rows",
    "model.path",
    "lora.export",
    "deepspeed.stage",
    "eval.max_new_tokens",
    "data.dir",
]
ANYWHERE = ["name", "run_root", "launch.nproc", "checkpoint.keep_last", "wandb.mode", "submit", "cluster", "data.processes", "train.log_every_steps"]  # fmt: skip


def test_what_may_change_between_the_parts_of_a_run_and_of_a_sweep() -> None:
    everything = DECIDES + LENGTH_AND_PLACE + ANYWHERE
    assert fixed(everything, "run") == DECIDES
    assert fixed(everything, "sweep") == DECIDES + LENGTH_AND_PLACE


def test_differences_name_paths_with_both_values() -> None:
    old = {"a": {"b": 1, "c": 2}, "lora": None, "gone": 0}
    new = {"a": {"b": 1, "c": 3}, "lora": {"rank": 4}, "new": [1]}
    assert differences(old, new) == {
        "a.c": (2, 3),
        "lora": (None, {"rank": 4}),
        "gone": (0, None),
        "new": (None, [1]),
    }
    assert flatten(new) == {"a.b": 1, "a.c": 3, "lora.rank": 4, "new": [1]}
