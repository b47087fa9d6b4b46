"""An export is the trained model under the names of its base: merged, partly frozen, routed, grown, image-text, tied."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import families
import pytest
import tiny
import torch
from loading import load
from safetensors.torch import load_file, save_file
from torch import Tensor

from sft_dist.checkpoint import export, io
from sft_dist.checkpoint.export import export_checkpoint
from sft_dist.checkpoint.export_plan import Base
from sft_dist.config.model import LoraConfig
from sft_dist.core.errors import UserError
from sft_dist.core.files import read_json

IDS = torch.tensor([[5, 9, 3, 77, 20, 1, 64, 8, 30, 31, 32]])


class Tokens:
    """What the export needs of a tokenizer."""

    pad_id, bos_id, vocab_size = 0, None, 128

    def text_of(self, token: int) -> str:
        return f"<{token}>"

    def save(self, folder: Path, **options: Any) -> None:
        (folder / "tokenizer.json").write_text("{}")


def trained(folder: Path, **options: Any) -> Any:
    """A loaded model whose trained weights have moved, as training would move them."""
    hf = load(folder, **options).module.hf
    g = torch.Generator().manual_seed(1)
    for parameter in hf.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn(parameter.shape, generator=g) * 0.05
    return hf.eval()


def checkpoint_of(hf: Any, root: Path) -> Path:
    """Write what is trained as a checkpoint of two slices a parameter."""
    weights = {n: p.detach().flatten() for n, p in hf.named_parameters() if p.requires_grad}
    files: dict[str, Any] = {}
    root.mkdir(parents=True, exist_ok=True)
    for rank in range(2):
        cut = {
            n: (0, w.numel() // 2) if rank == 0 else (w.numel() // 2, w.numel()) for n, w in weights.items()
        }
        parts = {"weights": {f"master/{n}": weights[n][a:b].contiguous() for n, (a, b) in cut.items()}}
        files |= io.write_part(root / ".aside", rank, parts, {n: [a, b - a] for n, (a, b) in cut.items()})
    shapes = {n: list(p.shape) for n, p in hf.named_parameters() if p.requires_grad}
    index = {
        "format": io.FORMAT, "position": {"step": 1, "epoch": 0, "epoch_step": 1}, "optimizer_step": 1, "facts": {},
        "parameters": shapes, "states": {n: [] for n in shapes}, "optimizer": False,
    }  # fmt: skip
    io.commit(root / ".aside", root / "step", index, files)
    return root / "step"


def write(hf: Any, base: Base, root: Path, **options: Any) -> Path:
    out = root / "out"
    export_checkpoint(
        checkpoint_of(hf, root), base, out, dtype="float32", tokenizer=Tokens(), template_text="", stop_ids=[2], **options
    )  # fmt: skip
    return out


@torch.no_grad()
def logits_of(model: Any) -> Tensor:
    return model(IDS, use_cache=False).logits


def own(hf: Any) -> Tensor:
    """The logits of the model as it was trained, through transformers' own attention."""
    hf.set_attn_implementation("eager")
    return logits_of(hf)


def reloaded(folder: Path, auto: str = "AutoModelForCausalLM") -> Any:
    import transformers

    model, info = getattr(transformers, auto).from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32, output_loading_info=True
    )
    assert not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


@pytest.mark.parametrize("family", sorted(families.FAMILIES))
def test_every_family_comes_back_with_the_names_of_its_base(family: str, tmp_path: Path) -> None:
    base = families.save(family, tmp_path / "base")
    hf = trained(base)
    out = write(hf, Base(path=str(base)), tmp_path)
    assert load_file(out / "model.safetensors").keys() == load_file(base / "model.safetensors").keys()
    torch.testing.assert_close(logits_of(reloaded(out)), own(hf), rtol=1e-5, atol=1e-5)
    assert read_json(out / "config.json")["architectures"] == [families.FAMILIES[family][0]]
    generation, config = read_json(out / "generation_config.json"), read_json(out / "config.json")
    assert generation["eos_token_id"][0] == 2
    assert {**config, **config.get("text_config", {})}["eos_token_id"] == generation["eos_token_id"]
    assert "_from_model_config" not in generation


@pytest.mark.parametrize("model_type", ["hrm_text", "lara_mini"])
def test_parameters_that_files_hold_as_one_tensor(model_type: str, tmp_path: Path) -> None:
    """Queries, keys, values and gates of a layer, or the parts of a projection into a layer with state."""
    base = tiny.save(model_type, tmp_path / "base")
    hf = trained(base)
    out = write(hf, Base(path=str(base)), tmp_path)
    before, after = load_file(base / "model.safetensors"), load_file(out / "model.safetensors")
    assert {n: t.shape for n, t in after.items()} == {n: t.shape for n, t in before.items()}
    again = reloaded(out).state_dict()
    for name, parameter in hf.named_parameters():
        assert torch.equal(again[name], parameter), name


LORAS = {
    "lora": LoraConfig(rank=4, alpha=8.0),
    "dora": LoraConfig(rank=4, alpha=8.0, dora=True),
    "rslora": LoraConfig(rank=4, alpha=8.0, rslora=True, target_modules=("q_proj", "up_proj")),
    "saved": LoraConfig(
        rank=2, alpha=8.0, target_modules=("v_proj",), modules_to_save=("lm_head", "embed_tokens")
    ),
    # embedding and output projection are one matrix, in the model and in the export
    "tied": LoraConfig(rank=2, alpha=8.0, modules_to_save=("lm_head",)),
    # experts that lie apart in the files, [output, input], and in one tensor, [input, output]
    "experts": LoraConfig(
        rank=2,
        alpha=8.0,
        target_modules=("q_proj",),
        target_parameters=("experts.gate_up_proj", "experts.down_proj"),
    ),
    "experts_in_one": LoraConfig(
        rank=2, alpha=8.0, target_parameters=("mlp.experts.gate_up_proj", "mlp.experts.down_proj")
    ),
}
ADAPTED = {"experts": "qwen3_moe", "experts_in_one": "gpt_oss", "tied": "llama"}  # else qwen3


@pytest.mark.parametrize("kind", sorted(LORAS))
def test_a_merged_export_is_the_adapted_model(kind: str, tmp_path: Path) -> None:
    base = families.save(ADAPTED.get(kind, "qwen3"), tmp_path / "base")
    hf = trained(base, lora=LORAS[kind])
    out = write(hf, Base(path=str(base), lora=LORAS[kind]), tmp_path)
    assert load_file(out / "model.safetensors").keys() == load_file(base / "model.safetensors").keys()
    torch.testing.assert_close(logits_of(reloaded(out)), own(hf), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(logits_of(reloaded(out)), logits_of(reloaded(base)), atol=1e-3)


@pytest.mark.parametrize("kind", sorted(LORAS))
def test_an_adapter_folder_opens_with_peft(kind: str, tmp_path: Path) -> None:
    from peft import PeftModel

    base = families.save(ADAPTED.get(kind, "qwen3"), tmp_path / "base")
    hf = trained(base, lora=LORAS[kind])
    out = write(hf, Base(path=str(base), lora=LORAS[kind]), tmp_path, as_adapter=True)
    assert not (out / "model.safetensors").exists()
    assert read_json(out / "adapter_config.json")["base_model_name_or_path"] == str(base)
    adapted = PeftModel.from_pretrained(reloaded(base), out).eval()
    torch.testing.assert_close(logits_of(adapted), own(hf), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("model_type", ["deepseek_v3", "afmoe", "glm4_moe"])
def test_adapters_sit_on_every_linear_and_on_no_expert(model_type: str, tmp_path: Path) -> None:
    """peft would take gate_proj and its like for the routed experts, and leave the shared ones and dense layers as they are."""
    base = tiny.save(model_type, tmp_path / "base")
    lora = LoraConfig(rank=2, alpha=8.0)
    hf = trained(base, lora=lora)
    adapted = {n.partition(".lora_")[0] for n, p in hf.named_parameters() if p.requires_grad}
    plain = reloaded(base)
    linear = {n for n, m in plain.model.named_modules(prefix="model") if isinstance(m, torch.nn.Linear)}
    assert adapted == linear
    assert any("shared" in n or "layers.0.mlp" in n for n in adapted)
    out = write(hf, Base(path=str(base), lora=lora), tmp_path)
    torch.testing.assert_close(logits_of(reloaded(out)), own(hf), rtol=1e-5, atol=1e-5)
    with pytest.raises(UserError, match="peft takes gate_proj, up_proj and down_proj for the routed experts"):
        trained(base, lora=lora.model_copy(update={"export": "adapter"}))
    attention = lora.model_copy(update={"export": "adapter", "target_modules": ("o_proj",)})
    assert trained(base, lora=attention) is not None


def test_an_adapter_that_would_not_fit_its_base_is_refused(tmp_path: Path) -> None:
    base = families.save("qwen3", tmp_path / "base")
    hf = trained(base, lora=LORAS["lora"])
    with pytest.raises(UserError, match="would lose model.vocab_multiple.*lora.export=merged"):
        write(hf, Base(path=str(base), lora=LORAS["lora"], vocab_multiple=64), tmp_path, as_adapter=True)
    with pytest.raises(UserError, match="trained the weights themselves"):
        write(hf, Base(path=str(base)), tmp_path / "b", as_adapter=True)


def test_frozen_parts_and_buffers_are_those_of_the_base(tmp_path: Path) -> None:
    from transformers import Glm4MoeConfig, Glm4MoeForCausalLM

    torch.manual_seed(0)
    shape = {
        **families.SHAPE,
        **families.EXPERTS,
        "n_routed_experts": 4,
        "first_k_dense_replace": 1,
        "n_group": 1,
        "topk_group": 1,
    }
    model = Glm4MoeForCausalLM(Glm4MoeConfig(**{k: v for k, v in shape.items() if k != "num_experts"}))
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):  # persistent, no parameter: routing depends on it
            buffer.copy_(torch.randn(buffer.shape))
    base = tmp_path / "base"
    model.save_pretrained(base)
    hf = trained(base, freeze=("embeddings", "layers[:1]"))
    before, after = (
        load_file(f / "model.safetensors") for f in (base, write(hf, Base(path=str(base)), tmp_path))
    )
    assert before.keys() == after.keys()
    still = {n for n in before if torch.equal(before[n], after[n])}
    assert {n for n in before if "layers.0." in n or "embed_tokens" in n or "correction_bias" in n} == still
    torch.testing.assert_close(logits_of(reloaded(tmp_path / "out")), own(hf), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "qwen3"])  # tied and not
@pytest.mark.parametrize("frozen", [(), ("embeddings", "head")])
def test_added_rows_are_exported(family: str, frozen: tuple[str, ...], tmp_path: Path) -> None:
    base = families.save(family, tmp_path / "base")
    hf = trained(base, vocab_multiple=48, min_vocab_size=130, freeze=frozen)
    out = write(hf, Base(path=str(base), vocab_multiple=48), tmp_path)
    assert read_json(out / "config.json")["vocab_size"] == 144
    model = reloaded(out)
    assert model.get_input_embeddings().weight.shape[0] == 144
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == (family == "llama")
    torch.testing.assert_close(logits_of(model), own(hf), rtol=1e-5, atol=1e-5)
    if frozen:
        old = reloaded(base).get_input_embeddings().weight
        torch.testing.assert_close(model.get_input_embeddings().weight[140], old.mean(0))


def test_a_stale_second_name_of_a_tied_matrix_is_not_copied(tmp_path: Path) -> None:
    base = families.save("llama", tmp_path / "base")
    weights = load_file(base / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    hf = trained(base)
    out = write(hf, Base(path=str(base)), tmp_path)
    assert "lm_head.weight" not in load_file(out / "model.safetensors")
    torch.testing.assert_close(logits_of(reloaded(out)), own(hf), rtol=1e-5, atol=1e-5)


def test_many_files_are_written_by_many_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = families.save("qwen3_moe", tmp_path / "base")
    hf = trained(base, freeze=("head",))
    whole = load_file(write(hf, Base(path=str(base)), tmp_path / "one") / "model.safetensors")
    monkeypatch.setattr(export, "SHARD_BYTES", 20_000)
    step, out, aside = checkpoint_of(hf, tmp_path), tmp_path / "out", tmp_path / ".out.partial"
    others: dict[str, bytes] = {}

    def restore() -> None:
        """The first process clears the folder before the others write; here it runs last."""
        if aside.exists():
            for name, data in others.items():
                (aside / name).write_bytes(data)

    for i in (1, 2, 0):
        aside.mkdir(exist_ok=True)
        export_checkpoint(
            step, Base(path=str(base)), out, dtype="float32", tokenizer=Tokens(), template_text="", stop_ids=[2],
            part=(i, 3), barrier=restore,
        )  # fmt: skip
        others |= {f.name: f.read_bytes() for f in aside.iterdir()} if aside.exists() else {}
    index = read_json(out / "model.safetensors.index.json")
    assert index["weight_map"].keys() == whole.keys()
    for name, file in index["weight_map"].items():
        assert torch.equal(load_file(out / file)[name], whole[name])


def test_another_base_is_refused(tmp_path: Path) -> None:
    hf = trained(families.save("qwen3", tmp_path / "base"))
    other = families.save("llama", tmp_path / "other")
    with pytest.raises(UserError, match="parameters that .*other does not have"):
        write(hf, Base(path=str(other)), tmp_path)


@pytest.mark.parametrize("name", ["Gemma3ForConditionalGeneration", "Qwen2_5_VLForConditionalGeneration"])
def test_the_text_part_of_an_image_text_model_is_trained_and_exported_whole(
    name: str, tmp_path: Path
) -> None:
    base = families.save_image_text(name, tmp_path / "base")
    hf = trained(base)
    frozen = {n for n, p in hf.named_parameters() if not p.requires_grad}
    assert frozen == {n for n, _ in hf.named_parameters() if "vis" in n or "projector" in n}
    out = write(hf, Base(path=str(base)), tmp_path)
    before, after = (load_file(f / "model.safetensors") for f in (base, out))
    assert before.keys() == after.keys()
    for key in before:
        assert torch.equal(before[key], after[key]) == ("vis" in key or "projector" in key), key
    model = reloaded(out, "AutoModelForImageTextToText")
    torch.testing.assert_close(logits_of(model), own(hf), rtol=1e-5, atol=1e-5)
    assert json.loads((out / "config.json").read_text())["architectures"] == [name]


def test_lora_leaves_the_towers_of_an_image_text_model_alone(tmp_path: Path) -> None:
    lora = LoraConfig(rank=2, alpha=4.0)
    base = families.save_image_text("Qwen2_5_VLForConditionalGeneration", tmp_path / "base")
    hf = trained(base, lora=lora)
    assert all("language_model" in n for n, p in hf.named_parameters() if p.requires_grad)
    out = write(hf, replace(Base(path=str(base)), lora=lora), tmp_path)
    model = reloaded(out, "AutoModelForImageTextToText")
    torch.testing.assert_close(logits_of(model), own(hf), rtol=1e-5, atol=1e-5)


def test_the_ends_of_the_base_stay_behind_ours_and_both_configs_agree(tmp_path: Path) -> None:
    base = families.save("qwen3", tmp_path / "base")
    ids = {"eos_token_id": [9, 8, 2], "bos_token_id": 5}
    (base / "generation_config.json").write_text(json.dumps({**ids, "temperature": 0.6, "do_sample": True}))
    (base / "config.json").write_text(
        json.dumps({**read_json(base / "config.json"), **ids, "eos_token_id": 9})
    )
    out = write(trained(base), Base(path=str(base)), tmp_path)
    generation, config = read_json(out / "generation_config.json"), read_json(out / "config.json")
    for written in (generation, config):
        assert (written["eos_token_id"], written["bos_token_id"]) == ([2, 9, 8], 5)
    assert (generation["temperature"], generation["do_sample"]) == (0.6, True)
    assert reloaded(out).generation_config.eos_token_id == [2, 9, 8]


def test_weights_have_the_permissions_of_the_umask(tmp_path: Path) -> None:
    base = families.save("qwen3", tmp_path / "base")
    hf = trained(base)
    before = os.umask(0o027)
    try:
        out = write(hf, Base(path=str(base)), tmp_path)
    finally:
        os.umask(before)
    assert {p.name: oct(p.stat().st_mode & 0o777) for p in out.iterdir() if p.is_file()} == {
        p.name: "0o640" for p in out.iterdir() if p.is_file()
    }
