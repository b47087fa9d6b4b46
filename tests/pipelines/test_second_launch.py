"""Two launches of one run, at any distance in time: the second says so and has touched nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sft_dist.core.runfolder import RunFolder

Sft = Callable[..., tuple[int, str, str]]


def test_the_second_launch_is_refused_before_it_touches_anything(sft: Sft, project: Path) -> None:
    run = project / "runs/mine"
    with RunFolder(run).launching():  # before the first launch has made its folder
        code, _, err = sft("train", "my.yaml")
        assert code == 2
        assert "is in use by another run (process" in err
        assert not run.exists()
        run.mkdir()
        (run / "config.json").write_text("{}")
        assert sft("train", "my.yaml", "optim.lr=1.0", "checkpoint.resume=never")[0] == 2
        assert (run / "config.json").read_text() == "{}"
        assert [p.name for p in run.iterdir()] == ["config.json"]
    assert not (project / "data").exists()  # nor was anything prepared
