"""Scalars of a user's YAML file mean what stands there."""

from __future__ import annotations

from pathlib import Path

import pytest

from sft_dist.config.load import load_config
from sft_dist.config.yaml_file import read_yaml
from sft_dist.core.errors import UserError

BASE = "data: {sources: {mine: {kind: demo}}}\nmodel: {shape: {hidden_size: 32, intermediate_size: 64, layers: 1, heads: 2}}\n"
TAIL = "render: {template: chatml, train_vocab_size: 400}\n"


def values(folder: Path, text: str) -> dict[str, object]:
    (folder / "c.yaml").write_text(text)
    return read_yaml(folder / "c.yaml")  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "written, meant",
    [
        ("2026-03-04", "2026-03-04"),
        ("2026-03-04T10:00:00Z", "2026-03-04T10:00:00Z"),
        ("1:30", "1:30"),
        ("12:30:00", "12:30:00"),
        ("on", "on"),
        ("Off", "Off"),
        ("no", "no"),
        ("y", "y"),
        ("017", "017"),
        ("08", "08"),
        ("0o17", 15),
        ("0x1F", 31),
        ("1e-5", 1e-5),
        ("2E3", 2000.0),
        ("-.5", -0.5),
        ("+7", 7),
        ("0", 0),
        ("1_000", "1_000"),
        ("true", True),
        ("FALSE", False),
        ("null", None),
        ("~", None),
        ("", None),
        (".inf", float("inf")),
        ('"5"', "5"),
        ("=", "="),
    ],
)
def test_scalars(tmp_path: Path, written: str, meant: object) -> None:
    found = values(tmp_path, f"name: {written}\n")["name"]
    assert (found, type(found)) == (meant, type(meant))


def test_keys_are_names(tmp_path: Path) -> None:
    assert values(tmp_path, "{on: 1, no: 2, 2026: 3, 1:30: 4, null: 5}") == {
        "on": 1, "no": 2, "2026": 3, "1:30": 4, "null": 5,
    }  # fmt: skip


def test_merge_keys_work(tmp_path: Path) -> None:
    assert values(tmp_path, "a: &a {x: 1}\nb: {<<: *a, y: 2}")["b"] == {"x": 1, "y": 2}


def test_a_run_named_like_a_date_and_numbers_in_all_their_forms(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(BASE + TAIL + "name: 2026-03-04\noptim: {lr: 1e-5}\nseed: 007\n")
    config = load_config([], file)
    assert (config.name, config.optim.lr, config.seed) == ("2026-03-04", 1e-5, 7)


def test_a_number_where_a_text_is_wanted_is_answered_with_quotes(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(BASE + TAIL + "name: 2026\n")
    with pytest.raises(UserError, match="name=2026: this is not a text; quote it: '2026'"):
        load_config([], tmp_path / "c.yaml")
