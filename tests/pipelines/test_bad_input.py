"""A user's mistake gets one clear sentence: cause, consequence, remedy; exit code 2; no traceback; nothing left behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

Sft = Callable[..., tuple[int, str, str]]


def refused(sft: Sft, *words: str) -> str:
    code, out, err = sft(*words)
    assert code == 2, out + err
    assert err.startswith("error: ")
    assert "Traceback" not in err
    return err


def test_unreadable_records_are_named_by_file_and_line_and_the_rest_is_kept(sft: Sft, project: Path) -> None:
    lines = (project / "messages.jsonl").read_text().splitlines()
    lines[4] = '{"messages": [{"role": "user"'
    (project / "messages.jsonl").write_text("\n".join(lines))
    err = refused(sft, "check", "my.yaml")  # 1 of 20 is more than the default 2 %
    assert "messages.jsonl, line 5" in err
    assert "data.max_bad_share" in err
    code, out, _ = sft("prepare", "my.yaml", "data.max_bad_share=0.1")
    assert code == 0
    assert "unreadable 1" in out
    kept_aside = [
        json.loads(line) for line in (project / "data/rejects/chats.jsonl").read_text().splitlines()
    ]
    assert [(r["reason"], r["record"]["line"]) for r in kept_aside] == [("unreadable", 5)]


def test_a_field_that_no_record_has(sft: Sft) -> None:
    err = refused(sft, "check", "my.yaml", "data.sources.records.output_field=answer")
    assert "data.sources.records: none of the first 60 records can be read" in err
    assert "answer" in err


def test_an_unknown_config_field(sft: Sft) -> None:
    assert "data.sources.records.output_feild: unknown key. Did you mean 'output_field'?" in refused(
        sft, "check", "my.yaml", "data.sources.records.output_feild=answer"
    )


def test_a_missing_file(sft: Sft) -> None:
    assert "nowhere.jsonl" in refused(sft, "check", "my.yaml", "data.sources.chats.path=nowhere.jsonl")


def test_an_empty_source(sft: Sft, project: Path) -> None:
    (project / "messages.jsonl").write_text("")
    assert "data.sources.chats holds no records" in refused(sft, "check", "my.yaml")


def test_no_sources(sft: Sft) -> None:
    assert "data.sources is empty" in refused(
        sft, "check", "my.yaml", "~data.sources.records", "~data.sources.chats"
    )


def test_a_tokenizer_without_a_chat_template(sft: Sft, project: Path, base_model: Path) -> None:
    import shutil

    bare = project / "bare"
    shutil.copytree(base_model, bare)
    (bare / "chat_template.jinja").unlink()
    err = refused(sft, "check", "my.yaml", f"model.path={bare}")
    assert "chat template" in err
    assert "chatml" in err  # the built-in choices are named
    assert sft("check", "my.yaml", f"model.path={bare}", "render.template=chatml")[0] == 0


def test_a_store_rendered_with_other_settings(sft: Sft) -> None:
    assert sft("prepare", "my.yaml")[0] == 0
    err = refused(sft, "prepare", "my.yaml", "render.template=alpaca")
    assert "changed: render" in err
    assert "sft-dist prepare my.yaml render.template=alpaca --rebuild" in err
    assert sft("prepare", "my.yaml", "render.template=alpaca", "--rebuild")[0] == 0


def test_a_store_rendered_with_another_tokenizer(sft: Sft, project: Path, base_model: Path) -> None:
    from sft_dist.render.tokenizer import train_tokenizer

    assert sft("prepare", "my.yaml")[0] == 0
    train_tokenizer(["other words entirely"] * 3, 280).save(project / "other")
    err = refused(sft, "train", "my.yaml", f"model.tokenizer={project / 'other'}", "render.template=chatml")
    assert "changed: render" in err
    assert not (project / "runs").exists()


def test_a_source_of_which_nothing_is_left(sft: Sft) -> None:
    err = refused(
        sft,
        "check",
        "my.yaml",
        "data.filters.length.min_answer_chars=500",
        "data.holdout.examples_per_task=0",
    )
    assert "none of its 60 records is kept" in err
    assert "answer_too_short" in err


def test_a_damaged_store(sft: Sft, project: Path) -> None:
    assert sft("prepare", "my.yaml")[0] == 0
    shard = next((project / "data/stores/records").glob("*.arrow"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    assert "do not match their checksums" in refused(sft, "prepare", "my.yaml", "--verify")


def test_seq_len_shorter_than_every_example(sft: Sft) -> None:
    err = refused(sft, "check", "my.yaml", "pack.seq_len=8", "pack.too_long=drop")
    assert "pack.seq_len=8 is shorter than every document" in err


def test_a_missing_base_model(sft: Sft, project: Path) -> None:
    assert "model.path=./nothing has no config.json" in refused(
        sft, "check", "my.yaml", "model.path=./nothing", "render.template=chatml"
    )


def test_another_trainers_key(sft: Sft) -> None:
    assert "train.tokens_per_step" in refused(sft, "train", "my.yaml", "train.per_device_train_batch_size=4")


def test_a_held_out_name_that_matches_nothing(sft: Sft) -> None:
    assert "data.holdout.tasks names 'thrid', which no source holds" in refused(
        sft, "check", "my.yaml", "data.holdout.tasks=[thrid]"
    )


def test_a_derived_deepspeed_key(sft: Sft) -> None:
    assert "deepspeed.extra.train_batch_size is derived" in refused(
        sft, "check", "my.yaml", "deepspeed.extra.train_batch_size=4"
    )


def test_several_nodes_are_not_started_from_here(sft: Sft) -> None:
    assert "sbatch slurm/train.sbatch" in refused(sft, "train", "my.yaml", "launch.nodes=2")


@pytest.mark.parametrize(
    "words", [["evaluate", "runs/none"], ["report", "runs/none"], ["export", "runs/none"]]
)
def test_a_run_that_does_not_exist(sft: Sft, words: list[str]) -> None:
    assert "runs/none" in refused(sft, *words)


def test_a_slice_that_is_none(sft: Sft) -> None:
    assert "--slice 3/2 is not I/N" in refused(sft, "prepare", "my.yaml", "--slice", "3/2")


def test_slices_build_a_store_together(sft: Sft, project: Path) -> None:
    words = ("prepare", "my.yaml", "data.shard_examples=10")
    code, out, _ = sft(*words, "--slice", "0/2")
    assert code == 0
    assert "the store is closed when all slices are" in out
    assert sft(*words, "--slice", "1/2")[0] == 0
    assert (project / "data/stores/records/manifest.json").is_file()
    assert sft(*words, "--verify")[0] == 0
