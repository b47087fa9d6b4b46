"""What `check` and its neighbours say before ranks start: every mistake in one pass, with names that exist."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import save_file

from sft_dist import commands
from sft_dist.cli import main
from sft_dist.config.load import config_to_json, validate
from sft_dist.core.errors import UserError
from sft_dist.core.runfolder import RunFolder
from sft_dist.pipelines.before_ranks import machine_warnings, refuse_mistakes
from sft_dist.pipelines.data.check import check, preview
from sft_dist.pipelines.data.prepare import prepare
from sft_dist.pipelines.train.run_folder import rate_jump
from sft_dist.render.tokenizer import train_tokenizer

SHAPE = {"hidden_size": 32, "intermediate_size": 64, "layers": 1, "heads": 2, "max_position_embeddings": 512}


@pytest.fixture
def config_of(tmp_path: Path):
    train_tokenizer(["user assistant say"] * 4, 300).save(tmp_path / "tokenizer")

    def rows(name: str, turns: int = 40, **marks: object) -> str:
        lines = [
            {
                "messages": [
                    {"role": "user", "content": f"say {i}"},
                    {"role": "assistant", "content": f"n{i}", **marks},
                ]
            }
            for i in range(turns)
        ]
        (tmp_path / name).write_text("\n".join(map(json.dumps, lines)))
        return str(tmp_path / name)

    def make(**sections: object):
        values = {
            "name": "t",
            "run_root": str(tmp_path / "runs"),
            "model": {"shape": SHAPE, "tokenizer": str(tmp_path / "tokenizer"), "dtype": "float32"},
            "data": {
                "dir": str(tmp_path / "data"),
                "processes": 1,
                "sources": {"mine": {"kind": "chat", "path": rows("x.jsonl", boost_loss=2)}},
            },
            "render": {"template": "chatml"},
            "pack": {"seq_len": 128},
            "train": {"tokens_per_step": 512},
            "launch": {"nproc": 1},
        }
        for key, section in sections.items():
            values[key] = {**values.get(key, {}), **section} if isinstance(section, dict) else section
        return validate(values)

    return make


def test_every_mistake_in_one_pass(config_of, tmp_path):
    (tmp_path / "a_file").write_text("")
    config = config_of(
        run_root=str(tmp_path / "a_file" / "runs"),
        cluster=str(tmp_path / "nowhere.yaml"),
        deepspeed={"extra": {"train_batch_size": 3}},
        data={"sources": {"mine": {"kind": "chat", "path": str(tmp_path / "gone.jsonl")}}},
    )
    with pytest.raises(UserError) as error:
        refuse_mistakes(config)
    said = str(error.value)
    assert said.startswith("4 mistakes:\n")
    for part in (
        "run_root=", "nowhere.yaml names no file", "deepspeed.extra.train_batch_size",
        "data.sources.mine: ", "gone.jsonl does not exist",
    ):  # fmt: skip
        assert part in said


def test_adapters_are_looked_at_by_the_names_of_the_weights(config_of, tmp_path):
    folder = tmp_path / "tokenizer"
    sizes = {
        "hidden_size": 8,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "vocab_size": 300,
        "intermediate_size": 16,
    }
    (folder / "config.json").write_text(
        json.dumps({"model_type": "llama", "tie_word_embeddings": True, **sizes})
    )
    names = ("self_attn.q_proj", "mlp.up_proj", "input_layernorm")
    save_file({f"model.layers.0.{n}.weight": np.zeros(1) for n in names}, folder / "model.safetensors")
    model = {"shape": None, "tokenizer": None, "path": str(folder)}
    config = config_of(
        model=model, lora={"rank": 4, "target_modules": ["q_projj"], "modules_to_save": ["embed_tokens"]}
    )
    with pytest.raises(UserError) as error:
        refuse_mistakes(config)
    said = str(error.value)
    assert "lora.target_modules has 'q_projj', which is no module of this model" in said
    assert "it has q_proj, up_proj. Did you mean 'q_proj'?" in said


def test_mistakes_of_the_schema_hide_no_missing_file(tmp_path):
    sources = {"mine": {"kind": "chat", "path": str(tmp_path / "gone.jsonl")}, "all": {"kind": "demo"}}
    values = {
        "name": "t",
        "seeed": 1,
        "data": {"sources": sources},
        "model": {"path": str(tmp_path / "none")},
    }
    with pytest.raises(UserError) as error:
        validate(values)
    said = str(error.value)
    for part in (
        "seeed: unknown key",
        "data.sources.mine.path=",
        "gone.jsonl does not exist",
        "model.path=",
        "none does not exist",
    ):
        assert part in said


def test_a_freeze_of_all_is_said_before_ranks(config_of):
    with pytest.raises(UserError, match=r"leave nothing to train.*narrow model\.freeze"):
        refuse_mistakes(config_of(model={"freeze": ["*"]}))


def test_a_wrong_model_path_is_called_a_model(config_of, tmp_path):
    (tmp_path / "tiny").mkdir()
    config = config_of(model={"shape": None, "tokenizer": None, "path": str(tmp_path / "tinny")})
    with pytest.raises(UserError, match=r"model\.path=.*tinny does not exist.*Did you mean 'tiny'\?"):
        refuse_mistakes(config)


def test_layers_with_state_and_shared_rows_are_refused_before_ranks(config_of, tmp_path):
    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "vocab_size": 300}
    words = {"model_type": "qwen3_next", "full_attention_interval": 4, "max_position_embeddings": 512}
    (tmp_path / "config.json").write_text(json.dumps(sizes | words))
    config = config_of(
        model={"shape": None, "path": str(tmp_path)}, train={"sequence_parallel": 2}, launch={"nproc": 2}
    )
    with pytest.raises(
        UserError, match=r"3 layers of this qwen3_next model keep a state.*sequence_parallel=1"
    ):
        refuse_mistakes(config)


def test_what_this_machine_hardly_wants(config_of, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    found = machine_warnings(
        config_of(launch={"nproc": 64}, model={"dtype": "bfloat16", "attention": "flash"})
    )
    assert [text.split(" ")[0] for text in found] == [
        "launch.nproc=64",
        "model.dtype=bfloat16",
        "model.attention=flash",
    ]
    assert machine_warnings(config_of()) == ()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert "more ranks than the 2 GPUs" in machine_warnings(config_of(launch={"nproc": 3}))[0]


def test_one_step_an_epoch_and_marks_that_are_not_read(config_of):
    said = check(config_of(train={"tokens_per_step": 128 * 1024}), limit=50).warnings
    assert any("an epoch is one step" in text for text in said)
    [marks] = [text for text in said if "look like marks" in text]
    assert "turn.boost_loss (40)" in marks


def test_nothing_that_can_be_rendered_names_the_reason_and_a_record(config_of, tmp_path):
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0}]}
    (tmp_path / "none.jsonl").write_text(json.dumps(row))
    config = config_of(data={"sources": {"mine": {"kind": "chat", "path": str(tmp_path / "none.jsonl")}}})
    with pytest.raises(
        UserError,
        match=r"data\.sources\.mine: none of its 1 examples.*1 no_target \(.*first: example [0-9a-f]{32}",
    ):
        check(config, limit=50)


def test_only_run_means_the_demo(capsys):
    for words in (["check"], ["train"], ["prepare", "--rebuild"], ["preview"]):
        assert main(words) == 2
        assert f"{words[0]} needs a config" in capsys.readouterr().err
    assert commands.run in commands.WITHOUT_CONFIG


def test_the_preview_is_spread_over_the_source(config_of, tmp_path):
    console = Console(width=100, record=True, no_color=True, file=(tmp_path / "out.txt").open("w"))
    preview(config_of(), console, per_source=2, html=None)
    text = console.export_text()
    shown = [line for line in text.splitlines() if "say" in line]
    assert len(shown) == 2
    assert not any("say 1<" in line for line in shown)


def test_a_jump_of_the_learning_rate_is_said_when_a_run_goes_on(config_of, tmp_path):
    old = config_of(optim={"warmup_share": 0.0}, train={"tokens_per_step": 512, "epochs": 2})
    new = config_of(optim={"warmup_share": 0.0}, train={"tokens_per_step": 512, "epochs": 4})
    prepared = prepare(new)
    folder = RunFolder(tmp_path / "runs" / "t")
    assert rate_jump(new, prepared, folder) == ""
    (folder.checkpoints / "step-00000002").mkdir(parents=True)
    folder.config.write_text(config_to_json(old))
    (folder.path / "plan.json").write_text('{"steps": 2}')
    said = rate_jump(new, prepared, folder)
    assert "the run goes on from step 2 with 8 steps in place of 2" in said
    assert "so the learning rate goes from 5e-06 to 8.54e-06 at step 3, where 5e-06 was planned" in said
    assert rate_jump(old, prepared, folder) == ""
