"""The user's own file, from check to report, on two ranks: what a new user does first."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sft_dist.core.files import read_jsonl
from sft_dist.core.runfolder import RunFolder
from sft_dist.shards import Store

Sft = Callable[..., tuple[int, str, str]]


def test_check_ends_in_one_line_and_keeps_nothing(sft: Sft, project: Path) -> None:
    before = set(project.iterdir())
    code, out, _ = sft("check", "my.yaml")
    assert code == 0
    # 80 records, 9 evaluated, and 6 whose input another task is evaluated on
    line = r"65 examples, [\d,]+ tokens, [\d,]+ supervised \(\d+%\), fill \d\d\.\d%, \d+ steps; drops: eval_input 6"
    assert re.fullmatch(line, out.splitlines()[-1])
    assert set(project.iterdir()) == before


def test_check_counts_what_preparation_builds(sft: Sft, project: Path) -> None:
    _, dry, _ = sft("check", "my.yaml")
    assert sft("prepare", "my.yaml")[0] == 0
    _, exact, _ = sft("check", "my.yaml")
    assert dry == exact


def test_tasks_are_held_out_by_name_glob_and_number(sft: Sft, project: Path) -> None:
    for override in ("data.holdout.tasks=[second]", "data.holdout.tasks=[sec*]", "data.holdout.number=1"):
        code, out, _ = sft("prepare", "my.yaml", override, "--rebuild")
        assert code == 0, out
        held = {
            json.loads(line)["task"]
            for line in (project / "data/eval/heldout.jsonl").read_text().splitlines()
        }
        assert len(held) == 1
        trained = {
            t
            for p in (project / "data/stores").glob("*/manifest.json")
            for t in json.loads(p.read_text())["tasks"]
        }
        assert not held & trained


def test_no_evaluation_input_is_trained_on(sft: Sft, project: Path) -> None:
    from sft_dist.core.records import example_from_dict
    from sft_dist.holdout import input_key

    sft("prepare", "my.yaml")
    evaluated = {
        input_key(example_from_dict(json.loads(line)))
        for line in (project / "data/eval/seen.jsonl").read_text().splitlines()
    }
    ids = {e for p in (project / "data/stores").iterdir() for e in map(bytes, np.array(Store.open(p).ids))}
    dropped = Counter(
        json.loads(line)["reason"]
        for line in (project / "data/rejects/records.jsonl").read_text().splitlines()
    )
    # both tasks ask about the same inputs: an input that one is evaluated on is dropped from the other
    assert dropped["eval_input"] > 0
    for row in json.loads((project / "alpaca.json").read_text()):
        from sft_dist.core.records import single_turn

        e = single_turn(
            task=row["task"],
            source="records",
            instruction=row["instruction"],
            input=row["input"],
            output=row["output"],
        )
        assert not (input_key(e) in evaluated and bytes.fromhex(e.id) in ids)


def test_train_stop_continue_export_evaluate_report(sft: Sft, project: Path) -> None:
    """One long walk: launches cost seconds each, so they are shared."""
    # trained in two parts: stopped by max_steps, continued by the same command without it
    code, out, err = sft("train", "my.yaml", "train.max_steps=3")
    assert code == 0, out + err
    folder = RunFolder(project / "runs" / "mine")
    assert folder.status()["step"] == 3
    code, out, err = sft("train", "my.yaml", "train.epochs=2")
    assert code == 0, out + err
    events = [e["kind"] for e in read_jsonl(folder.events)]
    assert "resumed" in events
    assert "config_changed" in events
    steps = [m["step"] for m in read_jsonl(folder.metrics) if m["kind"] == "train"]
    assert steps == list(range(1, folder.status()["steps"] + 1))  # every step once
    losses = [m["loss"] for m in read_jsonl(folder.metrics) if m["kind"] == "train"]
    assert losses[-1] < losses[0]
    assert any(m["kind"] == "eval" and "first" in m["task_loss"] for m in read_jsonl(folder.metrics))

    # the export is what plain transformers opens: same weights, tokenizer, template, end of turn
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from sft_dist.checkpoint.index import read_index
    from sft_dist.checkpoint.io import read_parameter
    from sft_dist.core.files import read_json

    model = AutoModelForCausalLM.from_pretrained(folder.export)
    latest = folder.checkpoints / (folder.checkpoints / "LATEST").read_text().strip()
    index = read_index(latest)
    assert set(index.parameters) == {n for n, _ in model.named_parameters()}
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, read_parameter(latest, index, name)), name
    tokenizer = AutoTokenizer.from_pretrained(folder.export)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], add_generation_prompt=True, tokenize=False
    )
    assert prompt == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    end_of_turn, end_of_text = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    assert model.generation_config.eos_token_id == [end_of_turn, end_of_text]
    assert tokenizer.eos_token == "<|im_end|>"
    assert model.config.use_cache is True

    # it was reloaded and compared before the run was called finished, and its card says so
    found = read_json(folder.export / "export_check.json")
    assert found["loss_difference"] < 1e-4
    assert found["template"] is True
    assert found["prompts"] == 3
    card = folder.export / "README.md"
    assert "Plain transformers opens this folder whole" in card.read_text()
    assert "Not evaluated yet" in card.read_text()

    # evaluation and report
    code, out, err = sft("evaluate", "runs/mine")
    assert code == 0, out + err
    assert (
        "| Trained tasks, unseen inputs, too few tasks for a general claim | 3 (9 examples) |"
        in card.read_text()
    )
    assert "| records | alpaca | not stated |" in card.read_text()
    assert "report: runs/mine/report.html" in out
    generations = read_jsonl(folder.path / "eval" / "generations.jsonl")
    assert Counter(g["task"] for g in generations) == {"first": 3, "second": 3, "chats": 3}
    scores = read_json(folder.path / "eval" / "scores.json")
    assert scores["sets"]["seen"]["tasks"]["first"]["score"]["model"] == pytest.approx(
        np.mean([g["scores"]["model"][g["metric"]] for g in generations if g["task"] == "first"])
    )

    # any checkpoint can be exported elsewhere, never over what is there
    name = min(p.name for p in folder.checkpoints.glob("step-*"))
    assert sft("export", "runs/mine", "--checkpoint", name, "--out", "older")[0] == 0
    assert AutoModelForCausalLM.from_pretrained("older").num_parameters() == model.num_parameters()
    (project / "precious").mkdir()
    (project / "precious" / "thesis.txt").touch()
    code, _, err = sft("export", "runs/mine", "--out", "precious")
    assert code == 2
    assert "exists and is not empty" in err
    assert (project / "precious" / "thesis.txt").exists()

    # a later preparation with another hold-out does not change what the run is evaluated on
    assert sft("prepare", "my.yaml", "data.holdout.tasks=[second]", "--rebuild")[0] == 0
    code, _, err = sft("evaluate", "runs/mine")
    assert code == 2
    assert "was prepared with other sources, filters or hold-out since" in err
    assert sft("prepare", "my.yaml", "--rebuild")[0] == 0

    # other settings may not be mixed into the run
    code, _, err = sft("train", "my.yaml", "train.epochs=2", "optim.lr=5e-4")
    assert code == 2
    assert "optim.lr 0.001 -> 0.0005" in err
    code, out, _ = sft("train", "my.yaml", "train.epochs=2")
    assert code == 0
    assert "finished already" in out

    # from another directory, and after the export was lost
    code, out, err = sft("report", str(folder.path))
    assert code == 0, err


def test_stop_by_file_and_start_anew(sft: Sft, project: Path) -> None:
    """`control/stop` ends a run with a checkpoint; `never` starts anew once, not at every restart; a live run is left alone."""
    from sft_dist.core.files import read_json

    assert sft("prepare", "my.yaml")[0] == 0
    folder = RunFolder(project / "runs" / "mine")
    assert sft("write-run", "my.yaml", "--run-dir", "runs/mine")[0] == 0
    with folder.lock():
        code, _, err = sft("train", "my.yaml")
        assert code == 2
        assert "in use by another run" in err
        assert folder.status() == {}  # not marked as failed by the one that was refused
    code, out, err = sft("train", "my.yaml", "train.max_steps=2", "train.export=false")
    assert code == 0, out + err
    code, out, err = sft(
        "train", "my.yaml", "train.max_steps=2", "train.export=false", "checkpoint.resume=never"
    )
    assert code == 0, out + err
    assert len(list((project / "runs").glob("mine.old-*"))) == 1
    assert read_json(folder.config)["checkpoint"]["resume"] == "auto"
    code, _, err = sft("train", "my.yaml", "name=typo", "checkpoint.resume=required")
    assert code == 2
    assert "has no checkpoint, so there is nothing to continue" in err
    assert not (project / "runs" / "typo").exists()


def test_preview_shows_turns_and_writes_a_page(sft: Sft, project: Path) -> None:
    code, out, err = sft("preview", "my.yaml", "--examples", "1", "--html", "page.html")
    assert code == 0, err
    assert "Which word comes" in out
    page = (project / "page.html").read_text()
    assert "Which word comes second?" in re.sub(
        r"<[^>]+>", "", page
    )  # the record in the middle of the source
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_wandb_offline_gets_the_metrics_and_checkpoints_come_by_time(
    sft: Sft, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real client, offline: a run file appears in the run folder, from rank 0 only."""
    monkeypatch.setenv("WANDB_SILENT", "true")
    words = ("train.max_steps=2", "wandb.mode=offline", "train.export=false")
    by_time = (
        "checkpoint.save_every_steps=null",
        "checkpoint.save_every_minutes=0.0001",
        "checkpoint.keep_last=5",
    )
    code, out, err = sft("train", "my.yaml", *words, *by_time)
    assert code == 0, out + err
    assert sorted(p.name for p in (project / "runs/mine/checkpoints").glob("step-*")) == [
        "step-00000001",
        "step-00000002",
    ]
    runs = list((project / "runs/mine/wandb").glob("offline-run-*/*.wandb"))
    assert len(runs) == 1
    assert b"train/loss" in runs[0].read_bytes()


def test_an_example_that_two_sources_hold_counts_once(sft: Sft) -> None:
    """Under the task of one and, by default, the name of the other; before anything is built, and after."""
    words = (
        "my.yaml", "~data.sources.chats", "data.sources.records.share=null", "data.holdout.examples_per_task=0",
        "data.sources.again={kind: alpaca, path: alpaca.json}",
    )  # fmt: skip
    before = sft("check", *words)[1]
    assert before.splitlines()[-1].startswith("60 examples")
    assert sft("prepare", *words)[0] == 0
    assert sft("check", *words)[1] == before
