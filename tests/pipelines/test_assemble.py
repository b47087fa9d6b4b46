"""What the config says of the model reaches load and export; a whole run with adapters."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from sft_dist.config.auto import supposed
from sft_dist.config.load import load_config
from sft_dist.config.model import LoraConfig, ModelConfig, RopeScalingConfig
from sft_dist.core.errors import UserError
from sft_dist.core.files import read_json
from sft_dist.core.runfolder import RunFolder
from sft_dist.evals.generate import load_model
from sft_dist.model import weight_files
from sft_dist.pipelines.train import engine

Sft = Callable[..., tuple[int, str, str]]

LORA = [
    "lora.rank=4",
    "lora.alpha=8",
    "lora.dropout=0.1",
    "lora.target_modules=[q_proj]",
    "lora.modules_to_save=[norm]",
]
MODEL = ["model.rope_scaling.type=linear", "model.rope_scaling.factor=2", "model.vocab_multiple=64"]
WANTED = LoraConfig(
    rank=4,
    alpha=8.0,
    dropout=0.1,
    target_modules=("q_proj",),
    modules_to_save=("norm",),
    dora=True,
    rslora=True,
)


class Called(Exception):
    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def asked_for(
    project: Path, base_model: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str
) -> dict[str, Any]:
    from sft_dist.render.tokenizer import TextTokenizer

    def stop(path: str, model: ModelConfig, **options: Any) -> None:
        raise Called({"path": path, "model": model, **options})

    monkeypatch.setattr(engine, "load_packed", stop)
    config = supposed(load_config(list(overrides), project / "my.yaml"))
    with pytest.raises(Called) as caught:
        engine.build_engine(config, RunFolder(project / "run"), TextTokenizer.load(str(base_model)))
    return caught.value.options


def test_every_field_reaches_the_loader(
    project: Path, base_model: Path, group: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = asked_for(project, base_model, monkeypatch, *LORA, *MODEL, "lora.dora=true", "lora.rslora=true")
    assert options["lora"] == WANTED
    assert options["path"] == options["model"].path == str(base_model)
    assert options["model"].rope_scaling == RopeScalingConfig(type="linear", factor=2.0)
    assert (options["model"].vocab_multiple, options["seq_len"]) == (64, 128)
    parts = asked_for(
        project, base_model, monkeypatch, "model.trainable=[head,'layers[1:]']", "model.freeze=['*norm*']"
    )
    model = parts["model"]
    assert (model.trainable, model.freeze, parts["lora"]) == (("head", "layers[1:]"), ("*norm*",), None)
    four_bits = asked_for(project, base_model, monkeypatch, "lora.quantize_base=nf4", "deepspeed.stage=2")
    assert four_bits["lora"].quantize_base == "nf4"


def test_every_field_reaches_the_export(project: Path) -> None:
    config = load_config(
        [*LORA, *MODEL, "lora.dora=true", "lora.rslora=true", "model.revision=abc"], project / "my.yaml"
    )
    base = engine.export_base(config, "m")
    assert (base.path, base.revision, base.vocab_multiple) == ("m", "abc", 64)
    assert (base.lora, base.rope_scaling) == (WANTED, RopeScalingConfig(type="linear", factor=2.0))
    assert not engine.exports_adapter(config)
    assert engine.exports_adapter(load_config([*LORA, "lora.export=adapter"], project / "my.yaml"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["lora.rank=4", "model.freeze=[head]"], "so it is unclear what is trained"),
        (
            ["lora.rank=4", "lora.quantize_base=nf4", "deepspeed.stage=3"],
            "cannot partition 4-bit weights; use deepspeed.stage=2",
        ),
        (["model.rope_scaling.factor=1"], "model.rope_scaling.factor"),
        (
            ["lora.export=adapter", "model.rope_scaling.factor=2"],
            "lora.export=adapter would lose model.rope_scaling",
        ),
        (
            ["lora.export=adapter", "model.vocab_multiple=64"],
            "lora.export=adapter would lose model.vocab_multiple",
        ),
    ],
)
def test_what_contradicts_itself_is_refused(project: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config(overrides, project / "my.yaml")


def test_rows_beyond_the_models_positions_are_refused_before_a_run(sft: Sft, project: Path) -> None:
    code, _, err = sft("check", "my.yaml", "pack.seq_len=512")
    assert code == 2
    assert "more than the 256 positions" in err
    assert (
        sft(
            "check",
            "my.yaml",
            "pack.seq_len=512",
            "model.rope_scaling.type=yarn",
            "model.rope_scaling.factor=2",
        )[0]
        == 0
    )


@pytest.mark.slow
def test_a_run_with_adapters_ends_in_a_folder_that_is_evaluated(
    sft: Sft, project: Path, base_model: Path
) -> None:
    run = project / "runs/mine"
    code, _, err = sft(
        "train", "my.yaml", "lora.rank=4", "train.max_steps=4", "lora.export=adapter", "optim.lr=0.01"
    )
    assert code == 0, err
    assert (run / "export/adapter_model.safetensors").is_file()
    assert not (run / "export/model.safetensors").exists()
    trained_from = weight_files.base_fingerprint(str(base_model), None)
    assert read_json(run / "env.json")["model"] == {
        "path": str(base_model),
        "commit": None,
        "fingerprint": trained_from,
        "attention": "sdpa_per_doc",
        "recurrent": None,
    }
    assert read_json(run / "export/base_model.json") == {"fingerprint": trained_from}
    index = read_json(run / "checkpoints/step-00000004/index.json")
    assert index["parameters"]
    assert all(".lora_" in n for n in index["parameters"])
    code, _, err = sft("evaluate", str(run))
    assert code == 0, err
    assert read_json(run / "eval/scores.json")["sets"]["seen"]["tasks"]

    # the base lies elsewhere now: the same run; then it is another model: nothing goes on with it
    moved = project / "moved"
    shutil.copytree(base_model, moved)
    words = ["my.yaml", "lora.rank=4", "lora.export=adapter", "optim.lr=0.01", f"model.path={moved}"]
    code, _, err = sft("train", *words, "train.max_steps=5")
    assert code == 0, err
    weights = load_file(moved / "model.safetensors")
    save_file({n: 1.01 * t for n, t in weights.items()}, moved / "model.safetensors", {"format": "pt"})
    code, _, err = sft("train", *words, "train.max_steps=6")
    assert code == 2
    assert "was trained from another base" in err
    code, _, err = sft("export", str(run), "--out", str(project / "out"))
    assert code == 2
    assert "is another model now than the one that training started from" in err
    with pytest.raises(UserError, match="was trained on another model"):
        load_model(str(run / "export"))
