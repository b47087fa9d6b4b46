"""One GPU, measured: are the kernels right, and how many tokens a second, at what memory?

    python bench/gpu.py                  # one H100 or H200, no network: within 9 minutes
    python bench/gpu.py --reduced        # small shapes in fp32, also on CPU: shows that every part runs

Prints one JSON object; parts that the time did not allow are named in `left_out`, parts that failed in `failed`. What a part
had found before it failed or its time was over stands in the result all the same.

- `attention`: outputs and gradients of every backend in bf16, beside `sdpa_dense` in fp32. `error_over_dense` is the error
  divided by that of `sdpa_dense` in bf16 itself: about 1 is as right as bf16 can be.
- `loss`: our chunked projection and cross-entropy beside the plain one: error, milliseconds, peak memory.
- `resume`: a ZeRO-3 run stopped in the middle and continued; losses beside those of an undisturbed run.
- `speed`: tokens a second, MFU by useful FLOPs (documents' true lengths, recomputation not counted) and peak memory for
  the shapes of Qwen3-0.6B, Llama-3.2-1B and -3B with random weights, full fine-tuning by ZeRO-3 with fp32 master weights,
  rows of 8k and 16k tokens: one full-length document a row, and documents of the usual SFT lengths.
- `trl`: SFTTrainer on the same rows, where it can be imported.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import importlib.util
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import numpy as np

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

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
ROWS = {False: (8192, 16_384), True: (256, 512)}  # by reduced
WARM_UP, STEPS, MICRO_STEPS = 2, 5, 4
FOUND = "found: "  # begins the lines in which a part tells its results; libraries write to its output as well
LENGTH_MEDIAN, LENGTH_SIGMA, TARGET_SHARE = (
    149,
    0.733,
    0.44,
)  # of the usual mix: mean 195, 95th percentile 500


def attention_errors(reduced):
    """Error of outputs and gradients of every backend that can run here."""
    import torch

    from sft_dist.model.attention import Needs, unfit
    from sft_dist.model.backends import BACKENDS

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
        out, _ = BACKENDS[name](
            None, *leaves, None, scaling=q.size(-1) ** -0.5, cu_seq_lens_q=bounds, cu_seq_lens_k=bounds,
            max_length_q=longest, max_length_k=longest, sliding_window=window,
        )  # fmt: skip
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
            if why := unfit(name, needs):
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
            entry["error_over_dense"] = round(float((ours / np.maximum(twin, 1e-7)).max()), 2)
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
        return float(loss), h.grad.float(), w.grad.float(), round(1000 * min(seconds), 2), _peak_gib()

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


def resume_losses(work, reduced):
    """Train 20 steps at once, and 10 + 10; both by the command line."""
    import torch

    dtype = "bfloat16" if torch.cuda.is_available() else "float32"
    steps = 4 if reduced else 20

    def train(name, max_steps):
        words = [
            "experiment=demo", f"name={name}", f"run_root={work / 'runs'}", f"data.dir={work / 'data'}",
            "data.sources.demo.examples_per_task=100", f"model.dtype={dtype}", "model.gradient_checkpointing=true",
            "optim.schedule=constant", "launch.nproc=1", "train.export=false", f"train.max_steps={max_steps}",
        ]  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-m", "sft_dist", "train", *words], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(done.stderr[-2000:])
        lines = (work / "runs" / name / "metrics.jsonl").read_text().splitlines()
        return [m["loss"] for m in map(json.loads, lines) if m["kind"] == "train"]

    whole = train("whole", steps)
    train("parts", steps // 2)
    parts = train("parts", steps)
    return {
        "steps": steps,
        "first_loss": whole[0],
        "last_loss": whole[-1],
        "largest_difference": max(abs(a - b) for a, b in zip(whole, parts, strict=True)),
    }


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


def make_rows(seq_len, mix, n, vocabulary):
    """n rows as batches: one full-length document each, or documents of the usual lengths packed by best fit."""
    from sft_dist.core.records import Batch
    from sft_dist.pack import assign_rows

    rng = np.random.default_rng(0)
    if mix:
        lengths = rng.lognormal(np.log(LENGTH_MEDIAN), LENGTH_SIGMA, 40 * n * seq_len // 1000)
        lengths = np.clip(lengths, 8, seq_len).astype(np.int32)
        row_of = assign_rows(lengths, seq_len, 5000)
        # evenly from all full rows: those that were opened first hold the longest documents
        full = np.flatnonzero(np.bincount(row_of, lengths) >= 0.99 * seq_len)
        rows = [lengths[row_of == full[(2 * k + 1) * len(full) // (2 * n)]] for k in range(n)]
    else:
        rows = [np.array([seq_len], np.int32) for _ in range(n)]
    batches = []
    for docs in rows:
        cu = np.concatenate([[0], np.cumsum(docs)]).astype(np.int32)
        ids = rng.integers(0, vocabulary, cu[-1])
        share = TARGET_SHARE if mix else 1.0
        targets = np.concatenate(
            [np.arange(b - max(1, int(share * (b - a - 1))), b) for a, b in pairwise(cu)]
        )
        batches.append(Batch.of_documents(ids, docs, targets))
    return batches


def engine_of(work, model, checkpointing, seq_len):
    """The engine that training would use, of one rank."""
    import torch

    from sft_dist.config.load import validate
    from sft_dist.core.runfolder import RunFolder
    from sft_dist.pipelines.train.engine import build_engine
    from sft_dist.render.tokenizer import TextTokenizer, train_tokenizer

    tokenizer = work / "tokenizer"
    if not tokenizer.exists():
        train_tokenizer(["a few words"], 300).save(tokenizer)
    config = validate({
        "name": "speed", "run_root": str(work),
        "data": {"sources": {"none": {"kind": "demo"}}},
        "pack": {"seq_len": seq_len}, "train": {"tokens_per_step": seq_len},
        "model": {"path": str(model), "tokenizer": str(tokenizer), "gradient_checkpointing": checkpointing,
                  "dtype": "bfloat16" if torch.cuda.is_available() else "float32"},
    })  # fmt: skip
    folder = work / "speed"
    folder.mkdir(exist_ok=True)
    (folder / "env.json").write_text("{}")
    return build_engine(config, RunFolder(folder), TextTokenizer.load(str(tokenizer)))


def speeds(work, name, checkpointing, reduced):
    """Tokens a second of one shape; yields one entry a row length and mix."""
    import torch

    from sft_dist.model.packed import to_inputs
    from sft_dist.pipelines.train.planning import cost_of
    from sft_dist.train import zero
    from sft_dist.train.metrics import peak_flops

    shape = (REDUCED if reduced else SHAPES)[name]
    model = work / name
    if not model.exists():
        make_model(shape, model)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        os.environ["MASTER_PORT"] = str(s.getsockname()[1])
    zero.init_distributed(5)
    parts = engine_of(work, model, checkpointing, max(ROWS[reduced]))
    engine = parts.engine
    for group in engine.optimizer.param_groups:
        group["lr"] = 1e-5
    cost, peak = cost_of(shape), peak_flops(engine.device)
    for seq_len in ROWS[reduced]:
        for mix in (False, True):
            batches = make_rows(seq_len, mix, MICRO_STEPS, shape["vocab_size"])
            tokens, pairs, targets = (
                sum(x) for x in zip(*((len(b.input_ids), b.doc_cost_tokens, len(b.target_ids)) for b in batches), strict=True)
            )  # fmt: skip
            case = {"model": name, "row": seq_len, "documents": "usual lengths" if mix else "full length",
                    "gradient_checkpointing": checkpointing, "attention": parts.backend}  # fmt: skip
            try:
                _start_memory()
                seconds = []
                for _ in range(WARM_UP + (2 if reduced else STEPS)):
                    _wait()
                    began = time.perf_counter()
                    for batch in batches:
                        loss, _ = engine(*to_inputs(batch, engine.device))
                        engine.backward(loss / targets, scale_wrt_gas=False)
                    zero.update(engine, 1.0)
                    _wait()
                    seconds.append(time.perf_counter() - began)
                step_s = statistics.median(seconds[WARM_UP:])
                flops = cost.useful_flops(tokens, pairs, targets)
                case |= {
                    "tokens_per_s": round(tokens / step_s),
                    "mfu": round(flops / step_s / peak, 4) if peak else None,
                    "peak_gib": _peak_gib(),
                    "fill": round(tokens / (MICRO_STEPS * seq_len), 4),
                }
            except torch.OutOfMemoryError:
                yield case | {"failed": "out of memory; longer rows were not tried"}
                return  # the engine stopped in the middle of a step and is of no more use
            yield case
            _empty()


def trl_speeds(work, name, reduced):
    """Tokens a second of TRL's SFTTrainer on the same rows: fp32 weights under bf16 autocast, its fastest kernels that are here."""
    import datasets
    import torch
    import transformers
    import trl

    datasets.disable_progress_bars()
    shape = (REDUCED if reduced else SHAPES)[name]
    cuda = torch.cuda.is_available()
    attention = "flash_attention_2" if importlib.util.find_spec("flash_attn") else "sdpa"
    liger = cuda and importlib.util.find_spec("liger_kernel") is not None
    tokenizer = transformers.AutoTokenizer.from_pretrained(work / "tokenizer")
    for seq_len in ROWS[reduced]:
        for mix in (False, True):
            steps = WARM_UP + (2 if reduced else STEPS)
            rows = make_rows(seq_len, mix, MICRO_STEPS * steps, shape["vocab_size"])
            examples = []
            for row in rows:
                trained = np.zeros(len(row.input_ids), bool)
                trained[row.target_positions + 1] = True
                labels = np.where(trained, row.input_ids, -100)
                examples += [
                    {"input_ids": row.input_ids[a:b].tolist(), "labels": labels[a:b].tolist()}
                    for a, b in pairwise(row.cu_seqlens)
                ]
            for checkpointing in (False, True):
                marks = []

                class Marks(transformers.TrainerCallback):
                    def on_step_end(self, _args, _state, _control, marks=marks, **_):
                        _wait()
                        marks.append(time.perf_counter())

                case = {"model": name, "row": seq_len, "documents": "usual lengths" if mix else "full length",
                        "gradient_checkpointing": checkpointing, "attention": attention, "liger": liger}  # fmt: skip
                try:
                    _start_memory()
                    trainer = trl.SFTTrainer(
                        model=transformers.AutoModelForCausalLM.from_pretrained(
                            work / name, dtype=torch.float32, attn_implementation=attention
                        ),
                        args=trl.SFTConfig(
                            output_dir=str(work / "trl"), max_length=seq_len, packing=mix, max_steps=steps,
                            per_device_train_batch_size=1, gradient_accumulation_steps=MICRO_STEPS, bf16=cuda,
                            use_cpu=not cuda, gradient_checkpointing=checkpointing, use_liger_kernel=liger,
                            report_to=[], save_strategy="no", disable_tqdm=True, optim="adamw_torch_fused",
                        ),
                        train_dataset=datasets.Dataset.from_list(examples),
                        processing_class=tokenizer,
                        callbacks=[Marks()],
                    )  # fmt: skip
                    trainer.train()
                    step_s = statistics.median(np.diff(marks)[WARM_UP - 1 :])
                    tokens = sum(len(r.input_ids) for r in rows) / steps
                    case |= {"tokens_per_s": round(tokens / step_s), "peak_gib": _peak_gib()}
                    del trainer
                except torch.OutOfMemoryError:
                    case["failed"] = "out of memory"
                yield case
                _empty()


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


def _empty():
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def part(work, reduced, words, seconds):
    """Run a part in a process of its own, so that what breaks it breaks nothing else; return what it found, and its failure."""
    command = [
        sys.executable,
        __file__,
        "--work",
        str(work),
        *(["--reduced"] if reduced else []),
        "--part",
        *words,
    ]
    try:
        done = subprocess.run(command, capture_output=True, check=False, timeout=seconds)
        out, failure = done.stdout, done.stderr.decode(errors="replace")[-1500:] if done.returncode else ""
    except subprocess.TimeoutExpired as late:
        out, failure = late.stdout or b"", f"not done after {seconds:.0f} s"
    lines = out.decode(errors="replace").splitlines()
    return [json.loads(line.removeprefix(FOUND)) for line in lines if line.startswith(FOUND)], failure


def environment():
    import torch
    import transformers

    cuda = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "deepspeed": importlib.metadata.version("deepspeed"),
        "trl": importlib.metadata.version("trl") if importlib.util.find_spec("trl") else None,
        "bf16_matmul_tflops": _matmul_tflops() if cuda else None,
    }


def _matmul_tflops():
    """What this very device reaches in one large product: the ceiling of the MFU below."""
    import torch

    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    for _ in range(3):
        a @ a
    _wait()
    began = time.perf_counter()
    for _ in range(20):
        a @ a
    _wait()
    return round(20 * 2 * 8192**3 / (time.perf_counter() - began) / 1e12)


def measure(options, work):
    """Every part, while there is time."""
    end = time.monotonic() + 60 * options.minutes
    names = list(REDUCED if options.reduced else SHAPES)
    parts = [("attention",), ("loss",), ("resume",)]
    parts += [("speed", n, c) for n in names for c in ("none", "full")]
    if importlib.util.find_spec("trl") is not None:
        parts += [("trl", n) for n in names]
    result = {"environment": None, "speed": [], "trl": [], "failed": {}, "left_out": []}
    for words in [("environment",), *parts]:
        left = end - time.monotonic()
        if left < 10:
            result["left_out"].append(" ".join(words))
            continue
        found, why = part(work, options.reduced, words, left)
        if why:
            result["failed"][" ".join(words)] = why
        if words[0] in ("speed", "trl"):
            result[words[0]] += found
        elif found:
            result[words[0]] = found[0]
    return result


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--reduced", action="store_true")
    parser.add_argument("--minutes", type=float, default=8.5)
    parser.add_argument("--out", type=Path, help="write the JSON here as well")
    parser.add_argument("--part", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part is None:
        with tempfile.TemporaryDirectory() as scratch:
            result = json.dumps(measure(options, Path(scratch)), indent=1)
        if options.out:
            options.out.write_text(result + "\n")
        print(result)
        return
    name, *words = options.part
    work, reduced = options.work, options.reduced
    results = {
        "environment": lambda: [environment()],
        "attention": lambda: [attention_errors(reduced)],
        "loss": lambda: [loss_errors(reduced)],
        "resume": lambda: [resume_losses(work, reduced)],
        "speed": lambda: speeds(work, words[0], words[1] == "full", reduced),
        "trl": lambda: trl_speeds(work, words[0], reduced),
    }
    for found in results[name]():
        print(FOUND + json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
