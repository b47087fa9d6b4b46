"""The training step, measured: our loop beside a bare PyTorch loop on the same batches, and beside TRL's SFTTrainer.

    python bench/step.py                     # about 15 minutes on two cores; without TRL about 6
    python bench/step.py --pairs 5 --rounds 1 --steps 8

Prints one JSON object. All sides train the same small Llama on the same chats, one process, one thread, fp32, rows of
1,024 tokens, four a step.

- `loop`: the whole trainer (planning, collation, metrics, heartbeat, run folder) with ZeRO off and with ZeRO-3, each step
  followed by the same step in a bare loop: forward, backward, clip, AdamW. Both must lose alike. `over_bare` is the median
  of the pairs' CPU seconds, bare over ours: 1 is no overhead.
- `trl`: tokens that are data (no padding) a CPU second, ours and TRL with its own packing, in alternating processes.
- `first_step`: seconds from the command to the end of the first optimizer step, with nothing prepared and with everything.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["DS_ACCELERATOR"] = "cpu"

SEQ_LEN, ROWS, WARM_UP = 1024, 4, 3
SHAPE = {
    "hidden_size": 256,
    "intermediate_size": 688,
    "layers": 6,
    "heads": 4,
    "max_position_embeddings": SEQ_LEN,
}
VOCABULARY, LR = 8192, 1e-3


def write_chats(path, n):
    from tokens import synthetic

    path.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in synthetic(n)))


def run_config(work, name, *, stage, steps, data="data"):
    """The config of one run as a mapping."""
    return {
        "name": name, "run_root": str(work / "runs"),
        "data": {"dir": str(work / data), "sources": {"chats": {"kind": "chat", "path": str(work / "chats.jsonl")}},
                 "holdout": {"examples_per_task": 0}},
        "render": {"template": "chatml", "train_vocab_size": VOCABULARY},
        "pack": {"seq_len": SEQ_LEN},
        "model": {"shape": SHAPE, "dtype": "float32", "gradient_checkpointing": False},
        "optim": {"lr": LR, "schedule": "constant", "warmup_steps": 0},
        "train": {"tokens_per_step": ROWS * SEQ_LEN, "max_steps": steps, "export": False, "threads_per_rank": 1},
        "deepspeed": {"stage": stage},
        "checkpoint": {"save_every_minutes": None},
        "launch": {"nproc": 1},
    }  # fmt: skip


def open_run(work, name, **options):
    """Prepare and freeze a run in this process; return (config, run folder)."""
    from sft_dist.config.load import validate
    from sft_dist.pipelines.data.prepare import prepare
    from sft_dist.pipelines.train.run_folder import run_folder, set_up

    config = validate(run_config(work, name, **options))
    folder = run_folder(config)
    set_up(config, prepare(config, command="bench"), folder)
    return config, folder


def train_here(config, folder, loop_run=None):
    """Run the one rank in this process, with another `loop.run` if given."""
    from sft_dist.pipelines.train import worker
    from sft_dist.train import zero
    from sft_dist.train.guard import Heartbeat

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        os.environ["MASTER_PORT"] = str(s.getsockname()[1])
    zero.init_distributed(5)
    if loop_run is not None:
        worker.loop.run = loop_run
    with Heartbeat(folder) as heartbeat:
        worker.train(config, folder, heartbeat)


def bare_loop(model_folder, device="cpu"):
    """A function that trains a copy of the model on a global batch: nothing but what PyTorch needs."""
    import torch

    from sft_dist.config.model import ModelConfig
    from sft_dist.config.train import OptimConfig
    from sft_dist.model.load import load_packed
    from sft_dist.model.packed import to_inputs
    from sft_dist.train.optim import parameter_groups

    model = load_packed(
        model_folder, ModelConfig(dtype="float32", gradient_checkpointing=False), device=device
    ).module
    model.train()
    optimizer = torch.optim.AdamW(parameter_groups(model, OptimConfig()), lr=LR, betas=(0.9, 0.95), eps=1e-8)

    def step(batches, target_weight):
        total = 0.0
        for batch in batches:
            loss, _ = model(*to_inputs(batch, device))
            (loss / target_weight).backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return total / target_weight

    return step


def measure_pairs(work, stage, pairs):
    """CPU seconds of our steps, and of a bare loop's on the same batches, one after the other."""
    from sft_dist.train import loop

    config, folder = open_run(work, f"pairs-{stage}", stage=stage, steps=pairs + WARM_UP)
    ours, bare, losses_bare, collated = [], [], [], deque()
    run = loop.run

    def remembered(plan, collate):
        batches = collate()
        collated.append((batches, plan.target_weight))
        return batches

    def paired(engine, work_items, taken, *, hooks, **options):
        bare_step = bare_loop(str(folder.path / "init"))
        began = time.process_time()

        def log(metrics):
            nonlocal began
            hooks.log(metrics)
            ours.append(time.process_time() - began)
            began = time.process_time()
            losses_bare.append(bare_step(*collated.popleft()))
            bare.append(time.process_time() - began)
            began = time.process_time()

        items = (
            (position, plan, partial(remembered, plan, collate)) for position, plan, collate in work_items
        )
        return run(engine, items, taken, hooks=dataclasses.replace(hooks, log=log), **options)

    train_here(config, folder, paired)
    losses_ours = [json.loads(line)["loss"] for line in folder.metrics.read_text().splitlines()
                   if '"train"' in line]  # fmt: skip
    keep = slice(WARM_UP, None)
    ratios = [b / o for o, b in zip(ours[keep], bare[keep], strict=True)]
    return {
        "over_bare": round(statistics.median(ratios), 3),
        "ours_cpu_s": round(statistics.median(ours[keep]), 4),
        "bare_cpu_s": round(statistics.median(bare[keep]), 4),
        "pairs": len(ratios),
        "largest_loss_difference": max(abs(a - b) for a, b in zip(losses_ours, losses_bare, strict=True)),
    }


def measure_ours(work, steps):
    """Tokens a CPU second of our trainer alone."""
    from sft_dist.train import loop

    config, folder = open_run(work, f"ours-{time.time_ns()}", stage=0, steps=steps + WARM_UP)
    run, marks = loop.run, []

    def timed(engine, work_items, taken, *, hooks, **options):
        def log(metrics):
            hooks.log(metrics)
            marks.append(time.process_time())

        return run(engine, work_items, taken, hooks=dataclasses.replace(hooks, log=log), **options)

    train_here(config, folder, timed)
    lines = [json.loads(x) for x in folder.metrics.read_text().splitlines() if '"train"' in x]
    tokens = sum(line["tokens"] for line in lines[WARM_UP:])
    return {
        "tokens_per_cpu_s": round(tokens / (marks[-1] - marks[WARM_UP - 1])),
        "first_loss": lines[0]["loss"],
    }


def measure_trl(work, steps, cache):
    """Tokens a CPU second of TRL's SFTTrainer with its own preparation and packing; when its first step ended."""
    os.environ["HF_DATASETS_CACHE"] = str(cache)
    import datasets
    import torch
    import transformers
    import trl
    from tokens import CHATML

    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    tokenizer = transformers.AutoTokenizer.from_pretrained(work / "tokenizer")
    tokenizer.chat_template = CHATML
    model = transformers.AutoModelForCausalLM.from_pretrained(work / "model", dtype=torch.float32)
    marks, tokens = [], []

    class Marks(transformers.TrainerCallback):
        def on_step_end(self, _args, _state, _control, **_):
            marks.append((time.process_time(), time.time()))

    class Counting(trl.SFTTrainer):
        def training_step(self, model, inputs, *args, **kwargs):
            tokens.append(int(inputs["input_ids"].numel()))  # rows are full or end in padding of TRL's own
            return super().training_step(model, inputs, *args, **kwargs)

    trainer = Counting(
        model=model,
        args=trl.SFTConfig(
            output_dir=str(work / "trl"), max_length=SEQ_LEN, packing=True, assistant_only_loss=True, max_steps=steps,
            per_device_train_batch_size=1, gradient_accumulation_steps=ROWS, learning_rate=LR, lr_scheduler_type="constant",
            use_cpu=True, bf16=False, gradient_checkpointing=False, report_to=[], save_strategy="no", logging_steps=1,
            eos_token="<|im_end|>", adam_beta2=0.95, disable_tqdm=True,
        ),
        train_dataset=datasets.load_dataset("json", data_files=str(work / "chats.jsonl"), split="train"),
        processing_class=tokenizer,
        callbacks=[Marks()],
    )  # fmt: skip
    trainer.train()
    first = next(h["loss"] for h in trainer.state.log_history if "loss" in h)
    result = {"first_loss": first, "first_step_at": marks[0][1]}
    if len(marks) > WARM_UP:
        seconds = marks[-1][0] - marks[WARM_UP - 1][0]
        result["tokens_per_cpu_s"] = round(sum(tokens[WARM_UP * ROWS : len(marks) * ROWS]) / seconds)
    return result


def role(work, *words):
    """Run a role of this script in a process of its own; return (its result, wall seconds, CPU seconds, start)."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.time()
    done = subprocess.run(
        [sys.executable, __file__, "--role", *words, "--work", str(work)], capture_output=True, text=True, check=False
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"{' '.join(words)} failed:\n{done.stderr[-3000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return json.loads(done.stdout.splitlines()[-1]), time.time() - start, cpu, start


def first_step_ours(work, data):
    """Seconds from `sft-dist train` to the end of the first step, stores in `data` built or found."""
    name = f"first-{time.time_ns()}"
    file = work / f"{name}.json"
    file.write_text(json.dumps(run_config(work, name, stage=0, steps=1, data=data)))
    start = time.time()
    done = subprocess.run(
        [sys.executable, "-m", "sft_dist", "train", str(file)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    lines = (work / "runs" / name / "metrics.jsonl").read_text().splitlines()
    return round(json.loads(next(x for x in lines if '"train"' in x))["time"] - start, 1)


def measure(options, work):
    """Everything, one side after the other."""
    import shutil

    write_chats(work / "chats.jsonl", options.chats)
    # also warms up what the sides share; leaves the tokenizer and the initial model for TRL
    _, folder = open_run(work, "prepared", stage=0, steps=1)
    result = {"loop": {}}
    for stage in (0, 3):
        result["loop"][f"zero_{stage}"], *_ = role(work, "pairs", str(stage), str(options.pairs))
    initial = work / "runs" / "pairs-0" / "init"
    shutil.copytree(initial, work / "model")
    from sft_dist.config.load import load_run_config
    from sft_dist.pipelines.data.renderer import make_renderer

    config = load_run_config(folder.path)
    make_renderer(config, Path(config.data.dir), lambda: ()).save_tokenizer(work / "tokenizer")
    with_trl = importlib.util.find_spec("trl") is not None and not options.no_trl
    rates = {"ours": [], "trl": []}
    for _ in range(options.rounds):
        rates["ours"].append(role(work, "ours", str(options.steps))[0]["tokens_per_cpu_s"])
        if with_trl:
            rates["trl"].append(role(work, "trl", str(options.steps), "cache")[0]["tokens_per_cpu_s"])
    result["tokens_per_cpu_s"] = {n: statistics.median(r) for n, r in rates.items() if r}
    if with_trl:
        result["ours_over_trl"] = round(
            statistics.median(a / b for a, b in zip(rates["ours"], rates["trl"], strict=True)), 2
        )
    first = {"ours_cold_s": [], "ours_warm_s": [], "trl_cold_s": [], "trl_warm_s": []}
    for r in range(options.rounds):
        first["ours_cold_s"].append(first_step_ours(work, f"data-{r}"))
        first["ours_warm_s"].append(first_step_ours(work, f"data-{r}"))
        for name in ("trl_cold_s", "trl_warm_s") if with_trl else ():
            facts, _, _, start = role(work, "trl", "1", f"cache-{r}")
            first[name].append(round(facts["first_step_at"] - start, 1))
    result["first_step"] = {n: statistics.median(v) for n, v in first.items() if v}
    return result


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--chats", type=int, default=10_000)
    parser.add_argument("--pairs", type=int, default=20, help="steps of the loop beside the bare loop")
    parser.add_argument("--steps", type=int, default=20, help="steps a round beside TRL")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-trl", action="store_true")
    parser.add_argument("--role", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role is None:
        with tempfile.TemporaryDirectory() as scratch:
            print(json.dumps(measure(options, Path(scratch)), indent=1))
        return
    name, *words = options.role
    if name == "pairs":
        result = measure_pairs(options.work, int(words[0]), int(words[1]))
    elif name == "ours":
        result = measure_ours(options.work, int(words[0]))
    else:
        result = measure_trl(options.work, int(words[0]), options.work / words[1])
    print(json.dumps(result))


if __name__ == "__main__":
    main()
