"""What is read back is not believed: damaged, it is made again where that is possible, else one sentence names the file."""

from __future__ import annotations

import fcntl
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

from sft_dist import api
from sft_dist.cluster.sweep.run_metric import curve_of
from sft_dist.config import RunConfig
from sft_dist.config.auto import SUPPOSED
from sft_dist.config.load import load_run_config
from sft_dist.core.errors import UserError
from sft_dist.core.files import append_jsonl, read_object, sealed, unsealed, write_checked
from sft_dist.core.records import Example
from sft_dist.core.runfolder import RunFolder
from sft_dist.evals.resumable_work import collect, is_done, run_part
from sft_dist.pipelines.data.prepare import prepare
from sft_dist.pipelines.train import auto
from sft_dist.pipelines.train.run_folder import check_evaluation, rate_jump, set_up
from sft_dist.report.run_files import read_run_files
from sft_dist.shards import Store

DATED = "{{ strftime_now('%Y') }}{% for m in messages %}<|im_start|>{{ m.role }}\\n{{ m.content }}<|im_end|>\\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\\n{% endif %}"


@dataclass(frozen=True, slots=True)
class Made:
    """A prepared run, with a copy of it as it was."""

    config: RunConfig
    run: RunFolder
    whole: Path

    @property
    def data(self) -> Path:
        """The data folder."""
        return Path(self.config.data.dir)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Prepare 40 records and write a run folder; no rank is started."""
    root = tmp_path_factory.mktemp("damaged")
    chats = [
        {
            "messages": [
                {"role": "user", "content": f"{n} + 1?"},
                {"role": "assistant", "content": f"It is {n + 1}."},
            ]
        }
        for n in range(40)
    ]
    (root / "t.jinja").write_text(DATED)
    source = api.save_records(chats, root / "mine.jsonl")
    config = api.load(
        {
            "run_root": str(root / "x" / "runs"),
            "data": {"dir": str(root / "x" / "data"), "sources": {"mine": source}, "processes": 1,
                     "holdout": {"examples_per_task": 4}},
            "render": {"template": str(root / "t.jinja"), "train_vocab_size": 300},
            "model": {"shape": {"hidden_size": 32, "intermediate_size": 64, "layers": 1, "heads": 2}},
            "pack": {"seq_len": 128},
            "train": {"tokens_per_step": 256},
        }
    )  # fmt: skip
    run = RunFolder(root / "x" / "runs" / "run")
    set_up(config, prepare(config), run)
    plan = {
        "steps": 4,
        "world_size": 1,
        "examples": 36,
        "tokens": 900,
        "target_tokens": 300,
        "tasks": {},
        "sources": {},
    }
    write_checked(run.path / "plan.json", plan)
    choice = asdict(SUPPOSED)
    write_checked(run.path / "fit.json", {"circumstances": {}, "choice": choice, "reason": "r"})
    run.set_status("finished", step=4, steps=4)
    for step in (1, 2, 3):
        append_jsonl(run.metrics, {"kind": "eval", "step": step, "loss": 1.0 * step})
    _ask(run)
    shutil.copytree(root / "x", root / "whole")
    return Made(config, run, root / "whole")


@pytest.fixture(autouse=True)
def whole_again(made: Made) -> Iterator[None]:
    """Put everything back after each case."""
    yield
    place = made.data.parent
    shutil.rmtree(place)
    shutil.copytree(made.whole, place)


EXAMPLES = [Example(id=f"{n:032x}", task="t", source="s", messages=()) for n in range(3)]


def _ask(run: RunFolder) -> int:
    def work(batch: Any) -> list[dict[str, Any]]:
        return [{"id": e.id, "prediction": "12345", "stopped": True, "tokens": 3} for e in batch]

    return run_part(
        run.path / "eval" / "parts" / "p",
        EXAMPLES,
        work,
        rank=0,
        world_size=1,
        batch_size=2,
        length=lambda _: 1,
        label="",
    )


def _torn(content: bytes) -> bytes:
    return content[: len(content) // 2]


def _flipped(content: bytes) -> bytes:
    """One digit (or, where there is none, one byte) in the last third is another."""
    at = next(
        (i for i in range(len(content) - len(content) // 3, len(content)) if 48 <= content[i] < 57),
        len(content) // 2,
    )
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


def _mistyped(_: bytes) -> bytes:
    return b"[1, 2]\n"


def _deep(_: bytes) -> bytes:
    return b"[" * 200_000


DAMAGES = (_torn, _flipped, _mistyped, _deep)
BINARY = (_torn, _flipped)


def _prepare(m: Made) -> Any:
    return prepare(m.config)


def _again(m: Made) -> Any:
    set_up(m.config, prepare(m.config), m.run)


def _sets(m: Made) -> Any:
    check_evaluation(m.run)


def _select_anew(m: Made) -> Any:
    (m.data / "selection.json").unlink(missing_ok=True)
    shutil.copytree(
        m.whole / "data" / "facts" / "mine", m.data / "judged" / "left" / "mine"
    )  # by a launch that was killed
    done = prepare(m.config)
    assert not (m.data / "judged").exists()
    assert (m.data / "selection-mine.npy").read_bytes() == (
        m.whole / "data" / "selection-mine.npy"
    ).read_bytes()
    return done


# file (or the first of a pattern) -> what reads it; what becomes of it: `again` (made again, or passed over), or `rebuild` / `set_up` / "" (a sentence that
# names the file; what mends it)
CASES: tuple[tuple[str, Callable[[Made], Any], str, tuple[Callable[[bytes], bytes], ...]], ...] = (
    ("data/facts/mine/*.parquet", _select_anew, "again", BINARY),
    ("data/facts/mine/*.json", _select_anew, "again", DAMAGES),
    ("data/selection.json", _prepare, "again", DAMAGES),
    ("data/selection-mine.npy", _prepare, "again", BINARY),
    ("data/eval/seen.jsonl", _prepare, "again", BINARY),
    ("data/eval/near.json", _prepare, "again", BINARY),
    ("data/eval/stores/seen/manifest.json", _prepare, "again", BINARY),
    ("data/eval/stores/seen/shard-00000.arrow", _prepare, "again", BINARY),
    ("data/clock.json", _prepare, "rebuild", DAMAGES),
    ("data/tokenizer/tokenizer.json", _prepare, "rebuild", BINARY),
    ("data/tokenizer/trained.json", _prepare, "rebuild", DAMAGES),
    ("data/stores/mine/manifest.json", _prepare, "rebuild", DAMAGES),
    ("runs/run/config.json", lambda m: load_run_config(m.run.path), "", DAMAGES),
    ("runs/run/stores.json", lambda m: m.run.read_stores(), "set_up", DAMAGES),
    ("runs/run/plan.json", lambda m: m.run.plan("steps", "tasks"), "", DAMAGES),
    ("runs/run/plan.json", lambda m: rate_jump(m.config, None, m.run), "again", DAMAGES),  # type: ignore[arg-type]
    ("runs/run/fit.json", lambda m: auto._before(m.run), "again", DAMAGES),
    ("runs/run/status.json", lambda m: m.run.status(), "again", (_torn, _mistyped, _deep)),
    ("runs/run/eval/seen.jsonl", _sets, "set_up", BINARY),
    ("runs/run/eval/frozen.json", _sets, "set_up", DAMAGES),
    ("runs/run/metrics.jsonl", lambda m: curve_of(m.run.path, "eval_loss"), "again", (_torn, _mistyped, _deep)),
    ("runs/run/eval/parts/p/part-00000-of-00001.jsonl", lambda m: _ask(m.run), "again", DAMAGES),
    *((f"runs/run/{name}", lambda m: read_run_files(m.run.path), "again", DAMAGES) for name in ("status.json", "plan.json", "metrics.jsonl")),
)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "read", "outcome", "damage"),
    [
        pytest.param(
            name,
            read,
            outcome,
            damage,
            id=f"{number}-{name.split('/')[-1].replace('*', 'facts')}-{damage.__name__}",
        )
        for number, (name, read, outcome, damages) in enumerate(CASES)
        for damage in damages
    ],
)
def test_a_damaged_file(
    made: Made, name: str, read: Callable[[Made], Any], outcome: str, damage: Callable[[bytes], bytes]
) -> None:
    file = next(made.data.parent.glob(name))
    before = file.read_bytes()
    file.write_bytes(damage(before))
    assert file.read_bytes() != before
    if outcome == "again":
        read(made)
    else:
        with pytest.raises(UserError) as error:
            read(made)
        assert str(file) in str(error.value) or file.name in str(error.value)
        assert "\n" not in str(error.value)
    if outcome == "again" and read in (_prepare, _select_anew):
        assert prepare(made.config)  # and stays so
        assert file.name.startswith("selection") or file.read_bytes() == before or "stores" in name
    if outcome == "rebuild":
        done = prepare(made.config, rebuild=True)
        assert not Store.open(done.stores["mine"]).verify()
        read(made)
    if outcome == "set_up":
        _again(made)
        read(made)


def test_a_second_prepare_waits_for_the_first(made: Made) -> None:
    said: list[str] = []
    second = threading.Thread(target=lambda: prepare(made.config, progress=said.append))
    with (made.data / "lock").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        (made.data / ".selection.json.1.tmp").touch()  # the first is writing it
        second.start()
        until = time.monotonic() + 60
        while not said and time.monotonic() < until:
            time.sleep(0.05)
        assert said == [f"waiting for another launch that prepares {made.data}"]
        assert (made.data / ".selection.json.1.tmp").exists()
    second.join(120)
    assert not second.is_alive()
    assert not (made.data / ".selection.json.1.tmp").exists()  # nobody is writing it any more


def test_an_answer_whose_line_is_damaged_is_asked_again(made: Made) -> None:
    folder = made.run.path / "eval" / "parts" / "p"
    assert is_done(folder, EXAMPLES, world_size=1)
    assert not is_done(folder, EXAMPLES, world_size=2)  # its ranks have yet to say that they are done
    part = folder / "part-00000-of-00001.jsonl"
    part.write_bytes(part.read_bytes().replace(b"12345", b"12346", 1))
    assert not is_done(folder, EXAMPLES, world_size=1)
    with pytest.raises(UserError, match="1 of 3 answers cannot be read"):
        collect(folder, [e.id for e in EXAMPLES], world_size=1, timeout_s=1.0)
    assert _ask(made.run) == 1
    assert len(collect(folder, [e.id for e in EXAMPLES], world_size=1, timeout_s=1.0)) == 3


def test_checksums_of_objects_and_lines(tmp_path: Path) -> None:
    write_checked(tmp_path / "x", {"a": 1, "b": (2, "ü")})
    assert read_object(tmp_path / "x", "", {"a": int, "b": list}) == {"a": 1, "b": [2, "ü"]}
    (tmp_path / "x").write_text((tmp_path / "x").read_text().replace("1", "3", 1))
    with pytest.raises(UserError, match=r"x is damaged \(it does not match its checksum\); mend it"):
        read_object(tmp_path / "x", "mend it")
    (tmp_path / "y").write_text(json.dumps({"a": True}))
    with pytest.raises(UserError, match=r"y is damaged or of another version \(a\)"):
        read_object(tmp_path / "y", "mend it", {"a": int})
    line = sealed({"id": "i", "tokens": 3})
    assert unsealed(line) == {"id": "i", "tokens": 3}
    assert unsealed(line | {"tokens": 4}) is None
    assert unsealed({"id": "i"}) is None
