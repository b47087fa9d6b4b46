"""Every family that the matrix calls exact goes through train and export, whole and by adapters, as a user would start it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from ranks import torchrun
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
PARTS = 2  # of the families, that another process may take


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_train_and_export(kind: str, part: int, sft: Sft, project: Path, base_model: Path) -> None:
    failed: dict[str, str] = {}
    for number, model_type in enumerate(EXACT[part::PARTS]):
        save_base(model_type, False, project / f"base-{model_type}", base_model)
        words = [
            "my.yaml", f"model.path={project / f'base-{model_type}'}", "train.max_steps=2", "launch.nproc=1", *KINDS[kind],
        ]  # fmt: skip
        if number == 0:
            assert sft("prepare", *words)[0] == 0
        code, _, err = sft("write-run", *words, "--run-dir", str(project / "runs" / model_type))
        if code:
            failed[model_type] = err
    begun = [t for t in EXACT[part::PARTS] if t not in failed]
    torchrun(
        1,
        Path(__file__).with_name("train_each.py"),
        *(str(project / "runs" / t) for t in begun),
        timeout_s=3000,
    )
    for model_type in begun:
        run = project / "runs" / model_type
        if (run / "failed.txt").is_file():
            why = (run / "failed.txt").read_text().strip().splitlines()[-1]
            if not any(known in why for known in SAID):
                failed[model_type] = why
        elif read_json(run / "status.json")["state"] != "finished":
            failed[model_type] = str(read_json(run / "status.json"))
        elif not (run / "export" / "export_check.json").is_file():
            failed[model_type] = "not verified"
    assert not failed
