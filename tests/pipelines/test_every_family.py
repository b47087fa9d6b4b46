"""Every family that the matrix calls exact goes through train and export, as a user would start it.

Families alternate between all weights and adapters; the few that bring most kinds of layers take both, and so do all with
`SFT_EVERY_FAMILY=1`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from ranks import on_ranks
from test_families import save_base

from sft_dist.core.files import read_json

MATRIX = Path(__file__).resolve().parents[1] / "helpers" / "matrix.json"
EXACT = sorted(t for t, r in json.loads(MATRIX.read_text()).items() if r["state"] == "exact")
Sft = Callable[..., tuple[int, str, str]]
# of adapters: GPT-2 has no Linear, and the files of HRM and Lara hold several of them as one tensor
SAID = (
    "the decoder of this model has no Linear",
    "so the adapters cannot be merged into them; use lora.export=adapter",
)
KINDS = {"full": (), "lora": ("lora.rank=2",)}
BOTH = (
    "deepseek_v4",
    "gemma4_text",
    "gpt_oss",
    "hrm_text",
    "llama",
    "nemotron_h",
    "qwen3_5_moe_text",
    "qwen3_5_text",
)
RUNS = [
    (model_type, kind)
    for number, model_type in enumerate(EXACT)
    for place, kind in enumerate(KINDS)
    if model_type in BOTH or number % 2 == place or os.environ.get("SFT_EVERY_FAMILY") == "1"
]
PARTS = 4  # that another process may take


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("part", range(PARTS))
def test_train_and_export(part: int, sft: Sft, project: Path, base_model: Path) -> None:
    failed: dict[str, str] = {}
    names = []
    for number, (model_type, kind) in enumerate(RUNS[part::PARTS]):
        base, name = project / f"base-{model_type}", f"{model_type}-{kind}"
        if not base.exists():
            save_base(model_type, False, base, base_model)
        words = ["my.yaml", f"model.path={base}", "train.max_steps=2", "launch.nproc=1", *KINDS[kind]]
        if number == 0:
            assert sft("prepare", *words)[0] == 0
        code, _, err = sft("write-run", *words, "--run-dir", str(project / "runs" / name))
        names.append(name)
        if code:
            failed[name] = err
    begun = [n for n in names if n not in failed]
    on_ranks(
        1,
        Path(__file__).with_name("train_each.py"),
        *(str(project / "runs" / n) for n in begun),
        timeout_s=3000,
    )
    for name in begun:
        run = project / "runs" / name
        if (run / "failed.txt").is_file():
            why = (run / "failed.txt").read_text().strip().splitlines()[-1]
            if not any(known in why for known in SAID):
                failed[name] = why
        elif read_json(run / "status.json")["state"] != "finished":
            failed[name] = str(read_json(run / "status.json"))
        elif not (run / "export" / "export_check.json").is_file():
            failed[name] = "not verified"
    assert not failed
