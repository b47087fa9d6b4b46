"""Save is whole or absent; what is damaged is never resumed, the one before it is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
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
    assert facts == {"plan_hash": 1, "losses": [1.5], "world_size": 1}
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
        (f / "index.json").read_text().replace('"format": 2', '"format": 9')
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
    index = json.loads((root / "step-00000001/index.json").read_text())
    index["parameters"]["0.weight"] = [5, 3]
    (root / "step-00000001/index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"belongs to another model \(first difference: 0.weight\)"):
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
        copy = Path(f"{root}-{n}")
        if not copy.exists():
            break
        found, bad = newest(copy)
        assert bad == []  # nothing that looks whole and is not
        assert found in ("step-00000001", "step-00000002")
        loaded = PlainEngine(seed=3)
        io.load(loaded, copy / found)
        if found == "step-00000001":
            assert equal(loaded.state(), first)
        assert io.read_json(copy / "step-00000001/index.json")["parameters"]  # exportable throughout
        survived.append(found)
        save(loaded, copy, 3, keep_last=1)  # the next save removes what the dead one left
        assert sorted(p.name for p in copy.iterdir() if p.name != "BEST") == ["LATEST", "step-00000003"]
    assert survived == sorted(survived)  # the new one appears at one moment and stays
    assert len(survived) > 12
