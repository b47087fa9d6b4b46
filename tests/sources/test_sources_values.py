"""Values of tables and files: padding, missing values, layouts that the name does not tell, records without end."""

from __future__ import annotations

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from marked_text import marked

from sft_dist.core.errors import UserError
from sft_dist.core.records import BadRecord
from sft_dist.sources.alpaca import AlpacaReader
from sft_dist.sources.chat import ChatReader
from sft_dist.sources.files import data_files, json_array, json_record
from sft_dist.sources.hub import HubReader

CALLS = [("tide", {"port": "Brest"}), ("sum", {"first": 1, "second": None}), ("now", {})]
ROWS = [
    {"instruction": "one\nline", "output": "é"},
    {"instruction": "two", "output": "ok"},
]


def tool_row(name, arguments):
    properties = {k: {"type": "string"} for k in arguments}
    return {
        "messages": [
            {"role": "user", "content": f"{name}?"},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"type": "function", "function": {"name": name, "arguments": arguments}}],
            },
        ],
        "tools": [
            {
                "type": "function",
                "function": {"name": name, "parameters": {"type": "object", "properties": properties}},
            }
        ],
    }


def table_file(folder, kind, rows):
    table = pa.Table.from_pylist(rows)
    if kind == "parquet":
        pq.write_table(table, folder / "x.parquet")
    elif kind == "arrow":
        with pa.ipc.new_file(folder / "x.arrow", table.schema) as out:
            out.write_table(table)
    else:
        with pa.ipc.new_stream(folder / "x.arrow", table.schema) as out:
            out.write_table(table)
    return next(folder.glob("x.*"))


@pytest.mark.parametrize("kind", ["parquet", "arrow", "stream"])
def test_keys_that_only_the_table_has_leave_tools_and_calls(tmp_path, kind):
    path = table_file(tmp_path, kind, [tool_row(*c) for c in CALLS])
    found = list(ChatReader("mine", path=str(path)))
    assert [e.messages[1].tool_calls[0].arguments for e in found] == [
        '{"port": "Brest"}',
        '{"first": 1}',
        "{}",
    ]
    assert [list(json.loads(e.tools[0])["function"]["parameters"]["properties"]) for e in found] == [
        ["port"],
        ["first", "second"],
        [],
    ]
    assert '"arguments": {"port": "Brest"}}' in marked(found[0])


def test_nulls_of_json_stay(tmp_path):
    (tmp_path / "x.jsonl").write_text(json.dumps(tool_row("sum", {"first": 1, "second": None})))
    [found] = ChatReader("mine", path=str(tmp_path))
    assert found.messages[1].tool_calls[0].arguments == '{"first": 1, "second": null}'


def test_a_saved_dataset_is_read_by_its_folder_and_by_datasets_alike(tmp_path):
    import datasets

    rows = [tool_row(*c) for c in CALLS[:2]]
    saved = tmp_path / "one"
    datasets.Dataset.from_list(rows).save_to_disk(str(saved))
    by_folder = list(ChatReader("mine", path=str(saved)))
    by_library = list(HubReader("mine", path=str(saved)))
    assert [e.messages for e in by_folder] == [e.messages for e in by_library]
    assert by_folder[0].messages[1].tool_calls[0].arguments == '{"port": "Brest"}'
    splits = tmp_path / "many"
    datasets.DatasetDict({"train": datasets.Dataset.from_list(rows)}).save_to_disk(str(splits))
    with pytest.raises(UserError, match="holds the splits of a saved dataset"):
        ChatReader("mine", path=str(splits))
    assert len(list(ChatReader("mine", path=str(splits / "train")))) == 2


def test_nan_is_absence(tmp_path):
    row = '{"instruction": "a", "input": NaN, "system": NaN, "output": "b", "weight": NaN}\n'
    (tmp_path / "x.jsonl").write_text(row + row.replace('"b"', "NaN"))
    good, bad = AlpacaReader("mine", path=str(tmp_path), system_field="system")
    assert marked(good) == "<user>a<end><assistant>[[b<end>]]"
    assert bad.reason == "field 'output' holds null, not text"
    turns = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": NaN, "name": NaN}]}'
    (tmp_path / "x.jsonl").write_text(turns)
    [good] = ChatReader("mine", path=str(tmp_path))
    assert marked(good) == "<user>a<end><assistant>[[b<end>]]"


LAYOUTS = {
    "lines": "\n".join(map(json.dumps, ROWS)) + "\n",
    "array": json.dumps(ROWS),
    "indented array": json.dumps(ROWS, indent=2),
    "array with a record a line": "[\n" + ",\n".join(map(json.dumps, ROWS)) + "\n]",
    "indented": "\n".join(json.dumps(r, indent=2) for r in ROWS),
    "concatenated": "".join(map(json.dumps, ROWS)),
    "two on a line": " ".join(map(json.dumps, ROWS)) + "\n",
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["x.json", "x.jsonl", "x.jsonl.gz"])
@pytest.mark.parametrize("how", ["plain", "bom", "crlf"])
def test_json_in_any_layout(tmp_path, layout, name, how):
    text = LAYOUTS[layout]
    text = "\ufeff" + text if how == "bom" else text.replace("\n", "\r\n") if how == "crlf" else text
    data = text.encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    found = list(AlpacaReader("mine", path=str(tmp_path)))
    assert [(e.instruction, e.output) for e in found] == [("one\nline", "é"), ("two", "ok")]


def test_damage_among_indented_records_costs_one(tmp_path):
    first, second = (json.dumps(r, indent=2) for r in ROWS)
    (tmp_path / "x.jsonl").write_text(f"{first}\n{first[:-6]}\n{second}\n")
    one, bad, two = AlpacaReader("mine", path=str(tmp_path))
    assert (one.output, two.output) == ("é", "ok")
    assert bad.line == 5
    assert "not valid JSON" in bad.reason


@pytest.mark.parametrize(
    "name, text, line",
    [
        ("x.jsonl", '{"instruction": "a", "output": "b"}\n{"instruction": "LONG", "output": "b"}\n{"instruction": "c", "output": "d"}', 2),
        ("x.jsonl.gz", '{"instruction": "a", "output": "b"}\n{"instruction": "LONG\n{"instruction": "c", "output": "d"}', 2),
        ("x.json", '[{"instruction": "a", "output": "b"},\n{"x": [1], "instruction": "LO\\\\\\"]}NG", "output": "b"},\n{"instruction": "c", "output": "d"}]', 2),
        ("x.json", '{\n"instruction": "a", "output": "b"}\n{\n"instruction": "LONG", "output": "b"}\n{\n"instruction": "c", "output": "d"}', 3),
        ("x.csv", 'instruction,output\na,b\nLONG,b\nc,d\n', 3),
        ("x.csv", 'instruction,output\na,b\n"x\nLONG",b\nc,d\n', 3),
    ],
)  # fmt: skip
def test_a_record_without_end_is_counted_and_costs_a_window(tmp_path, monkeypatch, name, text, line):
    for module in (data_files, json_array, json_record):
        monkeypatch.setattr(module, "MAX_RECORD_BYTES", 2000)
    monkeypatch.setattr(json_array, "CHUNK_BYTES", 700)
    data = text.replace("LONG", "y" * 50_000).replace("NG", "{" * 50_000).encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    first, bad, last = AlpacaReader("mine", path=str(tmp_path))
    assert (first.output, last.output) == ("b", "d")
    assert isinstance(bad, BadRecord)
    assert (bad.file, bad.line) == (str(tmp_path / name), line)
    assert "longer than" in bad.reason


def test_a_column_of_a_table_without_end_is_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(json_record, "MAX_RECORD_BYTES", 2000)
    path = table_file(tmp_path, "parquet", [*ROWS, {"instruction": "z" * 3000, "output": "b"}])
    *good, bad = AlpacaReader("mine", path=str(path))
    assert len(good) == 2
    assert (bad.line, "longer than" in bad.reason) == (3, True)


@pytest.mark.parametrize(
    "line, reason",
    [
        ('{"instruction": ' + "[" * 3000 + "]" * 3000 + ', "output": "b"}', "JSON|levels deep"),
        (r'{"instruction": "\ud800", "output": "b"}', "half a character"),
        ('{"instruction": "a\x01b", "output": "b"}', "Invalid control character"),
        ('{"instruction": "a\x00b", "output": "b"}', "NUL byte"),
    ],
)
def test_what_no_later_stage_can_hold_is_counted(tmp_path, line, reason):
    (tmp_path / "x.jsonl").write_text(f"{json.dumps(ROWS[0])}\n{line}\n{json.dumps(ROWS[1])}\n")
    first, bad, last = AlpacaReader("mine", path=str(tmp_path))
    assert (first.output, last.output, bad.line) == ("é", "ok", 2)
    assert any(r in bad.reason for r in reason.split("|"))
