"""Save is whole or absent; what is damaged is never resumed, the one before it is."""

from __future__ import annotations

import copy
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from plain_engine import PlainEngine, at, equal, flip, newest, save

from sft_dist.checkpoint import io
from sft_dist.core.errors import UserError


def test_a_checkpoint_restores_weights_moments_step_and_position(engine: PlainEngine, root: Path) -> None:
    saved = save(engine, root, 7)
    assert (saved.folder, saved.error, saved.phase) == (root / "step-00000007", "", "commit")
    other = PlainEngine(seed=1)
    position, facts = io.load(other, root / "step-00000007")
    assert equal(other.state(), engine.state())
    assert position == at(7)
    assert facts == {"plan_hash": 1, "losses": [1.5], "validation_losses": [], "world_size": 1}
    assert (root / "LATEST").read_text() == "step-00000007\n"
    engine.step()
    other.step()
    assert equal(other.state(), engine.state())  # and goes on alike


def test_only_the_last_ones_are_kept(engine: PlainEngine, root: Path) -> None:
    for step in (1, 2, 3):
        save(engine, root, step, keep_last=2)
    assert sorted(p.name for p in root.iterdir()) == ["LATEST", "step-00000002", "step-00000003"]


DAMAGE = {
    "optimizer truncated": lambda f: (f / "rank-00000.optimizer.safetensors").write_bytes(b""),
    "bit flipped": lambda f: flip(f / "rank-00000.weights.safetensors"),
    "truncated": lambda f: (f / "rank-00000.weights.safetensors").write_bytes(
        (f / "rank-00000.weights.safetensors").read_bytes()[:100]
    ),
    "file missing": lambda f: (f / "rank-00000.weights.safetensors").unlink(),
    "index missing": lambda f: (f / "index.json").unlink(),
    "index torn": lambda f: (f / "index.json").write_text((f / "index.json").read_text()[:40]),
    "other format": lambda f: (f / "index.json").write_text(
        (f / "index.json").read_text().replace('"format": 3', '"format": 9')
    ),
}


@pytest.mark.parametrize("kind", sorted(DAMAGE))
def test_a_damaged_checkpoint_is_passed_over(engine: PlainEngine, root: Path, kind: str) -> None:
    save(engine, root, 1)
    save(engine, root, 2)
    DAMAGE[kind](root / "step-00000002")
    found, bad = newest(root)
    assert found == "step-00000001"
    assert [name for name, _ in bad] == ["step-00000002"]
    assert bad[0][1]


def body_of(folder: Path) -> dict[str, Any]:
    return {k: v for k, v in json.loads((folder / "index.json").read_text()).items() if k != "checksum"}


# What a writer with a fault, or somebody's editor, could leave, its checksum right.
HOLES = {
    "a slice too few": lambda b: b["files"]["rank-00000.weights.safetensors"]["slices"].pop("1.weight"),
    "a slice too short": lambda b: b["files"]["rank-00000.weights.safetensors"]["slices"][
        "1.weight"
    ].__setitem__(1, 7),
    "a slice that begins late": lambda b: b["files"]["rank-00000.optimizer.safetensors"]["slices"][
        "0.bias"
    ].__setitem__(0, 1),
    "no optimizer file": lambda b: b["files"].pop("rank-00000.optimizer.safetensors"),
    "no file at all": lambda b: b["files"].clear(),
    "a slice twice": lambda b: b["files"].update(
        {"rank-00001.weights.safetensors": b["files"]["rank-00000.weights.safetensors"]}
    ),
    "a parameter more": lambda b: (b["parameters"].update(x=[2]), b["states"].update(x=[])),
    "a state more": lambda b: b["states"]["0.bias"].append("third_moment"),
    "a state less": lambda b: b["states"]["0.bias"].pop(),
    "another shape": lambda b: b["parameters"].update({"1.weight": [2, 5]}),
    "another step": lambda b: b["position"].update(step=1),
    "a path": lambda b: b["files"].update(
        {"../x.safetensors": b["files"].pop("rank-00000.weights.safetensors")}
    ),
}


@pytest.mark.parametrize("kind", sorted(HOLES))
def test_an_index_that_does_not_cover_everything_once_is_damaged(
    engine: PlainEngine, root: Path, kind: str
) -> None:
    save(engine, root, 1)
    save(engine, root, 2)
    body = body_of(root / "step-00000002")
    HOLES[kind](body)
    io.write_index(root / "step-00000002", body)
    found, bad = newest(root)
    assert (found, [name for name, _ in bad]) == ("step-00000001", ["step-00000002"])


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    for key, inner in (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    ):
        yield from leaves(inner, (*path, key))


@pytest.mark.parametrize("wrong", [None, "x", -1, 1.5, True, [], {}, [[]], {"a": 1}, 10**30], ids=repr)
def test_a_wrong_type_anywhere_in_the_index_never_ends_a_start(
    engine: PlainEngine, root: Path, wrong: Any
) -> None:
    """With a right checksum. What the trainer keeps there for itself may be any value."""
    save(engine, root, 2)
    folder = root / "step-00000002"
    for path in leaves(whole := body_of(folder)):
        if path[:1] == ("facts",):
            continue
        body = copy.deepcopy(whole)
        if path:
            inner = body
            for key in path[:-1]:
                inner = inner[key]
            if inner[path[-1]] == wrong and type(inner[path[-1]]) is type(wrong):
                continue
            inner[path[-1]] = wrong
        else:
            body = {"x": wrong}
        io.write_index(folder, body)
        assert io.damage(folder), path


def test_one_digit_of_the_index_is_not_believed(engine: PlainEngine, root: Path) -> None:
    save(engine, root, 2)
    file = root / "step-00000002/index.json"
    text = file.read_text()
    for i in [i for i, c in enumerate(text) if c.isdecimal()]:
        file.write_text(text[:i] + str((int(text[i]) + 1) % 10) + text[i + 1 :])
        assert io.damage(file.parent), text[i - 20 : i + 5]


def test_an_earlier_format_is_refused_and_not_started_anew(engine: PlainEngine, root: Path) -> None:
    save(engine, root, 1)
    file = root / "step-00000001/index.json"
    file.write_text(json.dumps({"format": 2, "position": {"step": 1}}))
    with pytest.raises(UserError, match=r"checkpoint format 2, this one reads 3: .*checkpoint.resume=never"):
        newest(root)
    assert file.is_file()  # not put aside: it is not damaged


def test_no_uninitialised_memory_reaches_a_file(
    engine: PlainEngine, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every allocation without a value is filled with NaN: none is saved, read for an export, or loaded."""
    real = torch.empty

    def poisoned(*size: Any, **options: Any) -> torch.Tensor:
        out = real(*size, **options)
        return out.fill_(math.nan) if out.is_floating_point() and out.device.type != "meta" else out

    monkeypatch.setattr(torch, "empty", poisoned)
    monkeypatch.setattr(torch, "empty_like", lambda t, **options: poisoned(t.shape, dtype=t.dtype))
    save(engine, root, 3)
    folder = root / "step-00000003"
    index = io.read_index(folder)
    for name in index.parameters:
        for kind in ("master", *index.states[name]):
            assert io.read_parameter(folder, index, name, kind).isfinite().all(), (name, kind)
    other = PlainEngine(seed=2)
    io.load(other, folder)
    assert equal(other.state(), engine.state())


def test_a_run_that_was_set_back_keeps_what_it_saves_now(engine: PlainEngine, root: Path) -> None:
    """Damaged or abandoned later steps must not push out the checkpoint that was just written."""
    for step in (20, 22):
        save(engine, root, step)
        flip(root / f"step-{step:08d}/rank-00000.weights.safetensors")
    assert newest(root)[0] is None
    assert sorted(p.name for p in root.glob("bad-*")) == ["bad-step-00000020", "bad-step-00000022"]
    save(engine, root, 22)
    flip(root / "step-00000022/rank-00000.weights.safetensors")
    assert newest(root)[0] is None  # damaged once more: the run starts all the same
    save(engine, root, 30)
    save(engine, root, 2, keep_last=1)
    assert newest(root) == ("step-00000002", [])
    assert (root / "LATEST").read_text() == "step-00000002\n"


def test_no_checkpoint_is_none(group: None, root: Path) -> None:
    assert newest(root) == (None, [])


def test_a_full_disk_leaves_the_last_good_one(
    engine: PlainEngine, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(engine, root, 1)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(io, "save_file", full)
    outcome = save(engine, root, 2)
    assert outcome.folder is None
    assert "No space left" in outcome.error
    assert sorted(p.name for p in root.iterdir()) == ["LATEST", "step-00000001"]
    assert newest(root)[0] == "step-00000001"


def test_another_models_checkpoint_is_refused(engine: PlainEngine, root: Path) -> None:
    save(engine, root, 1)
    engine.module.hf[0] = torch.nn.Linear(3, 5)
    with pytest.raises(UserError, match=r"belongs to another model \(first difference: 0.bias\)"):
        io.load(engine, root / "step-00000001")


# Every call that changes the disk during a save; a child of one warm process dies before the n-th of them, for all n.
DIE = """
import os, shutil, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
import torch.distributed as dist
from plain_engine import PlainEngine, save
from sft_dist.checkpoint import io as store
count = 0
def deadly(name, real, n):
    def call(*args, **kwargs):
        global count
        count += 1
        if count == n:
            os._exit(9)
        return real(*args, **kwargs)
    return call
def child(root, n):
    dist.init_process_group("gloo", init_method=f"file://{root}-group", rank=0, world_size=1)
    for owner, names in ((os, ("mkdir", "rename", "replace", "fsync", "unlink", "rmdir")), (store, ("save_file",))):
        for name in names:
            setattr(owner, name, deadly(name, getattr(owner, name), n))
    save(engine, root, 2, keep_last=2, keep_best=1, losses={1: 2.0, 2: 1.0}, optimizer_keep_last=1)
    os._exit(0)
engine = PlainEngine(); engine.step(); engine.step()
for n in range(1, 100):
    copy = Path(f"{sys.argv[2]}-{n}")
    shutil.copytree(sys.argv[2], copy)
    pid = os.fork()
    if not pid:
        child(copy, n)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, 9), code
    if code == 0:
        break
"""


def test_dying_at_any_write_leaves_a_whole_checkpoint(engine: PlainEngine, root: Path) -> None:
    save(engine, root, 1)
    first = engine.state()
    subprocess.run(
        [sys.executable, "-c", DIE, str(Path(__file__).parent), str(root)], check=True, timeout=200
    )
    survived = []
    for n in range(1, 100):
        copied = Path(f"{root}-{n}")
        if not copied.exists():
            break
        found, bad = newest(copied)
        assert bad == []  # nothing that looks whole and is not
        assert found in ("step-00000001", "step-00000002")
        loaded = PlainEngine(seed=3)
        io.load(loaded, copied / found)
        if found == "step-00000001":
            assert equal(loaded.state(), first)
        assert io.damage(copied / "step-00000001", weights_only=True) == ""  # exportable throughout
        survived.append(found)
        save(loaded, copied, 3, keep_last=1)  # the next save removes what the dead one left
        assert sorted(p.name for p in copied.iterdir() if p.name != "BEST") == ["LATEST", "step-00000003"]
    assert survived == sorted(survived)  # the new one appears at one moment and stays
    assert len(survived) > 12
