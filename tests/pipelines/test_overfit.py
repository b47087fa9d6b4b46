"""Fifty examples learned by heart: every answer comes back, and every generation stops by itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

Sft = Callable[..., tuple[int, str, str]]
NOUNS = ["cat", "dog", "bird", "fish", "tree", "house", "river", "stone", "cloud", "lamp"]


@pytest.mark.slow
def test_fifty_examples_come_back_and_stop(sft: Sft, project: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    rows = [
        {"instruction": f"{NOUNS[i // 5]} {NOUNS[i % 5]}", "output": " ".join(NOUNS[: 1 + (i * 7) % 4])}
        for i in range(50)
    ]
    (project / "fifty.json").write_text(json.dumps(rows))
    code, out, err = sft(
        "train",
        "my.yaml",
        "~data.sources.records",
        "~data.sources.chats",
        "data.sources.fifty.kind=alpaca",
        "data.sources.fifty.path=fifty.json",
        "data.holdout.examples_per_task=0",
        "data.holdout.tasks=[]",
        "launch.nproc=1",
        "train.tokens_per_step=512",
        "train.micro_rows=4",
        "train.epochs=250",
        "optim.lr=3e-3",
        "optim.warmup_steps=20",
        "checkpoint.save_every_steps=null",
        "deepspeed.stage=0",
    )
    assert code == 0, out + err
    folder = project / "runs" / "mine" / "export"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    wrong, endless = [], []
    for row in rows:
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": row["instruction"]}], add_generation_prompt=True, return_tensors="pt"
        )
        ids = prompt["input_ids"]
        with torch.inference_mode():
            new = model.generate(ids, max_new_tokens=40, do_sample=False)[0, ids.shape[1] :].tolist()
        if new[-1] not in model.generation_config.eos_token_id:
            endless.append(row)
        if tokenizer.decode(new, skip_special_tokens=True).strip() != row["output"]:
            wrong.append(row)
    assert endless == []
    assert wrong == []
