"""Configs in the manner of other trainers become ours: same targets, batch, rate and optimizer, or it is said what is not."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from sft_dist.config.convert import DEFAULTS, Conversion, convert
from sft_dist.config.load import load_config
from sft_dist.core.errors import UserError

AXOLOTL: dict[str, Any] = {
    "base_model": "org/model-1b",
    "load_in_4bit": True,
    "adapter": "qlora",
    "lora_r": 32,
    "lora_alpha": 16,
    "lora_target_modules": r"model.layers.[\d]+.(mlp|self_attn).(up|down|q|v)_proj",
    "datasets": [
        {"path": "org/chats", "type": "chat_template", "split": "train[:10%]", "field_messages": "conversation",
         "message_property_mappings": {"role": "from", "content": "value"}}
    ],
    "sequence_len": 2048,
    "sample_packing": True,
    "micro_batch_size": 2,
    "gradient_accumulation_steps": 4,
    "num_epochs": 3,
    "optimizer": "adamw_bnb_8bit",
    "learning_rate": "2e-4",
    "warmup_ratio": 0.1,
    "bf16": "auto",
    "tf32": True,
    "val_set_size": 0.05,
    "special_tokens": {"pad_token": "<pad>"},
    "wandb_project": None,
    "gradient_checkpointing": True,
}  # fmt: skip


def _converted(tmp_path: Path, values: dict[str, Any], name: str = "theirs.yml") -> Conversion:
    file = tmp_path / name
    file.write_text(yaml.safe_dump(values))
    return convert(file, ranks=4)


def _valid(tmp_path: Path, done: Conversion) -> Any:
    for name, text in done.files.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "ours.yaml").write_text(done.yaml())
    return load_config([], tmp_path / "ours.yaml")


def test_an_axolotl_config(tmp_path: Path) -> None:
    done = _converted(tmp_path, AXOLOTL)
    assert (done.trainer, done.changes, done.close) == ("axolotl", [], ["optimizer"])
    config = _valid(tmp_path, done)
    assert config.train.tokens_per_step == 2 * 4 * 4 * 2048
    assert (config.optim.lr, config.optim.betas, config.optim.warmup_share) == (2e-4, (0.9, 0.999), 0.1)
    assert (config.optim.schedule, config.train.epochs, config.seed) == ("cosine", 3, 42)
    assert config.lora.target_modules == ("up_proj", "down_proj", "q_proj", "v_proj")
    assert (config.lora.rank, config.lora.alpha, config.lora.quantize_base) == (32, 16.0, "nf4")
    assert config.deepspeed.stage == 2
    source = config.data.sources["chats"]
    assert (source.kind, source.split, source.messages_field) == ("hub", "train[:10%]", "conversation")
    assert (source.role_field, source.content_field) == ("from", "value")
    assert config.data.validation.share == 0.05


def test_what_happens_by_epoch_and_ends_early(tmp_path: Path) -> None:
    keys = {"num_epochs": 1.5, "saves_per_epoch": 2, "evals_per_epoch": 4, "early_stopping_patience": 3}
    done = _converted(tmp_path, AXOLOTL | keys | {"load_best_model_at_end": True})
    config = _valid(tmp_path, done)
    assert not done.changes
    assert (config.train.epochs, config.train.evals_per_epoch, config.checkpoint.saves_per_epoch) == (
        1.5,
        4,
        2,
    )
    assert (config.train.patience_evaluations, config.train.export_best) == (3, True)
    assert config.checkpoint.keep_best == 1
    unseen = _valid(tmp_path, _converted(tmp_path, AXOLOTL | keys | {"val_set_size": 0}))
    assert unseen.train.patience_evaluations is None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("optimizer", "lion_8bit"),
        ("lr_scheduler", "rex"),
        ("num_epochs", 0),
        ("special_tokens", {"eos_token": "<own>"}),
        ("fp16", True),
        ("adapter", "llama-adapter"),
        ("lora_target_modules", "model.layers.(?!1).*"),
        ("datasets", [{"path": "x/y", "type": "jeopardy"}]),
        ("lora_target_parameters", ["mlp.experts.down_proj"]),
        ("some_new_key", 3),
        ("micro_batch_size", True),
        ("learning_rate", True),
        ("lora_r", 2.5),
        ("max_steps", 10.5),
    ],
)
def test_what_changes_the_result_is_said(tmp_path: Path, key: str, value: Any) -> None:
    assert any(key in changed for changed in _converted(tmp_path, AXOLOTL | {key: value}).changes)


def test_a_share_of_the_run_is_no_number_of_steps(tmp_path: Path) -> None:
    done = _converted(tmp_path, AXOLOTL | {"save_steps": 0.2, "eval_steps": 50, "logging_steps": 1})
    assert [(key, changes) for key, _, changes in done.cannot if key == "save_steps"] == [
        ("save_steps", False)
    ]
    config = _valid(tmp_path, done)
    assert (config.checkpoint.save_every_steps, config.train.eval_every_steps) == (None, 50)


def test_tokens_text_files_and_balance(tmp_path: Path) -> None:
    """New tokens, raw text of chosen files, and the load-balance loss of a mixture of experts."""
    keys = {
        "tokens": ["<call>"],
        "special_tokens": {"pad_token": "</s>", "additional_special_tokens": ["<end>"]},
        "datasets": [{"path": "x/texts", "type": "completion", "field": "body", "data_files": ["a.jsonl"]}],
        "pretraining_dataset": [{"path": "x/web", "name": "en", "type": "pretrain", "text_column": "text"}],
        "model_config": {"output_router_logits": True},
        "lora_modules_to_save": ["embed_tokens", "lm_head"],
    }
    done = _converted(tmp_path, AXOLOTL | keys)
    assert not done.changes
    config = _valid(tmp_path, done)
    assert config.render.added == {"<call>": False, "<end>": True}
    assert config.model.vocab_multiple == 1
    texts, web = config.data.sources["texts"], config.data.sources["web"]
    assert (texts.kind, texts.format, texts.fields, texts.data_files) == (
        "hub",
        "text",
        {"text": "body"},
        ("a.jsonl",),
    )
    assert (web.format, web.name, web.fields) == ("text", "en", {})
    assert config.loss.router_balance == "model"
    named = _converted(tmp_path, AXOLOTL | {"tokens": {"bos_token": "<s>", "eos_token": "</s>"}})
    assert not named.changes
    assert _converted(tmp_path, AXOLOTL | {"model_config": {"rope_theta": 1}}).changes == ["model_config"]


def test_a_division_in_a_script_is_worked_out(tmp_path: Path) -> None:
    script = tmp_path / "train.sh"
    text = "nproc_per_node=2\nnnodes=2\nswift sft --model org/m --dataset a/b --max_length 64 --gradient_accumulation_steps "
    for division in ("$(expr 32 / $nproc_per_node / $nnodes)", "$((32 / nproc_per_node / nnodes))"):
        script.write_text(text + division + "\n")
        done = convert(script, ranks=4)
        assert (done.changes, done.values["train"]["tokens_per_step"]) == ([], 8 * 4 * 64)
    script.write_text(text + "$(expr 32 / $WORLD_SIZE)\n")
    assert convert(script, ranks=4).changes == ["gradient_accumulation_steps"]


def test_llama_factory(tmp_path: Path) -> None:
    theirs = {
        "model_name_or_path": "org/m", "stage": "sft", "do_train": True, "finetuning_type": "lora", "lora_rank": 8, "lora_target": "all",
        "dataset": "data/my.jsonl", "template": "llama3", "cutoff_len": 2048, "max_samples": 1000, "output_dir": "saves/x",
        "per_device_train_batch_size": 1, "gradient_accumulation_steps": 8, "learning_rate": 1.0e-4, "num_train_epochs": 3.0,
        "lr_scheduler_type": "cosine", "warmup_ratio": 0.1, "bf16": True, "overwrite_cache": True, "deepspeed": "ds_z3_config.json",
    }  # fmt: skip
    done = _converted(tmp_path, theirs)
    assert (done.trainer, done.changes) == ("llama-factory", [])
    config = _valid(tmp_path, done)
    assert (config.lora.rank, config.lora.alpha, config.lora.target_modules) == (8, 16.0, ())
    assert (config.train.tokens_per_step, config.pack.packing) == (8 * 4 * 2048, False)
    assert (config.render.template, config.deepspeed.stage) == ("llama3", 3)
    assert config.data.sources["my"].take_examples == 1000


def test_trl(tmp_path: Path) -> None:
    theirs = {
        "model_name_or_path": "org/m", "dataset_name": "org/set", "learning_rate": 2.0e-5, "num_train_epochs": 1, "packing": True,
        "per_device_train_batch_size": 2, "gradient_accumulation_steps": 8, "max_length": 4096, "bf16": True, "eos_token": "<|im_end|>",
    }  # fmt: skip
    done = _converted(tmp_path, theirs)
    assert (done.trainer, done.changes) == ("trl", ["eos_token"])
    config = _valid(tmp_path, done)
    assert (config.optim.schedule, config.train.tokens_per_step) == ("linear", 2 * 8 * 4 * 4096)
    assert config.data.sources["set"].path == "org/set"


def test_ms_swift(tmp_path: Path) -> None:
    file = tmp_path / "train.sh"
    file.write_text(
        "# 22GB\nCUDA_VISIBLE_DEVICES=0 \\\nswift sft \\\n    --model Qwen/Qwen3-8B \\\n    --tuner_type lora \\\n"
        "    --dataset 'org/alpaca#500' 'org/chat:default' \\\n    --torch_dtype bfloat16 \\\n    --learning_rate 1e-4 \\\n"
        "    --lora_rank 8 \\\n    --target_modules all-linear \\\n    --gradient_accumulation_steps 16 \\\n    --max_length 2048\n"
    )
    done = convert(file, ranks=1)
    assert (done.trainer, done.changes) == ("ms-swift", [])
    config = _valid(tmp_path, done)
    assert config.data.sources["alpaca"].take_examples == 500
    assert (config.lora.alpha, config.train.tokens_per_step, config.optim.weight_decay) == (
        32,
        16 * 2048,
        0.1,
    )


def test_a_prompt_of_its_own_becomes_a_template(tmp_path: Path) -> None:
    own = {
        "system_prompt": "Be kind.\n",
        "field_instruction": "q",
        "field_output": "a",
        "format": "Q: {instruction}\nA: ",
    }
    theirs = copy.deepcopy(AXOLOTL) | {"datasets": [{"path": "./my.jsonl", "type": own}]}
    done = _converted(tmp_path, theirs)
    assert not done.changes
    assert "Q: {{ message['content'] }}\nA: " in done.files["theirs.jinja"]
    assert done.get("data.sources.my") == {
        "kind": "alpaca",
        "path": "./my.jsonl",
        "instruction_field": "q",
        "output_field": "a",
    }


def test_every_default_that_differs_is_written(tmp_path: Path) -> None:
    done = _converted(tmp_path, {"base_model": "x", "datasets": [{"path": "a/b", "type": "alpaca"}]})
    for path, value in DEFAULTS["axolotl"].items():
        assert done.get(path) == value, path


def test_what_is_no_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no trainer"):
        _converted(tmp_path, {"a": 1})
    with pytest.raises(UserError, match="does not exist"):
        convert(tmp_path / "none.yml", ranks=1)
