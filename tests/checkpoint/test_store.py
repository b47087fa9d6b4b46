"""Save is whole or absent; what is damaged is never resumed, the one before it is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from plain_engine import PlainEngine, equal

from sft_dist.checkpoint import store
from sft_dist.checkpoint.store import Position
from sft_dist.core.errors import UserError


def at(step: int) -> Position:
    return Position(step=step, epoch=0, epoch_step=step)


def save(engine: PlainEngine, root: Path, step: int, keep_last: int = 2) -> store.Saved:
    return store.save(engine, root, at(step), {"plan_hash": 1}, keep_last)


def newest(root: Path) -> tuple[str | None, list[tuple[str, str]]]:
    bad: list[tuple[str, str]] = []
    found = store.newest(root, lambda path, why: bad.append((path.name, why)))
    return (found.name if found else None), bad


def test_a_checkpoint_restores_weights_moments_step_and_position(engine: PlainEngine, root: Path) -> None:
    saved = save(engine, root, 7)
    assert saved == store.Saved(folder=root / "step-00000007")
    other = PlainEngine(seed=1)
    position, facts = store.load(other, root / "step-00000007")
    assert equal(other.state(), engine.state())
    assert (position, facts["plan_hash"], facts["world_size"]) == (at(7), 1, 1)
    assert (root / "LATEST").read_text() == "step-00000007\n"
    engine.step()
    other.step()
    assert equal(other.state(), engine.state())  # and goes on alike


def test_only_the_last_ones_are_kept(engine: PlainEngine, root: Path) -> None:
    for step in (1, 2, 3):
        save(engine, root, step, keep_last=2)
    assert sorted(p.name for p in root.iterdir()) == ["LATEST", "step-00000002", "step-00000003"]


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)


DAMAGE = {
    "bit flipped": lambda f: flip(f / "rank-00000.safetensors"),
    "truncated": lambda f: (f / "rank-00000.safetensors").write_bytes(
        (f / "rank-00000.safetensors").read_bytes()[:100]
    ),
    "file missing": lambda f: (f / "rank-00000.safetensors").unlink(),
    "index missing": lambda f: (f / "index.json").unlink(),
    "index torn": lambda f: (f / "index.json").write_text((f / "index.json").read_text()[:40]),
    "other format": lambda f: (f / "index.json").write_text(
        (f / "index.json").read_text().replace('"format": 1', '"format": 9')
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


def test_a_run_that_was_set_back_keeps_what_it_saves_now(engine: PlainEngine, root: Path) -> None:
    """Damaged or abandoned later steps must not push out the checkpoint that was just written."""
    for step in (20, 22):
        save(engine, root, step)
        flip(root / f"step-{step:08d}/rank-00000.safetensors")
    assert newest(root)[0] is None
    assert sorted(p.name for p in root.glob("bad-*")) == ["bad-step-00000020", "bad-step-00000022"]
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

    monkeypatch.setattr(store, "save_file", full)
    outcome = save(engine, root, 2)
    assert outcome.folder is None
    assert "No space left" in outcome.error
    assert sorted(p.name for p in root.iterdir()) == ["LATEST", "step-00000001"]
    assert newest(root)[0] == "step-00000001"


def test_another_models_checkpoint_is_refused(engine: PlainEngine, root: Path) -> None:
    save(engine, root, 1)
    index = json.loads((root / "step-00000001/index.json").read_text())
    index["parameters"]["0.weight"] = [5, 3]
    (root / "step-00000001/index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"belongs to another model \(first difference: 0.weight\)"):
        store.load(engine, root / "step-00000001")


# Every call that changes the disk during a save; the process dies before the n-th of them.
DIE = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch.distributed as dist
from plain_engine import PlainEngine
root, n = Path(sys.argv[2]), int(sys.argv[3])
dist.init_process_group("gloo", init_method=f"file://{root}-group-{n}", rank=0, world_size=1)
from sft_dist.checkpoint import store
count = 0
def deadly(name, real):
    def call(*args, **kwargs):
        global count
        count += 1
        if count == n:
            os._exit(9)
        return real(*args, **kwargs)
    return call
for owner, name in ((os, "mkdir"), (os, "rename"), (os, "replace"), (os, "fsync"), (os, "unlink"), (os, "rmdir"), (store, "save_file")):
    setattr(owner, name, deadly(name, getattr(owner, name)))
engine = PlainEngine(); engine.step(); engine.step()
store.save(engine, root, store.Position(step=2, epoch=0, epoch_step=2), {"plan_hash": 1}, 1)
os._exit(0)
"""


def test_dying_at_any_write_leaves_a_whole_checkpoint(engine: PlainEngine, root: Path) -> None:
    save(engine, root, 1)
    first = engine.state()
    survived = []
    for n in range(1, 60):
        copy = root.with_name(f"copy{n}")
        subprocess.run(["cp", "-r", str(root), str(copy)], check=True)
        died = subprocess.run(
            [sys.executable, "-c", DIE, str(Path(__file__).parent), str(copy), str(n)],
            check=False,
            env={**os.environ},
        )
        assert died.returncode in (0, 9)
        found, bad = newest(copy)
        assert bad == []  # nothing that looks whole and is not
        assert found in ("step-00000001", "step-00000002")
        loaded = PlainEngine(seed=3)
        store.load(loaded, copy / found)
        if found == "step-00000001":
            assert equal(loaded.state(), first)
        survived.append(found)
        if died.returncode == 0:
            break
    else:
        pytest.fail("a save took more than 60 writes")
    assert survived == sorted(survived)  # the new one appears at one moment and stays
    assert len(survived) > 8
