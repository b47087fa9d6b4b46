"""Files -> records: every kind, every compression, every way to be broken."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sft_dist.config.sources import AlpacaSource
from sft_dist.core.errors import UserError
from sft_dist.core.records import BadRecord
from sft_dist.sources import open_source
from sft_dist.sources.files import data_files as reading
from sft_dist.sources.files.data_files import RawRecord, data_files, file_kind, read_records

ROWS = [{"q": "one\nline", "a": "é"}, {"q": '"two"', "a": ""}]


def read(path, **options):
    return list(read_records([path], **options))


def fields(path, **options):
    return [r.fields for r in read(path, **options)]


def fields_of_good(path):
    return [r.fields for r in read(path) if isinstance(r, RawRecord)]


def bad(path, **options):
    return [(r.line, r.reason) for r in read(path, **options) if isinstance(r, BadRecord)]


@pytest.mark.parametrize(
    "name, text",
    [
        ("x.jsonl", "\n".join(map(json.dumps, ROWS))),
        ("x.jsonl", "\r\n\r\n".join(map(json.dumps, ROWS)) + "\r\n"),
        ("x.jsonl", "\ufeff" + "\n".join(map(json.dumps, ROWS))),
        ("x.ndjson", "\n".join(map(json.dumps, ROWS))),
        ("x.json", json.dumps(ROWS)),
        ("x.json", "\ufeff \n" + json.dumps(ROWS, indent=4, ensure_ascii=False)),
        ("x.json", "\n".join(map(json.dumps, ROWS))),
        ("x.csv", 'q,a\r\n"one\nline",é\r\n"""two""",\r\n'),
        ("x.CSV", '\ufeffq,a\n"one\nline",é\n\n"""two""",\n'),
    ],
)
def test_every_kind(tmp_path, name, text):
    path = tmp_path / name
    path.write_bytes(text.encode())
    assert fields(path) == ROWS


def test_lines(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": 1}\n\n{"a": 2}\n')
    assert read(path) == [RawRecord(str(path), 1, {"a": 1}), RawRecord(str(path), 3, {"a": 2})]
    path = tmp_path / "x.json"
    path.write_text(json.dumps([{"a": 1}, {"a": 2}], indent=1))
    assert [r.line for r in read(path)] == [2, 5]
    path = tmp_path / "x.csv"
    path.write_text('a,b\n1,"x\ny"\n2,z\n')
    assert [r.line for r in read(path)] == [2, 4]


def test_one_object_is_one_record(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"a": {"b": 1}}, indent=2))
    assert fields(path) == [{"a": {"b": 1}}]


def test_json_lines_in_a_json_file_whose_first_line_is_bad(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('{"a": oops}\n{"a": 2}\n')
    assert [r.line for r in read(path)] == [1, 2]
    assert bad(path) == [(1, "not valid JSON: Expecting value at character 7")]


def test_empty_files_hold_nothing(tmp_path):
    for name in ("x.json", "x.jsonl", "x.csv", "y.json"):
        (tmp_path / name).write_text("" if name[0] == "x" else "[]")
        assert read(tmp_path / name) == []


def test_tsv_has_no_quotes_and_may_lack_a_header(tmp_path):
    path = tmp_path / "x.tsv"
    path.write_text('say "hi\\nthere"\tyes\n2\t"\n')
    assert fields(path, columns=("q", "a")) == [{"q": 'say "hi\\nthere"', "a": "yes"}, {"q": "2", "a": '"'}]
    assert fields(path, columns=("q", "a"), unescape=True)[0]["q"] == 'say "hi\nthere"'


def test_fields_of_a_csv_may_be_long(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("a\n" + "x" * 200_000 + "\n")
    assert len(fields(path)[0]["a"]) == 200_000


def test_parquet(tmp_path):
    path = tmp_path / "x.parquet"
    rows = [{"messages": [{"role": "user", "content": "hi"}], "n": i} for i in range(3000)]
    pq.write_table(pa.Table.from_pylist(rows), path)
    found = read(path)
    assert [r.fields for r in found] == rows
    assert [r.line for r in found[:2]] == [1, 2]


def compressors():
    return {
        ".gz": gzip.compress,
        ".bz2": bz2.compress,
        ".xz": lzma.compress,
        ".zst": lambda data: pa.Codec("zstd").compress(data).to_pybytes(),
    }


@pytest.mark.parametrize("ending", [".gz", ".bz2", ".xz", ".zst"])
def test_compressed(tmp_path, ending):
    compress = compressors()[ending]
    for name, text in (
        ("x.jsonl", "\n".join(map(json.dumps, ROWS))),
        ("x.json", json.dumps(ROWS, indent=1)),
        ("x.csv", "q,a\n1,2\n"),
    ):
        path = tmp_path / (name + ending)
        path.write_bytes(compress(text.encode()))
        assert fields(path) == (ROWS if "json" in name else [{"q": "1", "a": "2"}])


@pytest.mark.parametrize("ending", [".gz", ".bz2", ".xz", ".zst"])
def test_a_cut_compressed_file_is_an_error_that_names_it(tmp_path, ending):
    lines = b"\n".join(json.dumps({"a": str(i) * 20}).encode() for i in range(5000))
    data = compressors()[ending](lines)
    path = tmp_path / f"x.jsonl{ending}"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=r"x\.jsonl.*cannot be read to its end"):
        read(path)


def test_no_compression_where_the_name_says_so(tmp_path):
    for ending in (".gz", ".xz", ".bz2", ".zst"):
        path = tmp_path / f"x.jsonl{ending}"
        path.write_text('{"a": 1}')
        with pytest.raises(UserError, match="cannot be read"):
            read(path)


def test_broken_parquet(tmp_path):
    path = tmp_path / "x.parquet"
    path.write_bytes(b"PAR1 nothing of the kind PAR1")
    with pytest.raises(UserError, match="cannot be read as Parquet after row 0"):
        read(path)


@pytest.mark.parametrize(
    "line, reason",
    [
        (b'{"a": "x" "b"}', "not valid JSON: Expecting ',' delimiter at character 11"),
        (b'{"a": "\\q"}', "not valid JSON: Invalid \\escape at character 8"),
        (b'{"a": "unfinished', "not valid JSON: Unterminated string starting at character 7"),
        (b'{"a": "\xff"}', "invalid UTF-8 at byte 8 of the record"),
        (b'{"a": "\0"}', "NUL byte at byte 8 of the record"),
        (b'{"a": "\\ud83d"}', "a \\u escape stands for half a character (a lone surrogate)"),
        (b"[1, 2]", "the record is an array, not an object with fields"),
        (b'"text"', "the record is a string, not an object with fields"),
        (b"null", "the record is null, not an object with fields"),
        (b"[" * 100_000, "not readable as JSON: "),
        (b'{"a": ' + b"1" * 5000 + b"}", "not readable as JSON: "),
    ],
)
def test_a_bad_line_is_reported_and_reading_goes_on(tmp_path, line, reason):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"a": 1}\n' + line + b'\n{"a": 3}\n')
    found = read(path)
    assert [r.fields for r in found if isinstance(r, RawRecord)] == [{"a": 1}, {"a": 3}]
    assert isinstance(found[1], BadRecord)
    assert (found[1].file, found[1].line) == (str(path), 2)
    assert found[1].reason.startswith(reason)
    assert found[1].text == line.decode("utf-8", "replace")[:200]


def test_bad_elements_of_an_array(tmp_path):
    path = tmp_path / "x.json"
    path.write_bytes(b'[\n{"a": 1},\n"text",\n{"a": "\\ud83d"},\n{"a" 4},\n{"a": "\xff"},\n{"a": 6}\n]')
    assert fields_or_reasons(path) == [
        {"a": 1},
        (3, "the record is a string, not an object with fields"),
        (4, "a \\u escape stands for half a character (a lone surrogate)"),
        (5, "not valid JSON: Expecting ':' delimiter on line 5; 8 characters skipped"),
        (6, "invalid UTF-8"),
        {"a": 6},
    ]


def fields_or_reasons(path, **options):
    return [(r.line, r.reason) if isinstance(r, BadRecord) else r.fields for r in read(path, **options)]


def test_bad_rows_of_a_table(tmp_path):
    path = tmp_path / "x.csv"
    path.write_bytes(b'a,b\n1,2\n3\n4,5,6\n7,\xff\n8,"x"y\n9,z\n')
    assert fields_or_reasons(path) == [
        {"a": "1", "b": "2"},
        (3, "1 columns instead of 2 (a, b)"),
        (4, "3 columns instead of 2 (a, b)"),
        (5, "invalid UTF-8"),
        (6, "not valid CSV: ',' expected after '\"' (lines 6 to 6)"),
        {"a": "9", "b": "z"},
    ]


def test_a_quote_that_nothing_closes_loses_every_line_behind_it(tmp_path):
    """One bad record would pass data.max_bad_share however long the rest of the file is."""
    (tmp_path / "x.csv").write_text('a,b\n1,2\n3,"4\n5,6\n7,8\n')
    assert fields_or_reasons(tmp_path / "x.csv") == [
        {"a": "1", "b": "2"},
        (3, "not valid CSV: unexpected end of data (lines 3 to 5)"),
        (4, "inside the quote that line 3 opens and nothing closes"),
        (5, "inside the quote that line 3 opens and nothing closes"),
    ]


def test_a_quote_that_nothing_closes_does_not_take_the_rest_into_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "MAX_RECORD_BYTES", 10)
    (tmp_path / "x.csv").write_text('a,b\n1,"2\n' + "3,4\n" * 5)
    first, *others = fields_or_reasons(tmp_path / "x.csv")
    assert first == (2, "not valid CSV: field larger than field limit (10) (lines 2 to 5)")
    assert others == [{"a": "3", "b": "4"}] * 2


def test_two_columns_of_one_name(tmp_path):
    (tmp_path / "x.csv").write_text("q,a,a\n1,2,3\n")
    with pytest.raises(UserError, match="two columns named 'a', so one of them would be lost"):
        read(tmp_path / "x.csv")
    (tmp_path / "x.csv").write_text("q,a,,\n1,2,,\n")  # as Excel writes empty columns
    assert [f["q"] + f["a"] for f in fields(tmp_path / "x.csv")] == ["12"]
    (tmp_path / "x.tsv").write_text("1\t2\n")
    with pytest.raises(UserError, match="two columns named 'q'"):
        read(tmp_path / "x.tsv", columns=["q", "q"])


@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.csv", "x.txt", "x.jsonl.gz"])
def test_utf_16_is_named(tmp_path, name):
    data = '{"q": "a"}\n'.encode("utf-16")
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    with pytest.raises(UserError, match="is UTF-16, and we read UTF-8.*iconv"):
        read(tmp_path / name)


def test_data_files(tmp_path):
    for name in ("b.jsonl", "a.json.gz", "sub/c.parquet", "README.md", ".hidden/d.jsonl", "sub/e.parquet.gz"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("")
    assert data_files(str(tmp_path)) == [
        tmp_path / "a.json.gz",
        tmp_path / "b.jsonl",
        tmp_path / "sub/c.parquet",
    ]
    assert data_files(str(tmp_path / "*.js*")) == [tmp_path / "a.json.gz", tmp_path / "b.jsonl"]
    assert data_files(str(tmp_path / "**/*.parquet")) == [tmp_path / "sub/c.parquet"]
    assert data_files(str(tmp_path / "b.jsonl")) == [tmp_path / "b.jsonl"]


def test_data_files_that_are_not_there(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"nope\.jsonl does not exist.*holds empty, notes\.txt"):
        data_files(str(tmp_path / "nope.jsonl"))
    with pytest.raises(UserError, match=r"none/x\.jsonl does not exist.*none does not exist either"):
        data_files(str(tmp_path / "none" / "x.jsonl"))
    (tmp_path / "empty" / "notes.md").write_text("x")
    with pytest.raises(UserError, match=r"notes\.md is not a kind of file that we read"):
        data_files(str(tmp_path / "empty" / "notes.md"))
    (tmp_path / "empty" / "notes.md").unlink()
    with pytest.raises(UserError, match=r"holds no data file \(nothing matches it\)"):
        data_files(str(tmp_path / "*.jsonl"))
    with pytest.raises(UserError, match=r"holds no data file \(it is empty\)"):
        data_files(str(tmp_path / "empty"))
    with pytest.raises(UserError, match=r"holds no data file .it holds \.txt."):
        data_files(str(tmp_path))
    with pytest.raises(UserError, match="holds no data file"):
        data_files(str(tmp_path / "*.jsonl"))


def test_lines_of_text_are_records_where_the_file_is_named(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"Name a river.\r\n\n  Name a \xc3\xbc.\nbroken \xff\n")
    (tmp_path / "b.json").write_text('["Say hello.", {"text": "Say more."}, 5]')
    (tmp_path / "c.jsonl").write_text('"Say hello."\n')
    assert data_files(str(tmp_path)) == [tmp_path / "b.json", tmp_path / "c.jsonl"]
    assert data_files(str(tmp_path / "*")) == [tmp_path / "b.json", tmp_path / "c.jsonl"]
    assert data_files(str(tmp_path / "*.txt")) == data_files(str(tmp_path / "a.txt")) == [tmp_path / "a.txt"]
    one, two, bad = read_records([tmp_path / "a.txt"])
    assert (one.line, one.fields, two.line, two.fields) == (
        1, {"text": "Name a river."}, 3, {"text": "  Name a ü."},
    )  # fmt: skip
    assert (bad.line, bad.reason) == (4, "invalid UTF-8 at byte 8 of the record")
    texts = list(read_records([tmp_path / "b.json", tmp_path / "c.jsonl"], texts=True))
    assert [getattr(r, "fields", r)["text"] for r in (texts[0], texts[1], texts[3])] == [
        "Say hello.", "Say more.", "Say hello.",
    ]  # fmt: skip
    assert texts[2].reason == "the record is a number, not an object with fields"
    plain = list(read_records([tmp_path / "c.jsonl"]))
    assert plain[0].reason == "the record is a string, not an object with fields"


def test_file_kind(tmp_path):
    assert file_kind(tmp_path / "a.v2.jsonl.gz") == (".jsonl", ".gz")
    assert file_kind(tmp_path / "a.JSON") == (".json", "")
    assert file_kind(tmp_path / "a.gz") == ("", "")
    assert file_kind(tmp_path / "json") == ("", "")


@pytest.mark.parametrize("levels", [300, 900, 100_000])
def test_a_record_nested_too_deeply_is_bad_and_the_next_is_read(tmp_path, levels):
    deep = f'{{"q": "x", "a": {"[" * levels}{"]" * levels}}}'
    (tmp_path / "x.jsonl").write_text(f'{deep}\n{{"q": "fine", "a": "y"}}\n')
    assert [
        (line, "levels deep" in why or "recursion" in why) for line, why in bad(tmp_path / "x.jsonl")
    ] == [(1, True)]
    assert fields_of_good(tmp_path / "x.jsonl") == [{"q": "fine", "a": "y"}]


def test_a_record_nested_as_deeply_as_conversations_are_is_read(tmp_path):
    value = {"q": "x"}
    for _ in range(90):
        value = {"replies": [value]}
    (tmp_path / "x.jsonl").write_text(json.dumps(value))
    assert fields(tmp_path / "x.jsonl") == [value]


def test_half_a_character_is_found_at_any_depth(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"q": [{"deep": ["ok", "\\ud800"]}]}\n{"q": {"\\udc00": 1}}\n')
    assert [why for _, why in bad(tmp_path / "x.jsonl")] == [
        "a \\u escape stands for half a character (a lone surrogate)"
    ] * 2


def test_an_empty_path_is_refused():
    with pytest.raises(UserError, match="the path is empty"):
        data_files(" ")


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a.json.gz", "a.csv"])
@pytest.mark.parametrize(
    ("left", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "pointer of Git LFS.*git lfs pull"),
        (b"../.git/annex/objects/Wx/0k/MD5E-s1/MD5E-s1.json\n", "git-annex.*git annex get"),
        (b"\n<!DOCTYPE html>\n<html>Log in</html>", "a web page, not data"),
    ],
)  # fmt: skip
def test_what_stands_in_place_of_the_data_is_named(tmp_path: Path, name: str, left: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(left)
    with pytest.raises(UserError, match=said):
        read(tmp_path / name)


@pytest.mark.parametrize(
    "text", ['{"data": [{"instruction": "a", "output": "b"}]}', '{"instruction": {"0": "a"}}']
)
def test_records_inside_of_one_object_are_said_to_be_so(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=r"The file is one object.*jq -c '\.data\[\]'"):
        open_source("s", AlpacaSource(kind="alpaca", path=str(tmp_path / "a.json")))
