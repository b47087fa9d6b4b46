"""report/sweep.py: the best, what failed and why, how much is chance; one well-formed page and the same as JSON."""

from __future__ import annotations

import io
import json
import shutil
import xml.etree.ElementTree as ET

import pytest
from browser import check_looks
from planted_sweep import add, definition, sweep_of_six
from rich.console import Console

from sft_dist.cli import main
from sft_dist.cluster.sweep.folder import SweepFolder, Trial
from sft_dist.core.errors import UserError
from sft_dist.report.sweep import as_json, read_board, short_names, sweep_table, write_sweep


def page_of(path) -> str:
    text = write_sweep(path).read_text()
    ET.fromstring(text.split("\n", 1)[1])
    return text


def test_the_best_comes_first_and_what_has_no_result_last(tmp_path):
    board = read_board(sweep_of_six(tmp_path / "lr").path)
    assert [t.name for t in board.trials] == [f"trial-00{i}" for i in (4, 1, 0, 2, 3, 5)]
    assert board.best.name == "trial-004"
    assert board.curve_title == "validation loss"


def test_a_metric_that_is_maximised_turns_the_order(tmp_path):
    folder = sweep_of_six(tmp_path / "lr")
    folder.define(definition(metric="validation"))
    assert read_board(folder.path).best.name == "trial-000"


def test_the_page_names_the_best_every_failure_its_reason_and_its_path(tmp_path):
    folder = sweep_of_six(tmp_path / "lr")
    text = page_of(folder.path)
    assert "The best is trial-004 (optim.lr=0.001, optim.schedule=linear): validation loss 0.5." in text
    assert "3 finished, 1 pruned, 1 failed, 1 waiting" in text
    assert "the loss was not finite 10 steps in a row &lt;&amp;&gt;" in text
    assert str(folder.run(3).path) in text
    assert 'id="outcome"' in text  # the finished trials are compared figure by figure


def test_the_page_in_a_browser(tmp_path):
    check_looks(write_sweep(sweep_of_six(tmp_path / "lr").path), tmp_path)


def test_json_holds_what_the_page_shows(tmp_path):
    folder = sweep_of_six(tmp_path / "lr")
    write_sweep(folder.path)
    found = json.loads((folder.path / "leaderboard.json").read_text())
    assert found == json.loads(json.dumps(as_json(read_board(folder.path))))
    assert found["best"] == "trial-004"
    assert found["trials"][0]["value"] == 0.5
    assert [t["state"] for t in found["trials"][3:]] == ["pruned", "failed", "waiting"]
    assert found["trials"][4]["reason"].startswith("the loss was not finite")


def test_the_table_in_the_terminal_names_failures(tmp_path):
    folder = sweep_of_six(tmp_path / "lr")
    out = io.StringIO()
    Console(file=out, width=200).print(sweep_table(folder.path))
    assert "trial-003 failed: " in out.getvalue()
    assert "failed: the loss was not finite" in out.getvalue()


def test_trials_of_one_setting_say_how_much_is_chance(tmp_path):
    folder = SweepFolder(tmp_path / "s")
    folder.path.mkdir()
    folder.define(definition())
    for i, (lr, seed, value) in enumerate([("1e-4", "0", 1.5), ("1e-4", "1", 1.25), ("1e-3", "0", 1.0)]):
        add(folder, i, "finished", value=value, settings={"optim.lr": lr, "seed": seed})
    assert "differ in the seed alone are up to 0.25 apart" in page_of(folder.path)
    assert "ran with one seed" in page_of(sweep_of_six(tmp_path / "lr").path)


def test_a_sweep_without_any_result_has_a_page(tmp_path):
    folder = SweepFolder(tmp_path / "s")
    folder.path.mkdir()
    folder.define(definition())
    folder.write(Trial(number=0, settings={"optim.lr": "0.0001", "optim.schedule": "cosine"}))
    assert "No trial has a result yet." in page_of(folder.path)


def test_short_names():
    assert short_names(["optim.lr", "train.epochs"]) == {"optim.lr": "lr", "train.epochs": "epochs"}
    assert short_names(["a.take_share", "b.take_share"]) == {
        "a.take_share": "a.take_share",
        "b.take_share": "b.take_share",
    }


def test_command_line(tmp_path, capsys):
    folder = sweep_of_six(tmp_path / "lr")
    assert main(["report", "--sweep", str(folder.path)]) == 0
    assert "leaderboard.html" in capsys.readouterr().out
    assert main(["report", "--sweep", str(tmp_path)]) == 2
    assert "is not a sweep" in capsys.readouterr().err
    with pytest.raises(UserError, match="is not a sweep"):
        read_board(tmp_path)


def test_a_sweep_of_which_nothing_is_left_is_one_sentence(tmp_path, capsys):
    folder = sweep_of_six(tmp_path / "lr")
    shutil.rmtree(folder.path / "trials")
    assert main(["report", "--sweep", str(folder.path)]) == 2
    assert "has no record of any trial" in capsys.readouterr().err
    assert not (folder.path / "leaderboard.html").exists()
    assert (
        main(["sweep", str(folder.path)]) == 2
    )  # what the sweep itself says is not hidden by the table after it
    assert "repeat the command that made the sweep, which adds what is missing" in capsys.readouterr().err
