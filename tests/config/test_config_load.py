"""The door: composition order, all mistakes at once, other trainers' keys, no torch."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from sft_dist.config.load import config_from_json, config_to_json, group_choices, load_config
from sft_dist.core.errors import UserError


def test_without_arguments_it_is_the_embedded_demo() -> None:
    config = load_config()
    assert config.name == "demo"
    assert config.data.sources["demo"].kind == "demo"


@pytest.mark.parametrize("name", group_choices("experiment"))
def test_every_shipped_experiment_composes(name: str) -> None:
    assert load_config([f"experiment={name}"]).data.sources


@pytest.mark.parametrize("name", group_choices("launch"))
def test_every_shipped_launch_composes(name: str) -> None:
    load_config([f"launch={name}"])


def mine(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "my.yaml"
    file.write_text(text)
    return file


MINE = """
name: mine
model: {path: some/model}
data:
  sources:
    chat: {kind: chat, path: messages.jsonl, share: 0.25}
optim: {lr: 1.0e-4}
"""


def test_the_users_file_wins_over_defaults_and_overrides_win_over_the_file(tmp_path: Path) -> None:
    config = load_config(["optim.lr=2e-5", "train.epochs=2"], mine(tmp_path, MINE))
    assert (config.optim.lr, config.train.epochs, config.name) == (2e-5, 2, "mine")
    assert list(config.data.sources) == ["chat"]  # the demo is not mixed in


def test_a_users_file_may_build_on_a_shipped_experiment(tmp_path: Path) -> None:
    config = load_config([], mine(tmp_path, "defaults:\n  - experiment: demo\nname: mine\n"))
    assert config.name == "mine"
    assert "demo" in config.data.sources


def test_the_paths_of_the_mixture_follow_its_root() -> None:
    sources = load_config(["experiment=mixture", "data.root=/elsewhere"]).data.sources
    assert sources["flan"].path == "/elsewhere/flan-cot"
    generated = {n for n, s in sources.items() if s.kind == "examples"}
    assert all(s.path.startswith("/elsewhere/") for n, s in sources.items() if n not in generated)


def test_a_source_can_be_added_and_removed_on_the_command_line() -> None:
    config = load_config(["data.sources.extra.kind=alpaca", "data.sources.extra.path=x.jsonl"])
    assert set(config.data.sources) == {"demo", "extra"}
    assert set(load_config(["~data.sources.demo", "data.sources.x={kind: demo}"]).data.sources) == {"x"}


def test_all_mistakes_are_listed_at_once_each_with_path_and_remedy() -> None:
    with pytest.raises(UserError) as error:
        load_config(
            [
                "train.epoch=2",
                "optim.lr=fast",
                "data.sources.demo.sede=1",
                "pack.seq_len=500",
                "data.sources.x.kind=csv",
            ]
        )
    text = str(error.value)
    assert text.startswith("the config has 4 mistakes")
    assert "train.epoch: unknown key. Did you mean 'epochs'?" in text
    assert 'optim.lr="fast"' in text
    assert "data.sources.demo.sede: unknown key. Did you mean 'seed'?" in text
    assert "data.sources.x.kind" in text


def test_cross_field_mistakes_name_a_value_that_works() -> None:
    with pytest.raises(UserError, match="not a multiple of pack.seq_len=500.*use 4000"):
        load_config(["pack.seq_len=500", "train.tokens_per_step=4096"])
    with pytest.raises(UserError, match="model.path and model.shape are both set"):
        load_config(["model.path=x"])
    with pytest.raises(UserError, match=r"checkpoint.keep_best=1, but neither train.eval_every_steps"):
        load_config(["checkpoint.keep_best=1"])
    with pytest.raises(UserError, match="deepspeed.stage=0.*bfloat16"):
        load_config(["deepspeed.stage=0", "model.dtype=bfloat16"])


@pytest.mark.parametrize(
    ("key", "ours"),
    [
        ("per_device_train_batch_size=8", "train.tokens_per_step"),
        ("train.learning_rate=1", "optim.lr"),
        ("max_seq_length=10", "pack.seq_len"),
    ],
)
def test_another_trainers_key_is_answered_with_ours(key: str, ours: str) -> None:
    with pytest.raises(UserError, match=ours):
        load_config([key])


def test_a_wrong_choice_lists_the_choices() -> None:
    with pytest.raises(UserError, match="experiment has: .*demo"):
        load_config(["experiment=dmo"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1\n- 2\n", "holds a list"),
        ("a: [1\n", "not readable as YAML"),
        ("data: {sources: {x: {kind: demo}, x: {kind: demo}}}", "'x' stands twice, again on line 1"),
        ("defaults:\n  - nothing: x\n", "names no config group"),
    ],
)
def test_a_users_file_that_is_no_config_is_one_clear_error(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config([], mine(tmp_path, text))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.yaml does not exist"):
        load_config([], tmp_path / "nowhere.yaml")


def test_the_frozen_config_comes_back_equal() -> None:
    config = load_config(["train.max_steps=3", "optim.betas=[0.8,0.9]"])
    assert config_from_json(config_to_json(config)) == config


def test_a_config_is_immutable() -> None:
    config = load_config()
    with pytest.raises(ValueError, match="frozen"):
        config.optim.lr = 1.0  # type: ignore[misc]


TORCH_FREE = (
    "sft_dist.config.load",
    "sft_dist.sources",
    "sft_dist.holdout",
    "sft_dist.filters",
    "sft_dist.render.renderer",
    "sft_dist.shards",
    "sft_dist.mix",
    "sft_dist.pack",
    "sft_dist.batch.planner",
    "sft_dist.report.run",
    "sft_dist.pipelines.data.check",
    "sft_dist.pipelines.train.command",
    "sft_dist.pipelines.cluster.submit",
    "sft_dist.pipelines.cluster.doctor",
    "sft_dist.pipelines.sweep.run",
    "sft_dist.cli",
)


def test_data_planning_and_reports_never_load_torch() -> None:
    """At run time: torch could arrive through another library, which no import contract sees."""
    code = f"""
import importlib, sys
for name in {TORCH_FREE!r}:
    importlib.import_module(name)
    found = [m for m in ("torch", "deepspeed", "transformers") if m in sys.modules]
    assert not found, (name, found)
from sft_dist.config.load import load_config
load_config()
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "launch=null",
            "'launch=null' picks nothing from launch/; use one of (.*)gpu8, (.*)or ~launch for none",
        ),
        ("experiment=", "use one of (.*)demo, (.*)or ~experiment for none"),
        ("experiment=missing", "experiment has: (.*)demo(.*)mixture"),
        ("+=3", "cannot be composed"),
        ("optim.lr=1e-5,2e-5", "'optim.lr=1e-5,2e-5' has several values(.*)sft-dist sweep"),
        ("optim.lr=range(1,5)", "'optim.lr=range(1,5)' has several values"),
        ("optim.lr=[1", "cannot be composed: no viable alternative"),
        ("optim.lr=[1", "close every bracket and quote"),
        ("name=a:%b`c", "put a value with special characters in quotes"),
        ("optim.lr=${nope}", "Interpolation key 'nope' not found"),
        ("hydra.run.dir=x", "sets Hydra itself"),
    ],
)
def test_what_cannot_be_composed_is_one_line(override: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        load_config([override])
    assert re.search(re.escape(said).replace(re.escape("(.*)"), ".*"), str(error.value))
    assert "\n" not in str(error.value)
    assert "multirun" not in str(error.value)


@pytest.mark.parametrize("path", ["~", "~/data", "~/my data/x", "~someone/x"])
def test_a_home_folder_needs_no_quotes(path: str) -> None:
    assert load_config([f"data.dir={path}"]).data.dir == path
