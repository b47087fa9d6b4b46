"""Streaming JSON arrays: lines, windows, damage."""

from __future__ import annotations

import io
import json

import pytest

from sft_dist.sources.files import json_array
from sft_dist.sources.files.json_array import Damaged, read_array


def elements(text: str | bytes) -> list:
    return list(read_array(io.BytesIO(text.encode() if isinstance(text, str) else text)))


COMPACT = '[{"a": 1}, {"a": "}, {"}, {"a": [{"b": 3}]}]'
PRETTY = '[\n  {\n    "a": 1\n  },\n  {\n    "a": [\n      {\n        "b": 2\n      }\n    ]\n  }\n]\n'


def test_elements_come_with_their_line():
    assert elements(COMPACT) == [(1, {"a": 1}), (1, {"a": "}, {"}), (1, {"a": [{"b": 3}]})]
    assert elements(PRETTY) == [(2, {"a": 1}), (5, {"a": [{"b": 2}]})]
    assert elements("[]") == []
    assert elements(" \n [\n ] \n") == []
    assert elements("[1, null,\n [2]]") == [(1, 1), (1, None), (2, [2])]


@pytest.mark.parametrize("chunk_bytes", [1, 2, 3, 7])
def test_any_window_gives_the_same_elements(monkeypatch, chunk_bytes):
    monkeypatch.setattr(json_array, "CHUNK_BYTES", chunk_bytes)
    rows = [{"text": "é🙂\n" * i, "n": 12345 * i} for i in range(20)]
    for indent in (None, 1):
        text = json.dumps(rows, ensure_ascii=False, indent=indent)
        assert [value for _, value in elements(text)] == rows
    assert elements("[12, 345]") == [(1, 12), (1, 345)]


class CountingStream(io.BytesIO):
    taken = 0

    def read(self, size=-1):
        data = super().read(size)
        self.taken += len(data)
        return data


def test_the_file_is_not_read_ahead(monkeypatch):
    monkeypatch.setattr(json_array, "CHUNK_BYTES", 100)
    stream = CountingStream(json.dumps([{"text": "x" * 50}] * 10_000).encode())
    reader = read_array(stream)
    next(reader)
    assert stream.taken <= 200
    for _ in range(99):
        next(reader)
    assert stream.taken <= 7000


@pytest.mark.parametrize(
    "broken", ['{"a": "x, "b": 2}', '{"a": 1 "b": 2}', '{"a": "\\q"}', '{"a": [1, 2}', '{"a" 1}', "{a}"]
)
@pytest.mark.parametrize("layout", ["[{0}, {1}, {2}]", "[\n {0},\n {1},\n {2}\n]", "[\n{0}, {1}, {2}]"])
def test_damage_costs_one_element(broken, layout):
    good = '{"a": "y", "b": [{"c": 1}]}'
    text = layout.replace("{0}", good).replace("{1}", broken).replace("{2}", good)
    found = elements(text)
    values = [v for _, v in found if not isinstance(v, Damaged)]
    damaged = [(line, v) for line, v in found if isinstance(v, Damaged)]
    assert values == [json.loads(good)] * 2
    assert len(damaged) == 1
    line, why = damaged[0]
    assert line == text[: text.index(broken)].count("\n") + 1
    assert why.reason.startswith("not valid JSON: ")
    assert why.text.startswith(broken[:5])


def test_damage_in_nested_pretty_records():
    record = (
        '  {\n    "turns": [\n      {\n        "x": 1\n      },\n      {\n        "x": 2\n      }\n    ]\n  }'
    )
    broken = record.replace('"x": 1', '"x: 1')
    found = elements(f"[\n{record},\n{broken},\n{record}\n]")
    assert [line for line, _ in found] == [2, 12, 22]
    assert [isinstance(v, Damaged) for _, v in found] == [False, True, False]
    assert "on line 15" in found[1][1].reason


def test_text_after_a_lost_bracket_is_found_again():
    found = elements('[{"a": 1}], {"a": 2}, {"a": 3}]')
    assert found[0] == (1, {"a": 1})
    assert any(isinstance(v, Damaged) and v.reason.startswith("text after the end") for _, v in found)
    assert {"a": 3} in [v for _, v in found]


def test_memory_is_a_window_not_the_file(monkeypatch):
    monkeypatch.setattr(json_array, "CHUNK_BYTES", 100)
    window = json_array._Window(io.BytesIO(json.dumps([{"text": "x" * 50}] * 1000).encode()))
    assert max(len(window.text) for _ in window.elements()) <= 400


def test_a_cut_file_says_so():
    assert elements('[{"a": 1}, {"a": 2}')[-1] == (1, Damaged("the file ends before its array does", ""))
    found = elements('[{"a": 1}, {"a": "long te')
    assert found[0] == (1, {"a": 1})
    assert found[1][1].reason.startswith("not valid JSON: Unterminated string")
    assert len(found) == 2


def test_missing_comma():
    found = elements('[\n{"a": 1}\n{"a": 2},\n{"a": 3}\n]')
    assert [v for _, v in found if not isinstance(v, Damaged)] == [{"a": 1}, {"a": 3}]
    assert [(line, v.reason) for line, v in found if isinstance(v, Damaged)] == [
        (3, "no comma between two elements of the array; 9 characters skipped")
    ]


def test_invalid_bytes():
    found = elements(b'[\n{"a": "\xff"},\n{"a": "x\0y"},\n{"a": 3}\n]')
    assert [(line, getattr(v, "reason", v)) for line, v in found] == [
        (2, "invalid UTF-8"),
        (3, "NUL byte; 13 characters skipped"),
        (4, {"a": 3}),
    ]


def test_byte_order_mark():
    assert elements(b'\xef\xbb\xbf[{"a": 1}]') == [(1, {"a": 1})]


def test_deep_nesting_is_one_bad_element():
    deep = "[" * 100_000 + "]" * 100_000
    found = elements(f'[{{"a": {deep}}}, {{"a": 2}}]')
    assert isinstance(found[0][1], Damaged)
    assert found[-1] == (1, {"a": 2})


@pytest.mark.parametrize("chunk_bytes", [1, 5, 1 << 20])
@pytest.mark.parametrize("where", [0, 1, 2])
def test_damage_anywhere_in_any_window(monkeypatch, chunk_bytes, where):
    monkeypatch.setattr(json_array, "CHUNK_BYTES", chunk_bytes)
    rows = ['{"turns": [{"x": 1}, {"x": 2}]}'] * 3
    rows[where] = '{"turns": [{"x": 1, {"x": "2}]}'
    found = elements("[" + ", ".join(rows) + "]")
    assert [isinstance(v, Damaged) for _, v in found].count(True) == 1
    assert [v for _, v in found if not isinstance(v, Damaged)] == [{"turns": [{"x": 1}, {"x": 2}]}] * 2
