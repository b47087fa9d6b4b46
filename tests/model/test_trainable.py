"""Which parameters train: parts by name, slices of layers, globs; what matches nothing is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import families
import pytest
import tiny
import torch
from loading import load

from sft_dist.config.model import LoraConfig
from sft_dist.core.errors import UserError


def trained(folder: Path, **options: Any) -> set[str]:
    hf = load(folder, **options).module.hf
    return {n for n, p in hf.named_parameters() if p.requires_grad}


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return families.save("qwen3", tmp_path_factory.mktemp("m") / "qwen3")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return families.save("llama", tmp_path_factory.mktemp("m") / "llama")


EMBED, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"


def test_parts_by_name_slice_and_glob(qwen3: Path) -> None:
    every = trained(qwen3)
    first = {n for n in every if n.startswith("model.layers.0.")}
    assert {EMBED, HEAD, NORM} <= every
    assert trained(qwen3, freeze=("embeddings", "layers[:1]")) == every - first - {EMBED}
    assert trained(qwen3, trainable=("layers[-1:]", "head")) == {n for n in every if "layers.1." in n} | {
        HEAD
    }
    assert trained(qwen3, trainable=("*.q_proj.weight",)) == {n for n in every if "q_proj" in n}
    assert trained(qwen3, trainable=("model.layers.0",), freeze=("*norm*",)) == {
        n for n in first if "norm" not in n
    }


def test_a_tied_head_is_the_embedding(llama: Path) -> None:
    assert EMBED not in trained(llama, freeze=("head",))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"freeze": ("embedings",)}, "model.freeze has 'embedings', which matches no parameter.*use embeddings, head"),
        ({"trainable": ("layers[7:]",)}, r"model.trainable has 'layers\[7:\]', which matches no parameter"),
        ({"freeze": ("*",)}, "leave nothing to train"),
        ({"lora": LoraConfig(rank=2, alpha=2.0, target_modules=("wq",))}, "'wq', which is no Linear of this model's decoder.*it has: .*q_proj"),
        ({"lora": LoraConfig(rank=2, alpha=2.0, target_modules=("lm_head",))}, "lora.modules_to_save"),
        ({"lora": LoraConfig(rank=2, target_parameters=("q_proj.weight",))}, "no matrix of this model's decoder outside of its Linear modules"),
        ({"lora": LoraConfig(rank=2, alpha=2.0, modules_to_save=("head",))}, "'head', which is no module of this model"),
    ],
)  # fmt: skip
def test_what_matches_nothing_is_refused(qwen3: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        trained(qwen3, **options)


def test_adapters_by_glob_over_whole_names(qwen3: Path) -> None:
    lora = LoraConfig(rank=2, alpha=2.0, target_modules=("layers.1.self_attn.[qk]_proj", "down_proj"))
    adapted = {n.partition(".lora_")[0] for n in trained(qwen3, lora=lora)}
    attention = {f"model.layers.1.self_attn.{side}_proj" for side in "qk"}
    assert adapted == attention | {f"model.layers.{i}.mlp.down_proj" for i in (0, 1)}


@pytest.mark.parametrize("model_type", ["zamba", "zamba2"])
def test_modules_that_layers_share_are_left_out(model_type: str, tmp_path: Path) -> None:
    base = tiny.save(model_type, tmp_path)
    assert not any("shared_transf" in n for n in trained(base, lora=LoraConfig(rank=2, alpha=2.0)))
    with pytest.raises(UserError, match="which cannot be adapted in zamba.*several layers share the module"):
        trained(base, lora=LoraConfig(rank=2, alpha=2.0, target_modules=("q_proj",)))


@pytest.mark.parametrize(
    ("model_type", "own"), [("deepseek_v4", "o_a_proj"), ("llama4_text", "router"), ("phimoe", "router")]
)
def test_a_linear_that_computes_something_else_is_left_out(model_type: str, own: str, tmp_path: Path) -> None:
    base = tiny.save(model_type, tmp_path)
    adapted = {n for n in trained(base, lora=LoraConfig(rank=2, alpha=2.0)) if ".lora_" in n}
    assert adapted
    assert not [n for n in adapted if f".{own}." in n]
    with pytest.raises(
        UserError, match=f"{own}, which cannot be adapted in {model_type}.*more than a product"
    ):
        trained(base, lora=LoraConfig(rank=2, alpha=2.0, target_modules=(own,)))


def test_adapters_that_no_file_could_hold_merged_are_refused_at_the_start(tmp_path: Path) -> None:
    base = tiny.save("hrm_text", tmp_path)
    with pytest.raises(UserError, match="hold with others as one tensor.*lora.export=adapter"):
        trained(base, lora=LoraConfig(rank=2, alpha=2.0))
    assert trained(base, lora=LoraConfig(rank=2, alpha=2.0, export="adapter"))


@pytest.mark.parametrize("model_type", ["gemma3n_text"])
def test_a_linear_in_a_list_is_adapted_and_layers_are_not(model_type: str, tmp_path: Path) -> None:
    names = trained(tiny.save(model_type, tmp_path), lora=LoraConfig(rank=2, alpha=2.0))
    linear = {n for n, m in tiny.build(model_type).model.named_modules() if isinstance(m, torch.nn.Linear)}
    assert {n.partition(".lora_")[0].removeprefix("model.") for n in names} == linear


def test_a_decoder_without_linear_has_no_adapters(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the decoder of this model has no Linear"):
        trained(tiny.save("gpt2", tmp_path), lora=LoraConfig(rank=2, alpha=2.0))


@pytest.mark.parametrize("named", ["lm_head", "embed_tokens"])
def test_a_tied_matrix_is_trained_as_one(llama: Path, named: str) -> None:
    names = trained(llama, lora=LoraConfig(rank=2, alpha=2.0, modules_to_save=(named, "model.norm")))
    whole = {n for n in names if ".lora_" not in n}
    assert whole == {"model.embed_tokens.weight", "model.norm.modules_to_save.default.weight"}


def test_quantised_bases_need_what_is_not_here(qwen3: Path) -> None:
    with pytest.raises(
        UserError, match="lora.quantize_base=nf4 needs a CUDA device.*model.dtype=bfloat16.*ZeRO-3"
    ):
        trained(qwen3, lora=LoraConfig(rank=2, alpha=2.0, quantize_base="nf4"))


def test_adapters_start_as_the_base_and_depend_on_the_seed_alone(qwen3: Path) -> None:
    import torch

    def first(seed: int) -> Any:
        hf = load(qwen3, lora=LoraConfig(rank=2, alpha=2.0), seed=seed).module.hf
        q = hf.model.layers[0].self_attn.q_proj
        assert float(q.lora_B["default"].weight.abs().sum()) == 0.0
        return q.lora_A["default"].weight

    a = first(1)
    torch.rand(3)
    assert torch.equal(a, first(1))
    assert not torch.equal(a, first(2))
