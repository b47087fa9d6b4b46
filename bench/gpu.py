"""One GPU, measured in a quarter of an hour: are the kernels right, how many tokens a second, at what memory, and why not more?

    python bench/gpu_wheels.py .wheels                                  # here: what a bare machine lacks, below 64 MiB
    pip install --no-index --no-deps --target site .wheels/*.whl        # there: torch, transformers and triton are present
    PYTHONPATH=site:. python bench/gpu.py --out found.jsonl             # one H100 or H200, no network, 9.5 minutes
    python bench/gpu.py --reduced --out found.jsonl                     # tiny shapes in fp32 on a CPU: every case runs

One process. A case writes one JSON line to standard output and to `--out` as soon as it has ended, so that whatever ends the
process keeps what was found. Cases come by their worth; one that the time left does not allow is named in the last line.
Started again with the same `--out`, it passes over the cases that are in it and did not fail: so a second call goes on.

- `machine`: versions, and the ceilings of this device: matrix products, memory, copies from pinned host memory.
- `attention`: outputs and gradients of every backend beside `sdpa_dense` in fp32. `error_over_dense` is the error over that
  of `sdpa_dense` in bf16 (in fp32, `--reduced`: over four roundings): about 1 is as right as the dtype can be. `tflops`: of long documents, forward and backward.
- `loss`: projection and cross-entropy of each implementation beside the plain one: error, milliseconds, peak memory.
- `state`: layers with state on whole rows, by the kernels that are installed (causal-conv1d, flash-linear-attention, mamba-ssm), beside each
  document alone: what the check before the first step says, differences of loss and gradients, milliseconds forward and backward.
- `resume`: ZeRO-3 stopped in the middle and continued, beside two undisturbed runs: what of a difference is the device's own.
- `SHAPE ROW DOCUMENTS VARIANT`: the trainer's own step (prefetch, meter, update): tokens a second, MFU by useful FLOPs, host
  milliseconds (nothing waited for) and device milliseconds of a micro-step, peak memory; of two variants a profile as well:
  the kernels that take longest, and every call that waited for the device, by line.
- `checkpoint`: seconds to copy, write and restore, and how long training stood still.
"""

from __future__ import annotations

import argparse
import collections
import gc
import importlib.metadata
import importlib.util
import json
import os
import shutil
import socket
import statistics
import sys
import tempfile
import time
import warnings
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")

SHAPES = {
    "qwen3-0.6b": {
        "model_type": "qwen3", "vocab_size": 151_936, "hidden_size": 1024, "intermediate_size": 3072,
        "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128,
        "tie_word_embeddings": True, "max_position_embeddings": 40_960,
    },
    "llama-3.2-1b": {
        "model_type": "llama", "vocab_size": 128_256, "hidden_size": 2048, "intermediate_size": 8192,
        "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64,
        "tie_word_embeddings": True, "max_position_embeddings": 131_072,
    },
    "llama-3.2-3b": {
        "model_type": "llama", "vocab_size": 128_256, "hidden_size": 3072, "intermediate_size": 8192,
        "num_hidden_layers": 28, "num_attention_heads": 24, "num_key_value_heads": 8, "head_dim": 128,
        "tie_word_embeddings": True, "max_position_embeddings": 131_072,
    },
}  # fmt: skip
REDUCED = {
    "tiny": {
        "model_type": "llama", "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "tie_word_embeddings": True, "max_position_embeddings": 1024,
    },
}  # fmt: skip
# families with layers with state, four layers each
MAMBA2 = {
    "mamba_n_heads": 32, "mamba_d_head": 64, "mamba_d_state": 128, "mamba_expand": 2, "mamba_n_groups": 1,
    "layer_types": ["mamba", "mamba", "mamba", "attention"], "num_local_experts": 0, "shared_intermediate_size": 2048,
}  # fmt: skip
STATES = {
    "qwen3_5_text": {"layer_types": ["linear_attention"] * 3 + ["full_attention"]},
    "kimi_linear": {"layer_types": ["linear_attention"] * 3 + ["full_attention"], "num_experts": 4},
    "lfm2": {"layer_types": ["conv"] * 3 + ["full_attention"]},
    "granitemoehybrid": MAMBA2,
}
STATE_SIZES = {
    "vocab_size": 4096, "hidden_size": 1024, "intermediate_size": 2048, "num_hidden_layers": 4, "num_attention_heads": 8,
    "num_key_value_heads": 8,
}  # fmt: skip
WARM_UP, STEPS, MICRO_STEPS = 3, 4, 2
LENGTH_MEDIAN, LENGTH_SIGMA, TARGET_SHARE = (
    149,
    0.733,
    0.44,
)  # of the usual mix: mean 195, 95th percentile 500
LEAST_S = 15.0  # a case is not begun with less time left

# What a variant sets beside the shape; `auto` sets nothing.
VARIANTS = {
    "auto": {},
    "stage 3, recomputed": {
        "deepspeed": {"stage": 3},
        "model": {"gradient_checkpointing": True, "compile": False},
    },
    "stage 3": {"deepspeed": {"stage": 3}, "model": {"gradient_checkpointing": False, "compile": False}},
    "stage 3, compiled": {
        "deepspeed": {"stage": 3},
        "model": {"gradient_checkpointing": False, "compile": True},
    },
    "stage 1": {"deepspeed": {"stage": 1}, "model": {"gradient_checkpointing": False, "compile": False}},
    "stage 1, compiled": {
        "deepspeed": {"stage": 1},
        "model": {"gradient_checkpointing": False, "compile": True},
    },
}
PROFILED = ("stage 3, recomputed", "stage 1, compiled")
BEST = "stage 1, compiled"


def speed_cases(reduced):
    """(shape, tokens of a row, mixed lengths, rows side by side, variant), most valuable first."""
    if reduced:
        return [("tiny", 256, True, 2, "stage 3"), ("tiny", 512, False, 1, "stage 1")]
    small = [("qwen3-0.6b", 8192, False, 1, v) for v in VARIANTS if v != "auto"]
    return [
        *small,
        ("qwen3-0.6b", 8192, True, 4, BEST),
        ("qwen3-0.6b", 16_384, False, 1, BEST),
        ("llama-3.2-1b", 8192, False, 1, BEST),
        ("llama-3.2-1b", 8192, True, 4, BEST),
        ("llama-3.2-3b", 8192, False, 1, BEST),
        ("llama-3.2-3b", 8192, True, 1, BEST),
        ("qwen3-0.6b", 8192, True, 1, BEST),
        ("qwen3-0.6b", 8192, False, 1, "auto"),
    ]


def cases(reduced, work):
    """Every case by name, in order."""
    found = {
        "machine": machine,
        "attention": lambda: attention_errors(reduced),
        "loss": lambda: loss_errors(reduced),
        "state": lambda: state_errors(work, reduced),
        "resume": lambda: resumed(work),
    }
    for shape, row, mix, side_by_side, variant in speed_cases(reduced):
        documents = "usual lengths" if mix else "one document"
        name = f"{shape} {row} {documents} x{side_by_side} {variant}"
        arguments = (work, shape, row, mix, side_by_side, variant, reduced)
        found[name] = lambda arguments=arguments: speed(*arguments)
    return found | {"checkpoint": lambda: checkpointed(work, reduced)}


def attention_errors(reduced):
    """Error of outputs and gradients of every backend that can run here."""
    import torch

    from sft_dist.model.backends import BACKENDS, Needs

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    tokens = 256 if reduced else 4096
    rng = np.random.default_rng(0)
    cuts = np.sort(rng.choice(np.arange(1, tokens), 15, replace=False))
    bounds = torch.tensor([0, *cuts.tolist(), tokens], dtype=torch.int32, device=device)
    longest = int(bounds.diff().max())
    cases = [(16, 8, 128, None), (32, 8, 64, None), (8, 8, 128, 128), (4, 1, 256, None)]

    def outputs(name, tensors, window):
        q, k, v, upstream = tensors
        leaves = [t.detach().clone().requires_grad_() for t in (q, k, v)]
        out, _ = BACKENDS[name].attend(
            None,
            *leaves,
            None,
            scaling=q.size(-1) ** -0.5,
            cu_seq_lens_q=bounds,
            max_length_q=longest,
            sliding_window=window,
        )
        out.backward(upstream.to(out.dtype))
        return [x.detach().float() for x in (out, *(t.grad for t in leaves))]

    found = {}
    for heads, kv_heads, size, window in cases:
        torch.manual_seed(0)
        q, k, v, upstream = (
            torch.randn(1, h, tokens, size, device=device, dtype=dtype)
            for h in (heads, kv_heads, kv_heads, heads)
        )
        upstream = upstream.transpose(1, 2).contiguous()
        exact = outputs("sdpa_dense", [t.float() for t in (q, k, v, upstream)], window)
        for name in BACKENDS:
            needs = Needs(head_dim=size, dtype=dtype, device=device, sliding_window=window is not None)
            if why := BACKENDS[name].unfit(needs):
                found.setdefault(name, {"skipped": why})
                continue
            entry = found.setdefault(name, {"relative_errors": []})
            try:
                got = outputs(name, [q, k, v, upstream], window)
            except Exception as error:  # noqa: BLE001  a backend that fails on one shape says nothing of the others
                entry["relative_errors"].append(None)
                entry.setdefault("failed", {})[str((heads, kv_heads, size, window))] = str(error)[-500:]
                continue
            errors = [float((a - b).norm() / b.norm()) for a, b in zip(got, exact, strict=True)]
            entry["relative_errors"].append([float(f"{e:.2g}") for e in errors])
    dense = found["sdpa_dense"]["relative_errors"]
    for entry in found.values():
        both = [(e, d) for e, d in zip(entry.get("relative_errors", []), dense, strict=False) if e and d]
        if both:
            ours, twin = np.array(both).swapaxes(0, 1)
            rounding = (
                4 * torch.finfo(torch.float32).eps
            )  # in fp32 `sdpa_dense` is the twin itself: its error is 0
            entry["error_over_dense"] = round(float((ours / np.maximum(twin, rounding)).max()), 2)
    return {
        "heads, key-value heads, head size, window": cases,
        "backends": found,
    }


def loss_errors(reduced):
    """Chunked projection and cross-entropy beside the plain one."""
    import torch
    from torch.nn import functional as F

    from sft_dist.model.loss import weighted_cross_entropy

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    targets, width, vocabulary = (64, 32, 512) if reduced else (8192, 2048, 128_256)
    torch.manual_seed(0)
    hidden = torch.randn(targets, width, device=device, dtype=dtype)
    weight = torch.randn(vocabulary, width, device=device, dtype=dtype) / width**0.5
    labels = torch.randint(vocabulary, (targets,), device=device)
    ones = torch.ones(targets, device=device)

    def plain(h, w):
        return F.cross_entropy(F.linear(h, w).float(), labels, reduction="sum")

    def ours(h, w):
        return weighted_cross_entropy(h, w, labels, ones)[0]

    def run(function, h, w):
        h, w = (t.detach().clone().requires_grad_() for t in (h, w))
        seconds = []
        for _ in range(3):
            h.grad = w.grad = None
            _start_memory()
            _wait()
            began = time.perf_counter()
            loss = function(h, w)
            loss.backward()
            _wait()
            seconds.append(time.perf_counter() - began)
        return (
            float(loss.detach()),
            h.grad.float(),
            w.grad.float(),
            round(1000 * min(seconds), 2),
            _peak_gib(),
        )

    loss, dh, dw, *_ = run(plain, hidden.float(), weight.float())
    facts = {}
    for name, function in (("plain", plain), ("ours", ours)):
        got, gh, gw, ms, gib = run(function, hidden, weight)
        facts[name] = {
            "relative_errors": [
                float(f"{e:.2g}")
                for e in (abs(got - loss) / loss, float((gh - dh).norm() / dh.norm()), float((gw - dw).norm() / dw.norm()))
            ],
            "ms": ms,
            "peak_gib": gib,
        }  # fmt: skip
    return facts


def state_errors(work, reduced):
    """Whole rows beside each document alone, for each family of which the kernels are here."""
    import torch

    from sft_dist.config.model import ModelConfig
    from sft_dist.model import isolation_check
    from sft_dist.model.load import load_packed
    from sft_dist.model.packed import to_inputs

    cuda = torch.cuda.is_available()
    device, dtype = ("cuda", "bfloat16") if cuda else ("cpu", "float32")
    tokens = 512 if reduced else 8192
    sizes = STATE_SIZES | ({"hidden_size": 64, "intermediate_size": 64, "vocab_size": 512} if reduced else {})
    found = {}
    for family in ("lfm2",) if reduced else STATES:
        folder = work / family
        make_model({"model_type": family, **sizes, **STATES[family]}, folder)
        loaded = load_packed(
            str(folder), ModelConfig(dtype=dtype, gradient_checkpointing=False), device=device
        )
        module = loaded.module.to(device).eval()
        said = isolation_check.settle_kernels(
            loaded, lambda b, module=module: module(*to_inputs(b, device))[1], "auto", tokens
        )
        found[family] = entry = {"state": said}
        batch = make_rows(tokens, True, 1, 1, sizes["vocab_size"])[0]
        module.train()
        passed, results = module.borders.by_kernel, {}
        for way in ("kernel", "per_document") if passed else ("per_document",):
            module.borders.by_kernel = way == "kernel"
            for _ in range(1 if reduced else 3):
                module.zero_grad()
                _wait()
                began = time.perf_counter()
                total, losses = module(*to_inputs(batch, device))
                total.backward()
                _wait()
                entry[f"{way}_ms"] = round(1000 * (time.perf_counter() - began), 1)
            gradients = {
                n: p.grad.float().clone() for n, p in module.named_parameters() if p.grad is not None
            }
            results[way] = (losses.detach().float(), gradients)
        if passed:
            (ours, own), (theirs, alone) = results["kernel"], results["per_document"]
            entry["loss_mean_difference"] = float((ours - theirs).abs().mean())
            off = {n: float((own[n] - g).norm() / g.norm().clamp(min=1e-20)) for n, g in alone.items()}
            entry["gradient_worst"] = sorted(((round(x, 5), n) for n, x in off.items()), reverse=True)[:5]
        del module, loaded
        _empty()
    return found


def make_rows(seq_len, mix, micro_steps, micro_rows, vocabulary):
    """Micro-batches of full rows: one document a row, or documents of the usual lengths packed by best fit."""
    n = micro_steps * micro_rows

    from sft_dist.core.records import Batch

    rng = np.random.default_rng(0)
    if mix:
        from sft_dist.pack import assign_rows

        lengths = rng.lognormal(np.log(LENGTH_MEDIAN), LENGTH_SIGMA, 40 * n * seq_len // 1000)
        lengths = np.clip(lengths, 8, seq_len).astype(np.int32)
        row_of = assign_rows(lengths, seq_len, 5000)
        # evenly from all full rows: those that were opened first hold the longest documents
        full = np.flatnonzero(np.bincount(row_of, lengths) >= 0.99 * seq_len)
        rows = [lengths[row_of == full[(2 * k + 1) * len(full) // (2 * n)]] for k in range(n)]
    else:
        rows = [np.array([seq_len], np.int32) for _ in range(n)]
    batches = []
    for first in range(0, n, micro_rows):
        docs = np.concatenate(rows[first : first + micro_rows])
        cu = np.concatenate([[0], np.cumsum(docs)]).astype(np.int32)
        ids = rng.integers(0, vocabulary, cu[-1])
        share = TARGET_SHARE if mix else 1.0
        targets = np.concatenate(
            [np.arange(b - max(1, int(share * (b - a - 1))), b) for a, b in pairwise(cu)]
        )
        batches.append(Batch.of_documents(ids, docs, targets))
    return batches


def make_model(shape, folder):
    """Random weights in bf16 (fp32 on CPU) as a Hugging Face folder."""
    import torch
    import transformers

    config = transformers.AutoConfig.for_model(**shape)
    cuda = torch.cuda.is_available()
    with torch.device("cuda" if cuda else "cpu"):
        model = transformers.AutoModelForCausalLM.from_config(
            config, dtype=torch.bfloat16 if cuda else torch.float32
        )
    model.save_pretrained(folder)
    del model
    _empty()


def shape_of(name, reduced):
    return (REDUCED if reduced else SHAPES)[name]


def engine_of(work, name, reduced, seq_len, micro_rows, variant):
    """The config and the engine that training would use, of one rank."""
    import torch

    from sft_dist.config.load import validate
    from sft_dist.core.runfolder import RunFolder
    from sft_dist.pipelines.train.auto import settle
    from sft_dist.pipelines.train.engine import build_engine

    shape, model = shape_of(name, reduced), work / name
    if not (model / "config.json").exists():
        make_model(shape, model)
    options = VARIANTS[variant]
    config = validate({
        "name": "speed", "run_root": str(work),
        "data": {"sources": {"none": {"kind": "demo"}}},
        "pack": {"seq_len": seq_len},
        "train": {"tokens_per_step": seq_len * micro_rows, "micro_rows": micro_rows},
        "model": {"path": str(model), "dtype": "bfloat16" if torch.cuda.is_available() else "float32"}
        | options.get("model", {}),
        "deepspeed": options.get("deepspeed", {}),
    })  # fmt: skip
    folder = work / "speed"
    folder.mkdir(exist_ok=True)
    (folder / "env.json").write_text("{}")
    config = settle(config, RunFolder(folder))
    stand_in = SimpleNamespace(vocab_size=shape["vocab_size"], bos_id=None, eos_id=None, pad_id=None)
    parts = build_engine(config, RunFolder(folder), stand_in)
    for group in parts.engine.optimizer.param_groups:
        group["lr"] = 1e-5
    parts.engine.train()
    return config, parts


def steps_of(engine, batches, steps):
    """Run the trainer's own steps; yield (seconds until the host was free, seconds until the device was, loss)."""
    from sft_dist.train import loop, zero
    from sft_dist.train.metrics import Meter

    meter = Meter(["task"], engine.device)
    weight = float(sum(b.target_weights.sum() for b in batches))
    work = ((step, None, lambda: batches) for step in range(steps))
    for _, _, micros, _ in loop.prefetched(work, lambda b: loop.upload(b, engine.device, meter.codes(b))):
        _wait()
        began = time.perf_counter()
        for micro in micros:
            loop.micro_step(engine, micro, 1.0 / weight, meter)
        free = time.perf_counter() - began
        sums = meter.reduce()
        zero.update(engine, 1.0)
        _wait()
        yield free, time.perf_counter() - began, sums.total["loss"] / weight


def speed(work, name, seq_len, mix, micro_rows, variant, reduced):
    """Tokens a second of one shape in one variant."""
    import torch

    from sft_dist.pipelines.cluster.estimate_inputs import setup_of
    from sft_dist.pipelines.train.planning import cost_of
    from sft_dist.train.metrics import peak_flops

    shape = shape_of(name, reduced)
    batches = make_rows(seq_len, mix, MICRO_STEPS, micro_rows, shape["vocab_size"])
    tokens, pairs, targets = (
        sum(x) for x in zip(*((len(b.input_ids), b.doc_cost_tokens, len(b.target_ids)) for b in batches), strict=True)
    )  # fmt: skip
    began = time.perf_counter()
    config, parts = engine_of(work, name, reduced, seq_len, micro_rows, variant)
    built = time.perf_counter() - began
    try:
        _start_memory()
        timed = list(steps_of(parts.engine, batches, (1 if reduced else WARM_UP) + STEPS))[-STEPS:]
        host, whole, losses = zip(*timed, strict=True)
        step_s = statistics.median(whole)
        flops, peak = cost_of(shape).useful_flops(tokens, pairs, targets), peak_flops(parts.engine.device)
        case = {
            "tokens_per_s": round(tokens / step_s),
            "mfu": round(flops / step_s / peak, 4) if peak else None,
            "host_ms": round(1000 * statistics.median(host) / MICRO_STEPS, 1),
            "micro_step_ms": round(1000 * step_s / MICRO_STEPS, 1),
            "peak_gib": _peak_gib(),
            "reserved_gib": _reserved_gib(),
            "shape": shape,
            "setup": asdict(setup_of(config, targets / tokens, 1, parts.engine.device.type)),
            "tokens": tokens / MICRO_STEPS,
            "squares": pairs / MICRO_STEPS,
            "targets": targets / MICRO_STEPS,
            "fill": round(tokens / (MICRO_STEPS * micro_rows * seq_len), 4),
            "built_s": round(built, 1),
            "loss": losses[-1],
            "attention": parts.backend,
        }
        if variant in PROFILED and torch.cuda.is_available() and not mix:
            case |= profile(parts.engine, batches)
        return case
    finally:
        parts.engine.destroy()
        del parts
        _empty()


def profile(engine, batches):
    """The kernels of one step that take longest, and the lines that waited for the device."""
    import torch

    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    ) as trace:
        list(steps_of(engine, batches, 1))
    rows = sorted(trace.key_averages(), key=lambda e: -e.self_device_time_total)[:15]
    kernels = [[e.key[:80], e.count, round(e.self_device_time_total / 1000, 2)] for e in rows]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        list(steps_of(engine, batches, 1))
        torch.cuda.set_sync_debug_mode("default")
    waits = collections.Counter(
        f"{Path(w.filename).name}:{w.lineno}" for w in said if "synchroniz" in str(w.message)
    )
    return {"kernels_ms": kernels, "waits": dict(waits.most_common(30))}


def resumed(work):
    """Six steps twice, and three and three with a checkpoint between: losses, and the largest distance of weights."""
    import torch

    from sft_dist.checkpoint import io
    from sft_dist.checkpoint.background import Saver
    from sft_dist.config.train import CheckpointConfig
    from sft_dist.core.records import Position

    batches = make_rows(512, True, 2, 1, REDUCED["tiny"]["vocab_size"])
    root = work / "checkpoints"
    shutil.rmtree(root, ignore_errors=True)

    def run(steps, start=None):
        _, parts = engine_of(work, "tiny", True, 512, 1, "stage 3")
        if start:
            io.load(parts.engine, start)
        losses = [loss for *_, loss in steps_of(parts.engine, batches, steps)]
        saved = Position(step=steps, epoch=0, epoch_step=steps)
        saver = Saver(parts.engine, root, facts={}, keep=CheckpointConfig(keep_last=9), report=lambda _: None)
        saver.begin(saved)
        saver.finish()
        weights = torch.cat(
            [p.ds_tensor.detach().float().flatten().cpu() for p in parts.engine.module.parameters()]
        )
        parts.engine.destroy()
        _empty()
        return losses, weights

    first, weights = run(6)
    again, other = run(6)
    half, _ = run(3)
    rest, continued = run(3, root / io.folder_name(3))
    return {
        "losses": first,
        "loss_resumed_over_undisturbed": max(abs(a - b) for a, b in zip(first, half + rest, strict=True)),
        "weights_resumed_over_undisturbed": float((weights - continued).abs().max()),
        "loss_of_the_same_run_again": max(abs(a - b) for a, b in zip(first, again, strict=True)),
        "weights_of_the_same_run_again": float((weights - other).abs().max()),
    }


def checkpointed(work, reduced):
    """Seconds of a checkpoint, and how long training stands still."""
    from sft_dist.checkpoint import io
    from sft_dist.checkpoint.background import Saver
    from sft_dist.config.train import CheckpointConfig
    from sft_dist.core.records import Position

    name = "tiny" if reduced else "qwen3-0.6b"
    _, parts = engine_of(work, name, reduced, 512, 1, "stage 1")
    list(steps_of(parts.engine, make_rows(512, False, 1, 1, 300), 1))
    root, told = work / "big", []
    for step in (1, 2):  # the first pins its memory
        saver = Saver(parts.engine, root, facts={}, keep=CheckpointConfig(keep_last=1), report=told.append)
        saver.begin(Position(step=step, epoch=0, epoch_step=step))
        saver.finish()
    size = sum(f.stat().st_size for f in told[-1].folder.iterdir())
    began = time.perf_counter()
    io.load(parts.engine, told[-1].folder)
    _wait()
    restore = time.perf_counter() - began
    parts.engine.destroy()
    shutil.rmtree(root)
    return {
        "bytes": size,
        "stall_s": [round(t.stall_s, 3) for t in told],
        "written_s": [round(t.seconds, 3) for t in told],
        "restored_s": round(restore, 3),
    }


def machine():
    """Versions, and what this very device reaches: the ceilings of all that follows."""
    import torch
    import transformers

    cuda = torch.cuda.is_available()
    facts = {
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "memory_gib": round(torch.cuda.mem_get_info()[1] / 2**30, 1) if cuda else None,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "deepspeed": importlib.metadata.version("deepspeed"),
        "triton": importlib.metadata.version("triton") if importlib.util.find_spec("triton") else None,
        "flash_attn": importlib.util.find_spec("flash_attn") is not None,
        "flash_attn_interface": importlib.util.find_spec("flash_attn_interface") is not None,
    }
    return facts | (ceilings() if cuda else {})


def ceilings():
    import torch

    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    x = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    host = torch.empty(1 << 28, dtype=torch.uint8, pin_memory=True)
    empty = torch.zeros(1, device="cuda")

    def seconds(function, repeats=20):
        for _ in range(3):
            function()
        _wait()
        began = time.perf_counter()
        for _ in range(repeats):
            function()
        _wait()
        return (time.perf_counter() - began) / repeats

    return {
        "matmul_tflops": round(2 * 8192**3 / seconds(lambda: a @ a) / 1e12),
        "memory_gb_s": round(2 * x.numel() / seconds(x.clone) / 1e9),
        "pinned_copy_gb_s": round(
            host.numel() / seconds(lambda: host.to("cuda", non_blocking=True)) / 1e9, 1
        ),
        "launch_us": round(1e6 * seconds(lambda: empty.add_(1), 2000), 2),
    }


def _wait():
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _start_memory():
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def _peak_gib():
    import torch

    return round(torch.cuda.max_memory_allocated() / 2**30, 2) if torch.cuda.is_available() else None


def _reserved_gib():
    import torch

    return round(torch.cuda.max_memory_reserved() / 2**30, 2) if torch.cuda.is_available() else None


def _empty():
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def done_before(out):
    """Names of cases in an earlier run's file that did not fail."""
    if out is None or not out.is_file():
        return set()
    lines = [json.loads(line) for line in out.read_text().splitlines() if line.endswith("}")]
    return {line["case"] for line in lines if "case" in line and "failed" not in line}


def tell(line, out):
    text = json.dumps(line)
    print(text, flush=True)
    if out is not None:
        with out.open("a") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())


def measure(options, work):
    """Run the cases that are not done yet, while there is time."""
    from sft_dist.train import zero

    end = time.monotonic() + 60 * options.minutes
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        os.environ.setdefault("MASTER_PORT", str(s.getsockname()[1]))
    zero.init_distributed(5)
    before, left_out = done_before(options.out), []
    for name, function in cases(options.reduced, work).items():
        if name in before or (options.only and not any(part in name for part in options.only)):
            continue
        if end - time.monotonic() < LEAST_S:
            left_out.append(name)
            continue
        began, line = time.monotonic(), {"case": name}
        try:
            line |= function()
        except Exception as error:  # noqa: BLE001  a case that fails says nothing of the others
            line["failed"] = f"{type(error).__name__}: {error}"[-1500:]
            _empty()
        tell(line | {"seconds": round(time.monotonic() - began, 1)}, options.out)
    tell({"left_out": left_out}, options.out)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--reduced", action="store_true", help="tiny shapes, also on a CPU")
    parser.add_argument("--minutes", type=float, default=9.5)
    parser.add_argument("--out", type=Path, help="append the lines here as well, and pass over what is in it")
    parser.add_argument("--only", nargs="+", help="cases whose names contain one of these")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        measure(options, Path(scratch))


if __name__ == "__main__":
    main()
