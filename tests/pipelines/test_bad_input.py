"""A user's mistake gets one clear sentence: cause, consequence, remedy; exit code 2; no traceback; nothing left behind."""

from __future__ import annotations

import errno
import json
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sft_dist.checkpoint.index import FORMAT, write_index
from sft_dist.cli import main

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
    refused(sft, "prepare", "my.yaml")
    listed = (project / "data/rejects/chats.jsonl").read_text().splitlines()
    assert [json.loads(line)["record"]["line"] for line in listed] == [5]
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
    assert sft("prepare", "my.yaml", "--rebuild")[0] == 0
    assert sft("prepare", "my.yaml", "--verify")[0] == 0


def test_seq_len_shorter_than_every_example(sft: Sft) -> None:
    err = refused(sft, "check", "my.yaml", "pack.seq_len=8", "pack.too_long=drop")
    assert "pack.seq_len=8 is shorter than every document" in err


def test_a_missing_base_model(sft: Sft, project: Path) -> None:
    assert "model.path=./nothing does not exist" in refused(
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


def test_slices_build_a_store_together(sft: Sft, project: Path) -> None:
    words = ("prepare", "my.yaml", "data.shard_examples=10")
    code, out, _ = sft(*words, "--slice", "1/2")
    assert code == 0
    assert "the store is closed when all slices are" in out
    assert not (project / "data/eval/stores").exists()  # several slices would take one another's files away
    assert sft(*words, "--slice", "0/2")[0] == 0
    assert (project / "data/stores/records/manifest.json").is_file()
    assert (project / "data/eval/stores/seen/manifest.json").is_file()
    assert sft(*words, "--verify")[0] == 0


def test_a_source_name_that_is_no_folder_name(sft: Sft, project: Path) -> None:
    text = (project / "my.yaml").read_text().replace("    chats:", "    ../chats:")
    (project / "my.yaml").write_text(text)
    assert "data: sources: '../chats' cannot be the name of a folder" in refused(sft, "check", "my.yaml")


def test_a_take_that_is_neither_share_nor_number(sft: Sft) -> None:
    assert "use take_share (a share of the source) or take_examples" in refused(
        sft, "check", "my.yaml", "data.sources.chats.take=0.5"
    )


def test_a_section_that_is_given_as_a_value(sft: Sft) -> None:
    err = refused(sft, "check", "my.yaml", "data.filters.near_duplicates=true", "data.holdout.tasks=x")
    assert "data.filters.near_duplicates=true: this is a section of its own, not one value; write {}" in err
    assert 'data.holdout.tasks="x": this is a list; put brackets around it' in err


def test_a_data_folder_that_cannot_be(sft: Sft) -> None:
    assert "the folder my.yaml cannot be made" in refused(sft, "prepare", "my.yaml", "data.dir=my.yaml")
    assert "data.dir" in refused(sft, "prepare", "my.yaml", "data.dir=''")


@pytest.mark.parametrize("place", ["/proc/self", "/sys", "/dev/null/x", "x" * 300])
def test_a_data_folder_that_cannot_be_written(sft: Sft, place: str) -> None:
    assert place[:20] in refused(sft, "prepare", "my.yaml", f"data.dir={place}")


def test_a_name_that_is_too_long_for_any_disk(sft: Sft) -> None:
    assert "File name too long; check the path" in refused(
        sft, "check", "my.yaml", f"data.sources.chats.path={'a' * 300}"
    )


@pytest.mark.parametrize(
    "word",
    [
        "data.sources.chats.path=~nobody-here/x",
        "run_root=~nobody-here/x",
        "render.template=~nobody-here/x.jinja",
    ],
)
@pytest.mark.parametrize("more", [[], ["optim.lr=fast"]])
def test_the_home_of_a_user_who_is_not_there(sft: Sft, word: str, more: list[str]) -> None:
    err = refused(sft, "check", "my.yaml", word, *more)
    assert more or "a user whom this machine does not know" in err


def test_a_task_file_that_is_no_text(sft: Sft, project: Path) -> None:
    (project / "tasks.txt").write_bytes(b"one\n\xff\xfe\n")
    assert "tasks.txt is not text" in refused(sft, "prepare", "my.yaml", "data.holdout.task_file=tasks.txt")


def test_a_template_in_another_encoding(sft: Sft, project: Path) -> None:
    (project / "mine.jinja").write_bytes("{{ messages }} \u00e9".encode("latin-1"))
    err = refused(sft, "check", "my.yaml", "render.template=mine.jinja")
    assert "render.template=mine.jinja is not UTF-8" in err


def test_a_card_where_a_file_lies(sft: Sft) -> None:
    assert sft("prepare", "my.yaml")[0] == 0
    assert "the folder my.yaml cannot be made" in refused(sft, "card", "my.yaml", "--out", "my.yaml")


@pytest.mark.parametrize("number", ["0", "-1", "x"])
def test_a_number_of_examples_that_is_none(sft: Sft, number: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        sft("preview", "my.yaml", "--examples", number)


@pytest.mark.parametrize("given", ["3/3", "1", "a/b", "\u00b2/3"])
def test_a_slice_that_is_none(sft: Sft, given: str) -> None:
    assert f"--slice {given} is not I/N" in refused(sft, "prepare", "my.yaml", "--slice", given)


def test_more_slices_than_there_is_work(sft: Sft) -> None:
    code, _, err = sft("prepare", "my.yaml", "data.processes=1", "--slice", "7/99999999999")
    assert code == 0, err


def test_overrides_may_stand_behind_options(sft: Sft) -> None:
    assert "data.dirr: unknown key" in refused(sft, "prepare", "my.yaml", "--rebuild", "data.dirr=x")
    with pytest.raises(SystemExit, match="2"):
        sft("prepare", "my.yaml", "--rebild", "data.dir=x")


def test_a_damaged_manifest(sft: Sft, project: Path) -> None:
    assert sft("prepare", "my.yaml")[0] == 0
    (project / "data/stores/chats/manifest.json").write_text('{"format":')
    assert "manifest.json is damaged" in refused(sft, "prepare", "my.yaml")
    assert sft("prepare", "my.yaml", "--rebuild")[0] == 0


def test_a_full_disk_names_file_and_remedy(sft: Sft, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("numpy.save", full)
    code, _, err = sft("prepare", "my.yaml")
    assert code == 1
    assert "selection-records.npy: No space left on device; what is whole is kept: make room" in err
    assert not (project / "data/selection.json").exists()
    monkeypatch.undo()
    monkeypatch.chdir(project)
    assert sft("prepare", "my.yaml")[0] == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train.sequence_parallel=2", "launch.nproc=3"], "3 ranks cannot form groups of train.sequence_parallel=2"),
        (["deepspeed.hpz_partition_size=4"], "2 ranks cannot form groups of deepspeed.hpz_partition_size=4"),
        (["pack.seq_len=512"], "pack.seq_len=512 is more than the 256 positions"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_is_said_by_check(sft: Sft, words: list[str], message: str) -> None:
    assert message in refused(sft, "check", "my.yaml", *words)


def test_a_tokenizer_with_more_tokens_than_the_model(sft: Sft, project: Path) -> None:
    from sft_dist.render.tokenizer import train_tokenizer

    train_tokenizer(["many other words that make more merges than the model has rows for"] * 3, 340).save(
        project / "larger"
    )
    words = (f"model.tokenizer={project / 'larger'}", "render.template=chatml")
    assert "training would read beyond the embedding" in refused(sft, "check", "my.yaml", *words)
    assert sft("check", "my.yaml", *words, "model.vocab_multiple=64")[0] == 0


def test_a_torn_config_of_the_model(sft: Sft, project: Path, base_model: Path) -> None:
    import shutil

    torn = project / "torn"
    shutil.copytree(base_model, torn)
    (torn / "config.json").write_text((torn / "config.json").read_text()[:100])
    assert "torn/config.json is damaged" in refused(sft, "check", "my.yaml", f"model.path={torn}")


def test_a_run_root_that_is_a_file(sft: Sft, project: Path) -> None:
    assert "is a file, so no run folder can be made in it" in refused(
        sft, "train", "my.yaml", f"run_root={project / 'my.yaml'}"
    )


def test_a_global_batch_of_fewer_rows_than_run_side_by_side_is_warned_of(sft: Sft) -> None:
    code, _, err = sft("check", "my.yaml", "train.tokens_per_step=128")
    assert code == 0
    assert "run 4 side by side, so 1 of 2 have none in every step; use train.tokens_per_step=512" in err
    assert sft("check", "my.yaml")[2] == ""


@pytest.mark.parametrize(
    ("word", "message"),
    [
        (
            "optim.warmup_steps=5",
            "optim.warmup_steps fills 5 steps of 2, so the learning rate never leaves its warm-up",
        ),
        ("optim.warmup_tokens=1024", "optim.warmup_tokens fills 2 steps of 2"),
        ("train.profile=[3,4]", "train.profile=[3, 4] begins after the last of 2 steps"),
        (
            "optim.schedule=wsd optim.warmup_steps=1 optim.decay_steps=2",
            "optim.schedule=wsd rises over 1 and falls over 2 of 2 steps",
        ),
    ],
)
def test_what_is_hardly_meant_is_warned_of(sft: Sft, word: str, message: str) -> None:
    code, _, err = sft("check", "my.yaml", "train.max_steps=2", *word.split())
    assert code == 0
    assert message in err


def test_a_damaged_checkpoint_is_not_exported(sft: Sft, project: Path) -> None:
    run, checkpoint = project / "runs/mine", project / "runs/mine/checkpoints/step-00000002"
    assert sft("prepare", "my.yaml")[0] == 0
    assert sft("write-run", "my.yaml", "--run-dir", str(run))[0] == 0
    checkpoint.mkdir(parents=True)
    (checkpoint / "rank-00000.weights.safetensors").write_text("rotten")
    files = {
        "rank-00000.weights.safetensors": {"kind": "weights", "slices": {"w": [0, 1]}, "checksum": "0" * 32}
    }
    write_index(
        checkpoint,
        {
            "format": FORMAT, "position": {"step": 2, "epoch": 0, "epoch_step": 2}, "optimizer_step": 2, "facts": {},
            "parameters": {"w": [1]}, "states": {"w": []}, "optimizer": False, "files": files,
        },
    )  # fmt: skip
    (checkpoint.parent / "LATEST").write_text(checkpoint.name)
    assert "rank-00000.weights.safetensors does not match its checksum" in refused(sft, "export", str(run))
    (checkpoint / "index.json").write_text("{")
    assert "step-00000002 is damaged" in refused(sft, "export", str(run))
    assert not (run / "export").exists()


@pytest.mark.parametrize("room_bytes", [200, 2_000])
def test_a_disk_that_fills_up_anywhere_in_prepare(sft: Sft, project: Path, room_bytes: int) -> None:
    """The limit is that of a file's size, for a child: facts, the selection, the tokens do not fit, one after the other."""
    said = project / "said"
    child = os.fork()
    if not child:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room_bytes, resource.RLIM_INFINITY))
        with said.open("w") as sys.stderr:
            code = main(["-q", "prepare", "my.yaml", "data.processes=1"])
        os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    err = said.read_text()
    assert code == 1, err
    assert err.startswith("failed: ")
    assert err.count("\n") == 1
    assert "make room" in err
    assert "data/" in err  # which file
    assert not list((project / "data").rglob(".*.tmp"))
    assert sft("prepare", "my.yaml", "data.processes=1")[0] == 0
