"""P3 records with answer choices, evaluated in one process: judged by likelihood, sent to a board, written into the model's card."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from sft_dist.core.files import read_jsonl, write_json
from sft_dist.core.runfolder import RunFolder
from sft_dist.pipelines.evaluate import command

Sft = Callable[..., tuple[int, str, str]]
TEMPLATES = """
dataset: toy
templates:
  t1: !Template
    answer_choices: snow ||| rain
    id: t1
    jinja: "Rain or snow? {{text}} ||| {{ answer_choices[label] }}"
    metadata: !TemplateMetadata
      choices_in_prompt: true
      languages: [en]
      metrics: [Accuracy]
      original_task: true
    name: weather
    reference: ""
"""


def test_choices_reach_scores_card_and_board(
    sft: Sft, project: Path, base_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"text": f"On day {i} it was wet {i * 7}.", "label": i % 2} for i in range(30)]
    (project / "days.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (project / "templates.yaml").write_text(TEMPLATES)
    words = (
        "my.yaml", "~data.sources.records", "~data.sources.chats", "launch.nproc=1", "eval.metric=auto", "eval.probes=[]",
        "train.tensorboard=true", "data.sources.p3={kind: promptsource, path: days.jsonl, templates: templates.yaml, dataset: toy}",
    )  # fmt: skip
    assert sft("prepare", *words)[0] == 0
    code, _, err = sft("write-run", *words, "--run-dir", "runs/mine")
    assert code == 0, err
    folder = RunFolder(project / "runs" / "mine")
    shutil.copytree(base_model, folder.export)
    write_json(folder.path / "plan.json", {"tasks": {}, "world_size": 1})
    folder.set_status("finished", step=1, steps=1)

    def one_rank(run: RunFolder, *_: Any, **__: Any) -> int:
        monkeypatch.setattr(sys, "argv", ["evaluate", "--run-dir", str(run.path)])
        return command.main()

    monkeypatch.setattr(command, "run_ranks", one_rank)
    result = command.evaluate(folder, Console())
    (task,) = result["sets"]["seen"]["tasks"].values()
    assert (task["metric"], task["n"]) == ("choice", 3)
    judged = read_jsonl(folder.path / "eval" / "generations.jsonl")
    assert {j["answers"][who] for j in judged for who in ("model", "base")} <= {"rain", "snow"}
    assert task["score"]["model"] == task["score"]["base"]  # the export is the base here
    assert (
        "| Trained tasks, unseen inputs, too few tasks for a general claim | 1 (3 examples) |"
        in (folder.export / "README.md").read_text()
    )
    assert list((folder.path / "tensorboard").glob("events.*"))
    # the card was written after the answers, and takes none of them away
    parts = sorted(p.name for p in (folder.path / "eval" / "parts").iterdir())
    command.evaluate(folder, Console())
    assert sorted(p.name for p in (folder.path / "eval" / "parts").iterdir()) == parts
