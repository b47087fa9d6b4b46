"""Gemma 4 and Qwen3.5, tiny: train on two ranks under ZeRO-3, packed, whole and by adapters; export; evaluate."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from ranks import on_ranks
from safetensors.torch import load_file

from sft_dist.core.files import read_json
from sft_dist.core.runfolder import RunFolder
from sft_dist.pipelines.evaluate import command

Sft = Callable[..., tuple[int, str, str]]

LORA = ("lora.rank=4", "lora.alpha=64")
# run -> (model type, its towers beside the text, what differs from the project's config)
RUNS: dict[str, tuple[str, bool, tuple[str, ...]]] = {
    "gemma4": ("gemma4", True, ()),
    "gemma4-lora": ("gemma4_text", False, (*LORA, "lora.export=adapter")),
    "qwen3_5": ("qwen3_5_text", False, ("model.gradient_checkpointing=true",)),
    "qwen3_5-lora": ("qwen3_5", True, LORA),
    "qwen3_5-moe": ("qwen3_5_moe_text", False, ()),
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_heads": 2,
    "depth": 1,
    "out_hidden_size": 32,
    "patch_size": 8,
}
VISION |= {
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "position_embedding_size": 16,
}


def save_base(model_type: str, towers: bool, folder: Path, tokenizer_from: Path) -> None:
    """Write a tiny random checkpoint that has the tokenizer of another."""
    import transformers

    from sft_dist.render.renderer import Renderer
    from sft_dist.render.tokenizer import TextTokenizer

    tokenizer = TextTokenizer.load(str(tokenizer_from))
    text = tiny.config_of(model_type)
    sizes = {"vocab_size", "vocab_size_per_layer_input", "unpadded_vocab_size"} & set(text.to_dict())
    special = {"eos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.pad_id}
    special["bos_token_id"] = tokenizer.eos_id  # some classes want one
    text.update({**dict.fromkeys(sizes, tokenizer.vocab_size), **special})
    torch.manual_seed(0)
    if towers:
        config = transformers.CONFIG_MAPPING[model_type](text_config=text.to_dict(), vision_config=VISION)
        model: Any = transformers.AutoModelForImageTextToText.from_config(config)
    else:
        model = transformers.AutoModelForCausalLM.from_config(text)
    model.save_pretrained(folder)
    tokenizer.save(folder, template_text=Renderer(tokenizer, template="chatml").template_text)


def in_this_process(folder: RunFolder, module: str, **_: Any) -> int:
    """What `run_ranks` does with one rank, without a launch."""
    before, sys.argv = sys.argv, [module, "--run-dir", str(folder.path)]
    try:
        return command.main()
    finally:
        sys.argv = before


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_train_export_evaluate(
    sft: Sft, project: Path, base_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bases = {name: project / f"base-{name}" for name in RUNS}
    for name, (model_type, towers, overrides) in RUNS.items():
        save_base(model_type, towers, bases[name], base_model)
        words = [
            "my.yaml", f"model.path={bases[name]}", "train.max_steps=3", "optim.lr=0.01", "eval.max_examples_per_task=1", "eval.probes=[]",
            "eval.base=false", "launch.nproc=1", *overrides,
        ]  # fmt: skip
        if name == next(iter(RUNS)):
            code, _, err = sft("prepare", *words)
            assert code == 0, err
        code, _, err = sft("write-run", *words, "--run-dir", str(project / "runs" / name))
        assert code == 0, err
    on_ranks(2, Path(__file__).with_name("train_runs.py"), *(str(project / "runs" / name) for name in RUNS))

    monkeypatch.setattr(command, "run_ranks", in_this_process)
    for name in RUNS:
        run = project / "runs" / name
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        losses = [m["loss"] for m in lines if m["kind"] == "train"]
        assert losses[-1] < losses[0], name
        code, _, err = sft("evaluate", str(run))
        assert code == 0, (name, err)
        assert read_json(run / "eval/scores.json")["sets"]["seen"]["tasks"], name
        check_export(bases[name], run / "export", adapter="lora.export=adapter" in RUNS[name][2])


def check_export(base: Path, out: Path, *, adapter: bool) -> None:
    """The names of the base, its towers bit for bit, and plain transformers (or peft) opens it without a word."""
    import transformers

    if adapter:
        from peft import PeftModel

        model = transformers.AutoModelForCausalLM.from_pretrained(base)
        before = model.get_input_embeddings().weight.sum()
        loaded = PeftModel.from_pretrained(model, out)
        assert any(float(p.abs().max()) > 0 for n, p in loaded.named_parameters() if "lora_B" in n)
        assert loaded.get_input_embeddings().weight.sum() == before
        return
    old, new = load_file(base / "model.safetensors"), load_file(out / "model.safetensors")
    assert {n: t.shape for n, t in new.items()} == {n: t.shape for n, t in old.items()}
    moved = {n for n in old if not torch.equal(old[n], new[n])}
    assert moved
    assert not {n for n in moved if "vision" in n or "visual" in n}
    config = read_json(out / "config.json")
    kind = getattr(transformers, config["architectures"][0])
    _, info = kind.from_pretrained(out, output_loading_info=True)
    assert not any(info[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
