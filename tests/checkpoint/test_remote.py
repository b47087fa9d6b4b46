"""Checkpoints reach object storage behind the local ones, in an order that never shows half of one, and come back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from plain_engine import PlainEngine, at, equal, newest

from sft_dist.checkpoint import io as store
from sft_dist.checkpoint.background import Saved, Saver
from sft_dist.checkpoint.remote import Remote
from sft_dist.config.train import CheckpointConfig
from sft_dist.core.errors import UserError


@pytest.fixture(params=["memory", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    yield "memory://bucket/run" if request.param == "memory" else f"file://{tmp_path}/bucket/run"
    if request.param == "memory" and fsspec.filesystem("memory").exists("/bucket"):
        fsspec.filesystem("memory").rm("/bucket", recursive=True)


def save(engine: PlainEngine, root: Path, remote: Remote, *steps: int, **keep: int) -> list[Saved]:
    outcomes: list[Saved] = []
    saver = Saver(
        engine,
        root,
        facts={},
        keep=CheckpointConfig(**{"keep_last": 2, **keep}),
        report=outcomes.append,
        remote=remote,
    )
    for step in steps:
        saver.begin(at(step), {"losses": []})
    saver.finish()
    return outcomes


def listing(url: str) -> list[str]:
    files, root = fsspec.core.url_to_fs(url)
    return sorted(str(p).removeprefix(root).lstrip("/") for p in files.find(root))


def whole(step: int) -> list[str]:
    kinds = ("index.json", "rank-00000.optimizer.safetensors", "rank-00000.weights.safetensors")
    return [f"step-{step:08d}/{name}" for name in kinds]


def fetch(root: Path, url: str) -> Path | None:
    return Remote(url).fetch(root, part=(0, 1), barrier=lambda: None, agree=lambda name: name)


def test_a_checkpoint_comes_back_where_the_local_folder_lacks_it(
    engine: PlainEngine, root: Path, url: str, tmp_path: Path
) -> None:
    outcomes = save(engine, root, Remote(url), 1, 2, 3)
    assert [(o.phase, o.position.step, o.error) for o in outcomes] == [
        (phase, step, "") for step in (1, 2, 3) for phase in ("commit", "upload", "publish")
    ]
    assert listing(url) == ["LATEST", *whole(2), *whole(3)]  # what is not kept here is not kept there
    assert fetch(root, url) is None  # nothing newer there
    elsewhere = tmp_path / "elsewhere"
    assert fetch(elsewhere, url) == elsewhere / "step-00000003"
    assert newest(elsewhere) == ("step-00000003", [])
    loaded = PlainEngine(seed=4)
    store.load(loaded, elsewhere / "step-00000003")
    assert equal(loaded.state(), engine.state())


def test_the_index_comes_after_all_files_and_latest_after_the_index(
    engine: PlainEngine, root: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    real = Remote._put

    def put(self: Remote, file: Path, name: str) -> None:
        order.append(name)
        if name.startswith("step-00000002/index"):
            raise OSError("the network is away")
        real(self, file, name)

    monkeypatch.setattr(Remote, "_put", put)
    outcomes = save(engine, root, Remote(url), 1, 2)
    assert [n.split("/")[-1] for n in order[:4]] == [
        "rank-00000.optimizer.safetensors",
        "rank-00000.weights.safetensors",
        "index.json",
        "LATEST",
    ]
    assert outcomes[-1].error == "rank 0: OSError: the network is away"
    assert outcomes[-1].folder == root / "step-00000002"  # here it is whole all the same
    assert Remote(url).names() == ["step-00000001"]
    assert newest(root) == ("step-00000002", [])


def test_dropped_optimizer_state_is_dropped_there_too(engine: PlainEngine, root: Path, url: str) -> None:
    save(engine, root, Remote(url), 1, 2, optimizer_keep_last=1)
    assert listing(url) == [
        "LATEST",
        "step-00000001/index.json",
        "step-00000001/rank-00000.weights.safetensors",
        *whole(2),
    ]


def test_whose_checkpoints_they_are_lies_beside_them(engine: PlainEngine, root: Path, url: str) -> None:
    assert Remote(url).run_config() is None
    (root.parent / "config.json").write_text('{"name": "mine"}')
    save(engine, root, Remote(url), 1)
    assert Remote(url).run_config() == '{"name": "mine"}'
    assert listing(url) == ["LATEST", "config.json", *whole(1)]


def test_a_place_that_can_be_written_is_left_as_it_was(url: str) -> None:
    Remote(url).probe("rank-3")
    assert listing(url) == []


def test_a_place_that_cannot_be_written_or_read_is_refused(
    root: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = Remote("file:///dev/null/run")
    with pytest.raises(UserError, match=r"cannot be written \(.*\), so no checkpoint would be copied there"):
        remote.probe("rank-0")

    class NoCredentialsError(Exception):
        """botocore's is no OSError either."""

    def locked(*_: object, **__: object) -> None:
        raise NoCredentialsError("Unable to locate credentials")

    remote = Remote(url)
    for name in ("rm_file", "glob"):
        monkeypatch.setattr(remote._files, name, locked, raising=False)
    with pytest.raises(UserError, match="cannot be written .Unable to locate credentials"):
        remote.probe("rank-0")
    with pytest.raises(UserError, match="cannot be read .Unable to locate credentials"):
        remote.fetch(root, part=(0, 1), barrier=lambda: None, agree=lambda name: name)


def test_what_is_fetched_is_what_rank_0_sees(tmp_path: Path, url: str) -> None:
    """A rank whose cache shows no checkpoint, or one that is gone, would wait for the others for ever."""
    remote = Remote(url)
    assert remote.names() == []
    met: list[str] = []
    with pytest.raises(
        UserError, match=r"cannot be read"
    ):  # it follows rank 0, though it sees nothing itself
        remote.fetch(
            tmp_path / "root",
            part=(1, 2),
            barrier=lambda: met.append("barrier"),
            agree=lambda _: "step-00000007",
        )
    assert met == ["barrier"]
    assert remote.fetch(tmp_path / "root", part=(1, 2), barrier=lambda: None, agree=lambda _: None) is None


def test_an_unknown_protocol_is_refused() -> None:
    with pytest.raises(UserError, match=r"checkpoint.remote=nowhere://x .* install the fsspec driver"):
        Remote("nowhere://x")
