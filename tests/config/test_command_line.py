"""Words of the command line: versions, near misses, examples, exit codes, schema, completion."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from sft_dist import __version__
from sft_dist.cli import EXAMPLES, EXIT_CODES, _parser, main


def _refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    return capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"sft-dist {__version__}\n"


@pytest.mark.parametrize(
    ("word", "ours"),
    [("tran", "train"), ("evalute", "evaluate"), ("freeze", "write-run"), ("preprocess", "prepare")],
)
def test_a_command_that_is_none_is_answered_with_ours(
    word: str, ours: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = _refused(capsys, word)
    assert f"{word!r} is no command." in said
    assert f"{ours!r}" in said


def test_every_command_has_examples_that_parse() -> None:
    text = _parser().format_help()
    for name, examples in EXAMPLES.items():
        assert re.search(rf"^ +{name}\b", text, re.MULTILINE), name
        for line in examples:
            words = re.sub(r"^.*?sft-dist ", "", line).split(" > ")[0].strip('")').split()
            assert words[0] == name
            _parser().parse_known_args(words)


def test_exit_codes_are_told() -> None:
    text = _parser().format_help()
    assert all(f"{code:3}  " in text for code in EXIT_CODES)


def test_the_schema_names_every_section(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert {"data", "model", "optim", "train"} <= set(schema["properties"])


def test_completion_completes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["completion"]) == 0
    script = capsys.readouterr().out
    asks = 'COMP_LINE="sft-dist train opti"; COMP_POINT=${#COMP_LINE}; COMP_CWORD=2; _sft_dist; echo "${COMPREPLY[@]}"'
    told = subprocess.run(
        ["bash", "-c", f"{script}\n{asks}"], capture_output=True, text=True, check=True, cwd=tmp_path
    ).stdout
    assert "optim.lr=" in told
    first = (
        'COMP_LINE="sft-dist tr"; COMP_POINT=${#COMP_LINE}; COMP_CWORD=1; _sft_dist; echo "${COMPREPLY[@]}"'
    )
    told = subprocess.run(
        ["bash", "-c", f"{script}\n{first}"], capture_output=True, text=True, check=True, cwd=tmp_path
    ).stdout
    assert told.split() == ["train"]


def test_convert_writes_and_says_what_changes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    theirs = {
        "base_model": "org/m",
        "datasets": [{"path": "a/b", "type": "alpaca"}],
        "sequence_len": 2048,
        "micro_batch_size": 1,
    }
    (tmp_path / "a.yml").write_text(yaml.safe_dump(theirs))
    out = tmp_path / "ours.yaml"
    assert main(["convert", str(tmp_path / "a.yml"), "--ranks", "2", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "mapped: " in said
    assert "cannot: 0" in said
    assert yaml.safe_load(out.read_text())["train"]["tokens_per_step"] == 4096
    (tmp_path / "b.yml").write_text(yaml.safe_dump(theirs | {"optimizer": "lion_8bit"}))
    assert main(["convert", str(tmp_path / "b.yml"), "--ranks", "2"]) == 3
    printed = capsys.readouterr()
    assert "CANNOT (the result changes): optimizer" in printed.out
    assert "cannot: 1" in printed.err


def test_quiet_prints_nothing_but_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-q", "report", str(tmp_path)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "error:" in printed.err
