"""A run folder as a real run would leave it, from a few curves and seeds. Figures are synthetic but plausible.

`python tests/report/run_fixture.py FOLDER` writes one and its report, to look at the design.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from sft_dist.core.files import write_json
from sft_dist.core.records import StepMetrics, single_turn
from sft_dist.evals.baselines import Baselines, TrainingPair
from sft_dist.evals.constraints import FORMATS
from sft_dist.evals.probes import PROBES, RANKS
from sft_dist.evals.score import score_examples, scores, write_results
from sft_dist.evals.splits import AnswerLoss, Generation

# task -> (training examples, loss at the start, loss at the end, share that the model gets right, labels)
TASKS = {
    "reverse_word": (400, 3.9, 0.42, 0.71, None),
    "sentiment": (400, 2.1, 0.08, 0.97, ("positive", "negative")),
    "add_small_numbers": (400, 3.2, 0.21, 0.86, None),
    "count_vowels": (400, 2.6, 0.35, 0.77, ("one", "two", "three", "four")),
    "first_letter": (400, 3.0, 0.04, 0.99, tuple("abcdefghkm")),
    "plural": (400, 3.6, 0.12, 0.93, None),
    "sort_letters": (400, 3.8, 0.55, 0.58, None),
    "is_longer": (380, 1.9, 0.16, 0.94, ("yes", "no")),
    "to_upper": (400, 3.7, 0.10, 0.95, None),
    "day_after": (
        400,
        2.8,
        0.03,
        1.0,
        ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
    ),
    "json_field": (400, 3.3, 0.09, 0.96, None),
    "parity": (60, 1.8, 0.31, 0.82, ("even", "odd")),
    "opposite": (34, 3.5, 0.88, 0.44, None),
    "remove_duplicates": (400, 3.6, 0.47, 0.66, None),
}
HELDOUT = {
    "last_letter": (0.31, tuple("abcdefghkm")),
    "to_lower": (0.47, None),
    "day_before": (0.18, ("Monday", "Tuesday", "Friday")),
}
WORDS = [
    "amber",
    "birch",
    "cedar",
    "delta",
    "ember",
    "flint",
    "grove",
    "haven",
    "inlet",
    "jetty",
    "kelp",
    "maple",
    "ocean",
    "quartz",
]
STEPS = 640


def write_run(
    path: Path,
    *,
    name: str = "demo",
    steps: int = STEPS,
    planned: int = STEPS,
    lr: float = 3e-3,
    seed: int = 0,
    evaluated: bool = True,
) -> Path:
    """Write every file of a run that got to `steps` of `planned`."""
    rng = np.random.default_rng(seed)
    path.mkdir(parents=True)
    write_json(path / "config.json", config(name, lr))
    write_json(path / "env.json", ENV)
    write_json(path / "plan.json", plan(planned))
    write_json(
        path / "status.json",
        {"state": "finished", "time": 1.0, "step": steps, "steps": steps}
        if steps == planned
        else {"state": "fatal", "reason": "rank 1 ended with signal 9"},
    )
    with (path / "metrics.jsonl").open("w") as f:
        for step in range(1, steps + 1):
            f.write(json.dumps(metrics(step, planned, lr, rng)) + "\n")
            if step % 80 == 0:
                task_loss = {t: loss_at(step, planned, a, b * 1.15) for t, (_, a, b, _, _) in TASKS.items()}
                line = {
                    "kind": "eval",
                    "step": step,
                    "loss": float(np.mean(list(task_loss.values()))),
                    "set_loss": {
                        name: float(np.mean(list(task_loss.values()))) * more
                        for name, more in (
                            ("validation", 1.0),
                            ("seen", 1.02),
                            ("heldout_near", 2.0),
                            ("heldout_far", 4.0),
                        )
                    },
                    "task_loss": task_loss,
                }
                f.write(json.dumps(line) + "\n")
    with (path / "events.jsonl").open("w") as f:
        for event in events(steps):
            f.write(json.dumps(event) + "\n")
    if evaluated:
        evaluate(path / "eval", rng)
    return path


def loss_at(step, planned, first, last):
    return float(last + (first - last) * np.exp(-9 * step / planned))


def metrics(step, planned, lr, rng):
    share = {t: v[0] for t, v in TASKS.items()}
    present = [t for t, n in share.items() if rng.random() < min(1.0, n / 120)]
    task_loss = {t: loss_at(step, planned, *TASKS[t][1:3]) * float(rng.lognormal(0, 0.18)) for t in present}
    weights = np.array([share[t] for t in present], dtype=float)
    loss = float(np.average(list(task_loss.values()), weights=weights))
    fill = float(np.clip(rng.normal(0.991, 0.003), 0.9, 1)) if step % 160 else 0.93
    warmup = 0.05 * planned
    rate = lr * (
        step / warmup if step < warmup else 0.5 * (1 + np.cos(np.pi * (step - warmup) / (planned - warmup)))
    )
    step_s = float(rng.normal(0.46, 0.02)) + (0.35 if step % 100 == 0 else 0)
    tokens = int(8192 * fill)
    out = StepMetrics(
        step=step, epoch=2 * (step - 1) // planned, loss=loss, grad_norm=float(0.6 + 3.5 * np.exp(-step / 40) + abs(rng.normal(0, 0.12))),
        lr=float(rate), tokens=tokens, target_tokens=int(tokens * 0.21), tokens_per_s=tokens / step_s, mfu=None, fill=fill,
        imbalance=float(1.004 + abs(rng.normal(0, 0.006))), step_s=step_s, data_wait_s=0.002, memory_bytes=1_310_000_000, skipped=step == 231, task_loss=task_loss,
    )  # fmt: skip
    fields = {f: getattr(out, f) for f in out.__dataclass_fields__}
    if out.skipped:
        fields |= {"loss": None, "grad_norm": None}
    return {"kind": "train", **fields}


def plan(steps):
    tasks = {}
    for task, (n, *_rest) in TASKS.items():
        drawn = max(n, 60)
        tasks[task] = {
            "source": "demo", "examples": n, "tokens": n * 58, "target_tokens": n * 12,
            "drawn_examples": drawn, "drawn_tokens": drawn * 58, "drawn_target_tokens": drawn * 12,
        }  # fmt: skip
    total = sum(v["examples"] for v in tasks.values())
    return {
        "examples": total, "tokens": total * 58, "target_tokens": total * 12, "rows": 5120, "steps": steps, "epochs": 2,
        "fill": 0.9897, "seq_len": 512, "tokens_per_step": 8192, "world_size": 2, "parameters": 1_254_528,
        "drops": {"too_long": 3}, "truncated": 12, "duplicates": 0,
        "sources": {
            "demo": {"kind": "demo", "read": 5600, "unreadable": 0, "kept": total, "evaluation": 414, "dropped": {"eval_input": 214, "duplicate": 87, "answer_repeats_prompt": 11}, "tokens": total * 58, "target_tokens": total * 12}
        },
        "tasks": tasks,
    }  # fmt: skip


def config(name, lr):
    return {
        "name": name, "run_root": "runs", "seed": 0,
        "data": {"dir": "data/demo", "sources": {"demo": {"kind": "demo", "weight": 1.0}}, "holdout": {"number": 3, "examples_per_task": 30}},
        "render": {"template": "chatml", "train_on": "assistant", "train_vocab_size": 1024},
        "mix": {"rate": "proportional", "task_min": 60}, "pack": {"seq_len": 512, "window": 5000},
        "model": {"path": None, "shape": {"hidden_size": 128, "layers": 4, "heads": 4}, "dtype": "float32", "attention": "auto"},
        "optim": {"lr": lr, "betas": [0.9, 0.95], "schedule": "cosine", "warmup_share": 0.05, "clip": 1.0},
        "train": {"epochs": 2, "tokens_per_step": 8192}, "deepspeed": {"stage": 3}, "eval": {"metric": "exact_match", "max_new_tokens": 32},
    }  # fmt: skip


ENV = {
    "python": "3.11.9",
    "world_size": 2,
    "device": "x86_64 CPU, 2 cores",
    "started": 1_795_000_000.0,
    "versions": {"sft-dist": "0.1.0", "torch": "2.13.0", "deepspeed": "0.19.8", "transformers": "5.23.0"},
    "git": {"commit": "3f1c2ab", "dirty": False},
    "hosts": ["node-a"],
}


def events(steps):
    start = 1_795_000_000.0
    out = [{"time": start, "kind": "start", "world_size": 2, "attention": "sdpa_per_doc"}]
    for step in range(100, steps + 1, 100):
        out.append({"time": start + step * 0.47, "kind": "saved", "step": step, "seconds": 0.31})
        if step == 200:
            out.append(
                {
                    "time": start + 131,
                    "kind": "skipped_step",
                    "step": 231,
                    "loss": None,
                    "examples": ["91c0…", "7ad2…"],
                }
            )
        if step == 400:
            out.append(
                {
                    "time": start + 260,
                    "kind": "resumed",
                    "step": 400,
                    "checkpoint": "step-00000400",
                    "world_size": 2,
                }
            )
    if steps == STEPS:
        out.append({"time": start + steps * 0.47 + 4, "kind": "export", "step": steps, "path": "export"})
    return out


def evaluate(folder, rng):
    """Judge synthetic answers with the real metrics."""
    sets, generations, losses, training = {"seen": [], "heldout_near": [], "heldout_far": []}, {}, {}, []
    wanted = [("seen", t, v[3], v[4], v[2], 30) for t, v in TASKS.items()] + [
        ("heldout_far" if t == "to_lower" else "heldout_near", t, p, labels, 1.9, 100)
        for t, (p, labels) in HELDOUT.items()
    ]
    for set_name, task, accuracy, labels, loss, n in wanted:
        for i in range(n):
            e, wrong = make(task, labels, i, rng)
            if i < 20 and set_name == "seen":
                training.append(TrainingPair(task, e.messages[0].content + " again", e.output))
            right = rng.random() < accuracy
            sets[set_name].append(e)
            generations[e.id] = Generation(
                id=e.id,
                prediction=e.output if right else wrong,
                stopped=bool(right or rng.random() < 0.9),
                tokens=5,
            )
            losses[e.id] = AnswerLoss(id=e.id, nats=float(5 * loss * rng.lognormal(0, 0.3)), tokens=5)
    rng.shuffle(training)
    answers = [k.answer for k in training]  # the neighbour's answer is right now and then, as in real tasks
    training = [
        k._replace(answer=answers[int(rng.integers(len(answers)))] if rng.random() < 0.6 else k.answer)
        for k in training
    ]
    base = {
        i: Generation(
            id=i, prediction=g.prediction if rng.random() < 0.1 else "no idea", stopped=False, tokens=32
        )
        for i, g in generations.items()
    }
    judged = score_examples(sets, generations, Baselines(training), base, metric="exact_match", losses=losses)
    result = scores(judged, asked="exact_match", training_examples={t: v[0] for t, v in TASKS.items()})
    result["probes"] = probes(rng)
    write_results(folder, judged, result)


def probes(rng):
    """Figures as the probes give them; their own tests check how they come about."""

    def near(mean, width=0.06):
        return {"mean": mean, "low": mean - width, "high": mean + width, "tasks": 14, "n": 60}

    kinds = {"compliance": near(0.2), "memory": near(0.7), "rest": near(0.1), "superficiality": near(0.78)}
    tasks = {
        t: {"compliance": 0.2, "memory": 0.7, "rest": 0.1, "n": 10, "memory_low": 0.4, "memory_high": 0.9, "sibling": "day_after"}
        for t in HELDOUT
    }  # fmt: skip
    ranks = {kind: near(x) for kind, x in zip(RANKS, (0.7, 0.2, 0.1), strict=True)}
    parts = {
        "phrasing": {"figures": {"as asked": near(0.8), "unseen wording": near(0.7), "worst wording": near(0.6)}},
        "contrast": {"model": {**kinds, "tasks": tasks}, "base": {**kinds, "tasks": tasks}},
        "labels": {mode: {who: {**kinds, "tasks": 14} for who in ("model", "base")} for mode in ("swapped", "renamed")},
        "instruction": {
            "sets": {
                "seen": {
                    who: {"saved_against_none": near(1.2), "saved_against_wrong": near(1.6), "prefers_right": near(share)}
                    for who, share in (("model", 0.9), ("base", 0.5))
                }
            }
        },
        "format": {mode: {who: {**kinds, "kept": near(0.5), "tasks": 14} for who in ("model", "base")} for mode in ("all", *FORMATS)},
        "memorisation": {"gap": {"model": near(0.3), "base": near(0.0)}},
        "control": {
            who: {"prompt_strict": near(p), "prompt_loose": near(p), "instruction_strict": near(p), "constraints": {"json": near(p), "bullets": near(p)}}
            for who, p in (("model", 0.4), ("base", 0.2))
        },
        "extraction": {who: {k: near(x) for k, x in (("trained", 0.6), ("unseen", 0.2), ("gap", 0.4))} for who in ("model", "base")},
        "shift": {
            "sets": {"seen": ranks},
            "positions": {"1": ranks, "2": ranks, "3 to 4": ranks},
        },
        "forgetting": {"difference": {"difference": 0.1, "low": 0.05, "high": 0.15}},
    }  # fmt: skip
    return {
        name: {
            "title": PROBES[name].title,
            "definition": PROBES[name].definition,
            "sentence": f"What {name} says.",
            **p,
        }
        for name, p in parts.items()
    }


def make(task, labels, i, rng):
    words = " ".join(rng.choice(WORDS, 3, replace=False))
    instruction = (
        f"Look at the words below and give their {task.replace('_', ' ')}. Answer with nothing else."
    )
    output = str(rng.choice(labels)) if labels else words[::-1]
    wrong = str(rng.choice(labels)) if labels else words[::-1][1:] + words[0]
    return single_turn(
        task=task, source="demo", instruction=instruction, input=f"{words} {i}", output=output
    ), wrong


if __name__ == "__main__":
    from sft_dist.report.run import write_report

    write_report(write_run(Path(sys.argv[1])))
