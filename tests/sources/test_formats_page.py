"""Every record of docs/formats.md is trained as the page says, however its file is written."""

from __future__ import annotations

import pytest
from page_records import PAGE, cases, shown, write

from sft_dist.core.errors import UserError
from sft_dist.sources.alpaca import AlpacaReader
from sft_dist.sources.text import TextReader, TokensReader

CASES = cases(PAGE.read_text(encoding="utf-8"))
WAYS = ("plain", "bom", "crlf", "gz", "bz2", "zst")


@pytest.mark.parametrize(
    "case, how",
    [
        pytest.param(case, how, id=f"{case.title} ({how})")
        for case in CASES
        for how in (WAYS if case.kind not in ("parquet", "saved") else ("plain",))
    ],
)
def test_a_record_is_trained_as_the_page_says(tmp_path, case, how):
    found = shown(case, write(case, tmp_path, how))
    if how == "crlf" and case.kind == "csv":  # a line end inside a quote is text
        found = [line.replace("\r", "") for line in found]
    assert found == case.shown


def test_the_page_shows_every_format():
    text = PAGE.read_text(encoding="utf-8")
    assert len(CASES) == text.count("```yaml") == text.count("```text") >= 24
    assert {case.keys["kind"] for case in CASES} == {"chat", "alpaca", "hub", "text", "tokens"}


@pytest.mark.parametrize(
    "reader, row, reason",
    [
        (TextReader, '{"segments": [{"text": "a"}]}', "segment 1 has no 'text' with a 'label' of true or false"),
        (TextReader, '{"text": " "}', "the text is empty"),
        (TokensReader, '{"input_ids": [5, 6], "labels": [-100]}', "input_ids, labels and attention_mask have 2, 1 and 2"),
        (TokensReader, '{"input_ids": [5, 6], "labels": [6, -100]}', "label 0 is 6, neither -100 nor the token 5"),
        (TokensReader, '{"input_ids": [5, -6]}', "below 0"),
        (TokensReader, '{"input_ids": "5 6"}', "field 'input_ids' holds text, not a list of whole numbers"),
        (AlpacaReader, '{"instruction": [{"role": "user", "content": "a"}], "output": "b"}', "holds a list, not text"),
    ],
)  # fmt: skip
def test_what_is_none_of_them_gets_one_sentence(tmp_path, reader, row, reason):
    (tmp_path / "x.jsonl").write_text(row)
    [bad] = reader("mine", path=str(tmp_path))
    assert reason in bad.reason
    assert bad.line == 1


def test_ids_of_another_tokenizer_are_a_drop_with_a_reason(tmp_path):
    from marked_text import marked

    (tmp_path / "x.jsonl").write_text('{"input_ids": [5, 70000]}')
    [example] = TokensReader("mine", path=str(tmp_path))
    with pytest.raises(UserError, match="token 70000 is none of the tokenizer's"):
        marked(example)
