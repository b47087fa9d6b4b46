"""Records that no template touches: raw text, segments of text, token ids -> Example."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sft_dist.core.records import Example, Form, Message, TextWeight, make_example
from sft_dist.sources.base import FileSource, RecordError, kind_of, license_of, text_field
from sft_dist.sources.files.data_files import data_files
from sft_dist.sources.marks import record_weight, weight_of

IGNORED = -100  # what `labels` hold where a token carries no loss


class TextReader(FileSource):
    """Reads a text, all of which carries loss, or a list of segments that say whether they do."""

    def __init__(
        self,
        name: str,
        *,
        path: str,
        text_field: str = "text",
        segments_field: str = "segments",
        task: str | None = None,
        dataset: str | None = None,
    ) -> None:
        """See `config.sources.TextSource` for the meaning of the fields.

        Raises:
            UserError: When `path` names no data file.
        """
        self._text, self._segments = text_field, segments_field
        self.texts = True
        super().__init__(
            name, data_files(path), task=task, dataset=dataset, text=text_field, segments=segments_field
        )

    def convert(self, fields: Mapping[str, Any]) -> Iterable[Example]:
        """Return the one document of a record."""
        yield text_document(self, fields, text=self._text, segments=self._segments)


class TokensReader(FileSource):
    """Reads documents that were tokenised elsewhere: ids, and labels that say which of them carry loss."""

    def __init__(self, name: str, *, path: str, task: str | None = None, dataset: str | None = None) -> None:
        """See `config.sources.TokensSource`.

        Raises:
            UserError: When `path` names no data file.
        """
        super().__init__(name, data_files(path), task=task, dataset=dataset)

    def convert(self, fields: Mapping[str, Any]) -> Iterable[Example]:
        """Return the one document of a record, padding left out."""
        ids = _numbers(fields, "input_ids")
        labels = _numbers(fields, "labels") if fields.get("labels") is not None else ids
        mask = (
            _numbers(fields, "attention_mask") if fields.get("attention_mask") is not None else [1] * len(ids)
        )
        if not len(ids) == len(labels) == len(mask):
            raise RecordError(
                f"input_ids, labels and attention_mask have {len(ids)}, {len(labels)} and {len(mask)} entries"
            )
        shown = [(i, label) for i, label, m in zip(ids, labels, mask, strict=True) if m]
        for place, (i, label) in enumerate(shown):
            if label not in (i, IGNORED):
                raise RecordError(
                    f"label {place} is {label}, neither {IGNORED} nor the token {i} that stands there; labels are not shifted"
                )
        if not shown:
            raise RecordError("the list of tokens is empty")
        words = [str(i) for i, _ in shown]
        ends, weights = 0, []
        for word, (_, label) in zip(words, shown, strict=True):
            if label == IGNORED:
                weights.append(TextWeight(ends, ends + len(word), 0.0))
            ends += len(word) + 1
        yield _document(self, fields, " ".join(words), tuple(weights), "tokens")


def text_document(
    source: FileSource, fields: Mapping[str, Any], *, text: str = "text", segments: str = "segments"
) -> Example:
    """Return the document of a record: its segments where it has them, else its text.

    Raises:
        RecordError: When neither can be read.
    """
    given = fields.get(segments)
    if given is None:
        content = text_field(fields, text)
        weights: tuple[TextWeight, ...] = ()
    else:
        content, weights = _joined(given, segments)
    if not content.strip():
        raise RecordError("the text is empty")
    return _document(source, fields, content, weights, "text" if given is None else "segments")


def _document(
    source: FileSource, fields: Mapping[str, Any], content: str, weights: tuple[TextWeight, ...], form: Form
) -> Example:
    return make_example(
        task=source.task_of(fields),
        source=source.name,
        messages=(Message(role="assistant", content=content, content_weights=weights),),
        origin=source.origin_of(fields),
        weight=record_weight({k: v for k, v in fields.items() if k != "attention_mask"}),
        license=license_of(fields),
        form=form,
    )


def _joined(segments: Any, name: str) -> tuple[str, tuple[TextWeight, ...]]:
    """Return the text of segments as one, and their weights."""
    if not isinstance(segments, list) or not segments or not all(isinstance(s, dict) for s in segments):
        raise RecordError(
            f"field {name!r} holds {kind_of(segments)}, not a list of segments with 'text' and 'label'"
        )
    text, weights = "", []
    for number, segment in enumerate(segments, 1):
        label, marked = segment.get("label"), weight_of(segment)
        if not isinstance(segment.get("text"), str) or not (
            isinstance(label, bool) or (label is None and marked is not None)
        ):
            raise RecordError(f"segment {number} has no 'text' with a 'label' of true or false")
        weight = (1.0 if label is None else float(label)) * (1.0 if marked is None else marked)
        if segment["text"]:
            weights.append(TextWeight(len(text), len(text) + len(segment["text"]), weight))
        text += segment["text"]
    return text, tuple(weights)


def _numbers(fields: Mapping[str, Any], name: str) -> list[int]:
    value = fields.get(name)
    if not isinstance(value, list) or not all(isinstance(v, int) and not isinstance(v, bool) for v in value):
        raise RecordError(f"field {name!r} holds {kind_of(value)}, not a list of whole numbers")
    if name == "input_ids" and any(v < 0 for v in value):
        raise RecordError("field 'input_ids' holds a number below 0, which is no token")
    return value
