"""Layers with state on whole rows: their kernels are told where documents begin, or are not called.

The kernels here are our own, in plain torch, with the arguments of the real ones (reference_kernels.py); the real ones need a GPU.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import matrix
import pytest
import reference_kernels
import tiny
import tiny_docs
import torch
from loading import load
from torch import Tensor

from sft_dist.config.model import LoraConfig
from sft_dist.core.errors import UserError
from sft_dist.model import activation_memory, isolation_check, recurrent, recurrent_kernels
from sft_dist.model.load import Loaded
from sft_dist.model.packed import to_inputs

HERE = Path(__file__).resolve().parent
HELPERS = HERE.parent / "helpers"
SIGNATURES = json.loads((HELPERS / "kernel_signatures.json").read_text())
# type -> the kernels that training calls; one of every kind
FAST = {
    "bamba": {"mamba_split_conv1d_scan_combined"},
    "falcon_h1": {"mamba_split_conv1d_scan_combined"},
    "granitemoehybrid": {"mamba_split_conv1d_scan_combined"},
    "kimi_linear": {"chunk_kda", "causal_conv1d_fn"},
    "lfm2": {"causal_conv1d_fn"},
    "lfm2_moe": {"causal_conv1d_fn"},
    "lfm3": {"causal_conv1d_fn"},
    "nemotron_h": {"mamba_split_conv1d_scan_combined"},
    "olmo_hybrid": {"chunk_gated_delta_rule", "causal_conv1d_fn"},
    "qwen3_5_moe_text": {"chunk_gated_delta_rule", "causal_conv1d_fn"},
    "qwen3_5_text": {"chunk_gated_delta_rule", "causal_conv1d_fn"},
    "qwen3_next": {"chunk_gated_delta_rule", "causal_conv1d_fn"},
    "zamba2": {"mamba_split_conv1d_scan_combined"},
}
# layers of these call kernels that know no borders, or none
SLOW = ("jamba", "minimax", "zaya", "recurrent_gemma")


def loss_of(module: Any, batch: Any) -> Tensor:
    return module(*to_inputs(batch, "cpu"))[1]


def settled(loaded: Loaded, asked: str = "auto") -> str:
    loaded.module.eval()
    return isolation_check.settle_kernels(loaded, partial(loss_of, loaded.module), asked, tiny.ROW)


def by_kernel(folder: Path, **options: Any) -> Any:
    """A model whose layers with state see the whole row."""
    loaded = load(folder, **options)
    assert settled(loaded).startswith("kernel (")
    reference_kernels.CALLED.clear()
    return loaded.module.train()


@pytest.mark.parametrize("model_type", sorted(FAST))
def test_this_transformers_calls_the_kernels_by_known_names(model_type: str) -> None:
    """After a release of transformers: what a layer calls now goes into `Kernel.called`, or the fast path is gone."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(tiny.config_of(model_type))
    with reference_kernels.installed():
        for layer in recurrent.layers_with_state(model).values():
            kind = recurrent.kind_of(layer)
            assert kind is not None
            assert recurrent_kernels.missing(layer, kind.kernels, "cpu") == ""
            assert recurrent_kernels._names(layer, kind.kernels).keys() == set(kind.kernels)


@pytest.mark.parametrize("model_type", sorted(FAST))
def test_the_page_says_that_whole_rows_are_exact(model_type: str) -> None:
    state, called, _ = matrix.KNOWN[model_type]["fast"].split(": ")
    assert state == "exact"
    assert set(called.split(", ")) == FAST[model_type]


@pytest.mark.parametrize("model_type", SLOW)
def test_no_kernel_that_knows_no_borders_is_given_a_whole_row(model_type: str, tmp_path: Path) -> None:
    tiny.save(model_type, tmp_path)
    with reference_kernels.installed():
        assert settled(load(tmp_path)).startswith("per_document (")
        with pytest.raises(
            UserError, match="model.recurrent=kernel cannot run here: .* Use model.recurrent=auto"
        ):
            load(tmp_path, recurrent="kernel")


def test_without_packages_each_document_is_run_alone_and_the_extra_is_named(tmp_path: Path) -> None:
    tiny.save("qwen3_5_text", tmp_path)
    loaded = load(tmp_path, recurrent="auto")
    assert loaded.module.borders.layers == []
    assert "needs a CUDA device" in settled(loaded)
    with pytest.raises(
        UserError, match="model.recurrent=kernel cannot run here: chunk_gated_delta_rule of fla needs a CUDA"
    ):
        load(tmp_path, recurrent="kernel")
    if importlib.util.find_spec("fla") is None:
        found = recurrent_kernels.find("chunk_gated_delta_rule", "cuda")
        assert (
            found
            == "fla, which has chunk_gated_delta_rule, is not installed: pip install 'sft-dist[linear-attention]'"
        )


def test_a_model_without_such_layers_has_nothing_to_choose(tmp_path: Path) -> None:
    tiny.save("qwen3", tmp_path)
    assert settled(load(tmp_path)) == ""
    with pytest.raises(
        UserError, match="model.recurrent=kernel cannot run here: qwen3 has no layers with state"
    ):
        load(tmp_path, recurrent="kernel")


def test_each_document_alone_where_that_is_asked_for(tmp_path: Path) -> None:
    tiny.save("lfm2", tmp_path)
    with reference_kernels.installed():
        loaded = load(tmp_path, recurrent="per_document")
        assert settled(loaded, "per_document") == "per_document (as configured)"
        loss_of(loaded.module, tiny_docs.pack(matrix.DOCS[:2], [0, 1]))
    assert reference_kernels.CALLED == []


@pytest.mark.parametrize(
    ("model_type", "leak"),
    [
        ("qwen3_5_text", "state"),
        ("qwen3_5_text", "convolution"),
        ("lfm2", "convolution"),
        ("nemotron_h", "state"),
    ],
)
def test_a_kernel_that_forgets_the_borders_is_caught(model_type: str, leak: str, tmp_path: Path) -> None:
    """Planted: state that is carried over, a convolution that is not reset. The check falls back, or ends the run."""
    tiny.save(model_type, tmp_path)
    with reference_kernels.installed(leaks=(leak,)):
        loaded = load(tmp_path)
        assert "did not pass the check before the first step: packed documents see one another" in settled(
            loaded
        )
        assert not loaded.module.borders.by_kernel
        with pytest.raises(
            UserError, match="model.recurrent=kernel cannot run here: .* packed documents see one another"
        ):
            settled(loaded, "kernel")


def replaced(monkeypatch: pytest.MonkeyPatch, name: str, kernel: Any) -> None:
    monkeypatch.setattr(reference_kernels, name, kernel)


def test_a_kernel_without_the_argument_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that would swallow it in **kwargs too."""

    def old(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, **kwargs: Any) -> Any:
        raise AssertionError("it is never called")

    replaced(monkeypatch, "chunk_gated_delta_rule", old)
    tiny.save("qwen3_5_text", tmp_path)
    with reference_kernels.installed():
        assert "chunk_gated_delta_rule of reference_kernels has no argument cu_seqlens" in settled(
            load(tmp_path)
        )
        with pytest.raises(UserError, match="has no argument cu_seqlens; nothing was started"):
            load(tmp_path, recurrent="kernel")


def test_a_keyword_that_a_kernel_does_not_know_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = reference_kernels.chunk_gated_delta_rule

    def plain(q, k, v, g, beta, initial_state=None, output_final_state=False, cu_seqlens=None):
        return right(q, k, v, g, beta, cu_seqlens=cu_seqlens)

    replaced(monkeypatch, "chunk_gated_delta_rule", plain)
    tiny.save("qwen3_5_text", tmp_path)
    with reference_kernels.installed():
        loaded = load(tmp_path)
        said = settled(loaded)
        assert "for use_qk_l2norm_in_kernel, which it does not know and would leave undone" in said
        assert said.startswith("per_document (")


def test_a_kernel_that_computes_something_else_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = reference_kernels.causal_conv1d_fn
    replaced(
        monkeypatch,
        "causal_conv1d_fn",
        lambda x, weight, bias=None, seq_idx=None, activation=None: right(x, 1.5 * weight, bias, seq_idx),
    )
    tiny.save("lfm2", tmp_path)
    with reference_kernels.installed():
        assert "differs from that of each document alone by" in settled(load(tmp_path))


@pytest.mark.parametrize("model_type", ["lfm2", "qwen3_5_text"])
def test_the_convolution_of_the_other_package_does_as_well(model_type: str, tmp_path: Path) -> None:
    model = tiny.build(model_type)
    reference = matrix.alone(model)
    model.zero_grad()
    model.save_pretrained(tmp_path)
    with reference_kernels.installed(convolution=1):
        loss, gradient, _ = matrix.differences(by_kernel(tmp_path), *reference)
    assert "causal_conv1d" in reference_kernels.CALLED
    assert loss < matrix.LOSS
    assert gradient < matrix.GRADIENT


def gradients(module: Any, batch: Any) -> dict[str, Tensor]:
    module(*to_inputs(batch, "cpu"))[0].backward()
    return {n: p.grad for n, p in module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_adapters_are_not_passed_by(checkpointing: bool, tmp_path: Path) -> None:
    """A fused kernel is handed the weights of Linear modules: it is left out where these have adapters."""
    tiny.save("bamba", tmp_path)
    options = {"lora": LoraConfig(rank=2), "gradient_checkpointing": checkpointing}
    batch = tiny_docs.pack(matrix.DOCS[:4], list(range(4)))
    with reference_kernels.installed():
        ours = gradients(by_kernel(tmp_path, **options), batch)
        assert set(reference_kernels.CALLED) == {"causal_conv1d_fn", "mamba_chunk_scan_combined"}
        theirs = gradients(load(tmp_path, recurrent="per_document", **options).module.train(), batch)
    assert any("mamba.out_proj.lora_B" in n and g.norm() > 0 for n, g in ours.items())
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=1e-6)


def test_each_document_alone_does_not_pass_adapters_by_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With mamba-ssm installed, transformers would call the fused kernel in training."""
    from transformers.models.bamba import modeling_bamba

    def fused(*_: Any, **__: Any) -> None:
        raise AssertionError("it would be handed the weight of out_proj without its adapter")

    monkeypatch.setattr(modeling_bamba, "mamba2_split_conv1d_scan_combined", fused)
    tiny.save("bamba", tmp_path)
    module = load(tmp_path, lora=LoraConfig(rank=2)).module.train()
    gradients(module, tiny_docs.pack(matrix.DOCS[:2], [0, 1]))
    with pytest.raises(AssertionError, match="out_proj"):
        loss_of(load(tmp_path).module.train(), tiny_docs.pack(matrix.DOCS[:2], [0, 1]))


def test_what_peft_refuses_in_a_family_is_not_adapted(tmp_path: Path) -> None:
    tiny.save("nemotron_h", tmp_path)
    names = [
        n for n, p in load(tmp_path, lora=LoraConfig(rank=2)).module.named_parameters() if p.requires_grad
    ]
    assert any("mixer.in_proj.lora_A" in n for n in names)
    assert not [n for n in names if "out_proj" in n]
    with pytest.raises(
        UserError, match="lora.target_modules has out_proj, which cannot be adapted in nemotron_h"
    ):
        load(tmp_path, lora=LoraConfig(rank=2, target_modules=("in_proj", "out_proj")))


def test_layers_are_computed_again_with_the_borders_that_they_had(tmp_path: Path) -> None:
    """Two forward passes over different documents, then both backward passes, recomputing."""
    tiny.save("lfm2", tmp_path)
    batches = [tiny_docs.pack(docs, list(range(len(docs)))) for docs in (matrix.DOCS[:2], matrix.DOCS[2:5])]
    found = []
    with reference_kernels.installed():
        for checkpointing in (False, True):
            module = by_kernel(tmp_path, gradient_checkpointing=checkpointing)
            for total in [module(*to_inputs(batch, "cpu"))[0] for batch in batches]:
                total.backward()
            found.append({n: p.grad for n, p in module.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-5, atol=1e-6)


def test_compiled_layers_call_the_kernels_with_the_borders_of_each_row(tmp_path: Path) -> None:
    tiny.save("lfm2", tmp_path)
    batches = [tiny_docs.pack(docs, list(range(len(docs)))) for docs in (matrix.DOCS[:2], matrix.DOCS[2:5])]
    with reference_kernels.installed():
        module = by_kernel(tmp_path)
        plain = [loss_of(module, b) for b in batches]
        activation_memory.compile_layers(module.hf, backend="eager")
        reference_kernels.CALLED.clear()
        for batch, losses in zip(batches, plain, strict=True):
            torch.testing.assert_close(loss_of(module, batch), losses)
    assert len(reference_kernels.CALLED) == 2 * len(module.borders.layers)


@pytest.mark.parametrize(
    "kernel", [f"{package}: {name}" for package, names in SIGNATURES.items() for name in names]
)
def test_the_facts_of_the_real_kernels_hold(kernel: str) -> None:
    """What the packages take, as read from their sources: the table asks for no other argument, and the references have the same."""
    package, _, name = kernel.partition(": ")
    module, _, function = name.rpartition(".")
    known = SIGNATURES[package][name]
    sources = [
        s
        for k in recurrent_kernels.KERNELS.values()
        for s in k.sources
        if (s.module, s.function) == (module, function)
    ]
    for source in sources:
        assert source.borders in known
        ours = inspect.signature(getattr(reference_kernels, function)).parameters.values()
        assert [p.name if p.kind is not p.VAR_KEYWORD else f"**{p.name}" for p in ours] == known
    if not sources:  # Mamba-1: if this changes, it can have a fast path
        assert not {"cu_seqlens", "seq_idx"} & set(known)


def test_the_real_kernels_that_are_installed_are_those_of_the_facts() -> None:
    """On a machine that has the packages: a release that changes an argument turns this red."""
    seen = 0
    for names in SIGNATURES.values():
        for name, known in names.items():
            module, _, function = name.rpartition(".")
            if importlib.util.find_spec(module.partition(".")[0]) is not None:
                real = inspect.signature(
                    getattr(importlib.import_module(module), function)
                ).parameters.values()
                assert [p.name if p.kind is not p.VAR_KEYWORD else f"**{p.name}" for p in real] == known
                seen += 1
    if not seen:
        pytest.skip("none of the packages is installed")


@pytest.mark.slow
@pytest.mark.skipif(
    "FLA_PATH" not in os.environ, reason="FLA_PATH names no folder with fla-core and einops (fla_cases.py)"
)
def test_the_kernels_of_flash_linear_attention_honour_the_borders(tmp_path: Path) -> None:
    """Its own Triton code, in the interpreter, results and gradients beside ours."""
    env = os.environ | {
        "TRITON_INTERPRET": "1",
        "PYTHONPATH": os.pathsep.join([os.environ["FLA_PATH"], str(HELPERS)]),
    }
    names = ("causal_conv1d_fn", "chunk_gated_delta_rule", "chunk_kda")
    command = [sys.executable, str(HERE / "fla_cases.py"), str(tmp_path / "found.json"), *names]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    for name, differences in json.loads((tmp_path / "found.json").read_text()).items():
        assert max(differences) < 1e-5, name
