"""What lies in data.dir after a launch that was killed, or that a disk damaged: done anew, never believed."""

from __future__ import annotations

import errno
import fcntl
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset

from sft_dist.config.load import load_config
from sft_dist.core.records import Example, single_turn
from sft_dist.pipelines.data.construct import _labels
from sft_dist.pipelines.data.prepare import prepare
from sft_dist.render.renderer import Renderer
from sft_dist.selection import ordered_pass, tokenize
from sft_dist.selection.files import DROPPED, STATE, TRAIN, Selection, read_selected, stored_sources
from sft_dist.selection.workers import work_ahead
from sft_dist.sources import open_source
from sft_dist.sources.alpaca import AlpacaReader
from sft_dist.sources.base import FileSource
from sft_dist.sources.files import blocks
from sft_dist.sources.hub import HubReader

Sft = Callable[..., tuple[int, str, str]]
OTHER = ("data.holdout.examples_per_task=0", "data.filters.length={min_answer_chars: 3}")


def codes(project: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in (project / "data").glob("selection*")}


def test_a_launch_that_is_killed_between_the_files_of_a_selection_leaves_none(
    sft: Sft, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the settings before it would be answered with its codes under their own counts."""
    assert sft("prepare", "my.yaml")[0] == 0
    before = codes(project)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(ordered_pass, "write_selected", killed)
        assert sft("prepare", "--rebuild", "my.yaml", *OTHER)[0] == 130
    assert codes(project)["selection-records.npy"] != before["selection-records.npy"]
    assert not (project / "data" / STATE).exists()
    assert sft("prepare", "my.yaml")[0] == 0
    assert codes(project) == before


@pytest.mark.parametrize("damage", [b"junk", b"", None])
@pytest.mark.parametrize("name", ["selection-records.npy", STATE])
def test_a_damaged_selection_is_made_anew(sft: Sft, project: Path, name: str, damage: bytes | None) -> None:
    assert sft("prepare", "my.yaml")[0] == 0
    before = codes(project)
    if damage is None:
        (project / "data" / name).unlink()
    else:
        (project / "data" / name).write_bytes(damage)
    assert sft("card", "my.yaml")[0] == 0
    assert codes(project) == before


def test_codes_that_are_not_those_of_the_counts_are_noticed(sft: Sft, project: Path) -> None:
    assert sft("prepare", "my.yaml")[0] == 0
    key = json.loads((project / "data" / STATE).read_text())["key"]
    assert read_selected(project / "data", key) is not None
    file = project / "data/selection-records.npy"
    found = np.load(file)
    found[found != TRAIN] = TRAIN  # as if what is held out were trained on
    np.save(file, found)
    assert read_selected(project / "data", key) is None


def test_what_killed_launches_left_is_removed_unless_it_may_still_be_written(sft: Sft, project: Path) -> None:
    left = project / "data/rejects/.records.jsonl.1.tmp"
    left.parent.mkdir(parents=True)
    left.touch()
    assert sft("prepare", "my.yaml", "--slice", "0/2")[0] == 0
    assert left.exists()  # another slice may be writing it
    assert sft("prepare", "my.yaml", "--rebuild")[0] == 0
    assert not left.exists()  # a launch that is no slice holds the folder alone


def test_rejects_of_shards_that_a_store_has_no_more_are_removed(sft: Sft, project: Path) -> None:
    assert sft("prepare", "my.yaml", "data.shard_examples=20")[0] == 0
    assert len(list((project / "data/rejects").glob("records-render-*"))) == 3
    assert sft("prepare", "my.yaml", "--rebuild")[0] == 0
    assert [p.name for p in (project / "data/rejects").glob("records-render-*")] == [
        "records-render-00000.jsonl"
    ]


def test_a_source_without_a_store_is_no_fault(sft: Sft, project: Path) -> None:
    """All of it is held out: `--verify` and `check` look at the stores that there are."""
    held = ("data.holdout.tasks=[chats]", "data.sources.chats.share=null", "data.sources.records.share=null")
    config = load_config(held, project / "my.yaml")
    assert stored_sources(project / "data", config.data.sources) is None
    code, _, err = sft("prepare", "--verify", "my.yaml", *held)
    assert (code, "was not prepared with all sources" in err) == (2, True)
    assert sft("prepare", "my.yaml", *held)[0] == 0
    assert stored_sources(project / "data", config.data.sources) == ["records"]
    assert sft("prepare", "--verify", "my.yaml", *held)[:2] == (0, "1 stores match their checksums\n")
    code, out, _ = sft("check", "my.yaml", *held)
    assert code == 0
    assert "about" not in out  # counted in the stores


def test_a_trained_tokenizer_of_another_size_is_refused_until_rebuilt(sft: Sft, project: Path) -> None:
    words = ("render.template=chatml", "render.train_vocab_size=300")
    assert sft("prepare", "my.yaml", *words)[0] == 0
    tokenizer = project / "data/tokenizer/tokenizer.json"
    before = tokenizer.read_bytes()
    code, _, err = sft("prepare", "my.yaml", *words[:1], "render.train_vocab_size=280")
    assert (code, "was trained with render.train_vocab_size=300, and now it is 280" in err) == (2, True)
    assert tokenizer.read_bytes() == before
    assert sft("prepare", "--rebuild", "my.yaml", *words[:1], "render.train_vocab_size=280")[0] == 0
    assert len(json.loads(tokenizer.read_text())["model"]["vocab"]) < len(
        json.loads(before)["model"]["vocab"]
    )


def test_a_tokenizer_whose_writing_was_interrupted_is_trained_anew(sft: Sft, project: Path) -> None:
    words = ("my.yaml", "render.template=chatml", "render.train_vocab_size=300")
    (project / "data/tokenizer").mkdir(parents=True)
    (project / "data/tokenizer/tokenizer.json").write_text("{}")  # and nothing that names its special tokens
    assert sft("prepare", *words)[0] == 0


ROWS = [{"task_text": "Is it red?", "output": "yes", "is_classification": True},
        {"task_text": "Tell a story.", "output": "Once.", "is_classification": False}]  # fmt: skip


@pytest.mark.parametrize("kind", ["alpaca", "hub"])
def test_classifications_are_told_apart_whatever_reads_the_seeds(tmp_path: Path, kind: str) -> None:
    if kind == "hub":
        Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "saved"))
        source = HubReader(
            "s", path=str(tmp_path / "saved"), format="alpaca", fields={"instruction": "task_text"}
        )
    else:
        (tmp_path / "x.jsonl").write_text("".join(json.dumps(r) + "\n" for r in ROWS))
        source = AlpacaReader("s", path=str(tmp_path / "x.jsonl"), instruction_field="task_text")
    assert _labels(source, "is_classification") == {"Is it red?": True, "Tell a story.": False}


def test_the_demo_set_has_no_records_that_could_say_it() -> None:
    config = load_config(["data.sources={d: {kind: demo}}"])
    assert _labels(open_source("d", config.data.sources["d"]), "is_classification") == {}


def test_two_launches_prepare_one_after_the_other_and_slices_together(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs that were started at once on one data folder: the first one took the other's unfinished files away."""
    config = load_config(["data.processes=1"], project / "my.yaml")
    folder = project / "data"
    folder.mkdir()
    waits, done = threading.Event(), threading.Event()

    def progress(text: str) -> None:
        if text.startswith("waiting for another launch"):
            waits.set()

    def other() -> None:
        prepare(config, progress=progress)
        done.set()

    (folder / ".tokenizer.node.1").mkdir()  # of a launch that was killed
    with (folder / "lock").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        thread = threading.Thread(target=other)
        thread.start()
        assert waits.wait(60)
        assert not done.is_set()
        assert not (folder / "stores").exists()
    thread.join(60)
    assert done.is_set()
    assert not (folder / ".tokenizer.node.1").exists()
    with (folder / "lock").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_SH)
        prepare(config, part=(1, 2))  # returns


def test_a_shard_is_read_chunk_by_chunk(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the examples of a shard, 100,000 by default, would lie in memory together, however long they are."""
    monkeypatch.setattr(tokenize, "CHUNK", 5)
    taken, when_rendered = 0, []
    given, rendered = tokenize.SelectedExamples.read, tokenize._render

    def read(self: tokenize.SelectedExamples, wanted: set[int]) -> Iterator[tuple[int, Iterator[Example]]]:
        def counted(members: Iterator[Example]) -> Iterator[Example]:
            nonlocal taken
            for example in members:
                taken += 1
                yield example

        return ((block, counted(members)) for block, members in given(self, wanted))

    def render(renderer: Renderer, examples: list[Example]) -> object:
        when_rendered.append(taken)
        return rendered(renderer, examples)

    monkeypatch.setattr(tokenize.SelectedExamples, "read", read)
    monkeypatch.setattr(tokenize, "_render", render)
    prepare(load_config(["data.processes=1"], project / "my.yaml"))
    assert when_rendered[:3] == [5, 10, 15]


def test_unwanted_blocks_are_passed_over_and_the_last_ends_the_reading() -> None:
    read = []

    class Numbers:
        def __iter__(self) -> Iterator[Example]:
            for i in range(10):
                read.append(i)
                yield single_turn(task="t", source="s", instruction=str(i), output="o")

    codes = np.zeros(10, np.uint8)
    codes[5] = DROPPED
    empty = dict.fromkeys(("evaluation", "unreadable", "prompts"), 0)
    selection = Selection(
        codes=codes,
        tasks=("t",),
        read=10,
        **empty,
        dropped={"x": 1},
        skipped={},
        blocks=(("", 10),),
        fingerprint="",
    )
    kept = tokenize.SelectedExamples(Numbers(), selection, 4, None)
    assert [(b, [e.instruction for e in m]) for b, m in kept.read({1})] == [(1, ["4", "6", "7"])]
    assert read == list(range(8))
    assert [b for b, _ in kept.read({0, 2})] == [0, 2]


def test_a_slice_reads_the_blocks_that_its_shards_lie_in(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "LEAST_BYTES", 500)
    words = ["data.processes=1", "data.shard_examples=7"]
    config = load_config(words, project / "my.yaml")
    whole, sliced = (
        load_config([*words, f"data.dir={project / n}"], project / "my.yaml") for n in ("a", "b")
    )
    prepare(whole)
    read: list[object] = []
    real = FileSource.read

    def watched(self: FileSource, block: object = (), wanted: object = None) -> object:
        read.append(block)
        return real(self, block, wanted)

    prepare(sliced, part=(0, 3))
    with monkeypatch.context() as patched:
        patched.setattr(FileSource, "read", watched)
        prepare(sliced, part=(1, 3))
    found = {n: open_source(n, c).blocks() for n, c in config.data.sources.items()}
    cut = [b for name in found for b in found[name]]
    assert 0 < len({b for b in read if b}) < len(cut)
    prepare(sliced, part=(2, 3))
    for name in found:
        one, other = ((project / n / "stores" / name / "manifest.json").read_bytes() for n in ("a", "b"))
        assert one == other


def test_no_more_chunks_are_read_ahead_than_asked_for() -> None:
    read = []

    def chunks() -> Iterator[int]:
        for i in range(6):
            read.append(i)
            yield i

    with ThreadPoolExecutor(1) as pool:
        done = work_ahead(pool, lambda i: i * i, chunks(), ahead=3)
        assert next(done) == (0, 0)
        assert read == [0, 1, 2]
        assert list(done) == [(1, 1), (2, 4), (3, 9), (4, 16), (5, 25)]


def test_a_file_system_without_locks(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lustre mounted without `flock`: preparing goes on with a warning."""

    def none(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", none)
    assert set(prepare(load_config(["data.processes=1"], project / "my.yaml")).stores) == {"records", "chats"}


def test_a_source_may_be_called_eval(sft: Sft, project: Path) -> None:
    """The store of the evaluation examples wrote its rejects over those of the source."""
    rows = [json.loads(line) for line in (project / "messages.jsonl").read_text().splitlines()]
    for row in rows[:5]:
        row["messages"][1]["weight"] = row["messages"][3]["weight"] = 0
    (project / "messages.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ("~data.sources.chats", "data.sources.eval={kind: chat, path: messages.jsonl, share: 0.25}")
    assert sft("prepare", "my.yaml", *words)[0] == 0
    lines = (project / "data/rejects/eval-render-00000.jsonl").read_text().splitlines()
    assert {json.loads(line)["reason"] for line in lines} == {"no_target"}
