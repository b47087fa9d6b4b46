"""A JSON array, or JSON values one after the other -> its elements, one at a time, with the line on which each starts.

Damage costs one element, and so does an element that is longer than a record may be.

The file is never held whole: a window of text grows until an element fits and is cut off behind it.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

from sft_dist.sources.files.json_record import MAX_RECORD_BYTES, TOO_LONG

CHUNK_BYTES = 1 << 20
SCAN_CHARS = 1 << 26  # how far the end of a damaged element is looked for by counting brackets
_TAIL = 16  # an error this close to the end of the window may only mean that the window ends there
_SPACE = re.compile(r"[ \t\r\n]*")
_STRUCTURE = re.compile(r'"(?:[^"\\\n]|\\.)*"|[{}\[\]]')
_FIRST_KEY = re.compile(r'\{[ \t\r\n]*("[^"\\\n]*")[ \t\r\n]*:')
_SIGN = re.compile(r'["\\{}\[\]]')
_OBJECT_LINE = re.compile(r"\n(?=\{)")
_NO_UTF8 = re.compile("[\udc80-\udcff]")  # what the decoder makes of a byte that is no UTF-8


class Damaged(NamedTuple):
    """An element that cannot be read: why, and how it begins."""

    reason: str
    text: str


def read_array(stream: IO[bytes]) -> Iterator[tuple[int, Any | Damaged]]:
    """Yield (line, element) for every element of the one JSON array that `stream` holds.

    An element that cannot be read comes as `Damaged`; reading goes on at the next element that can be told apart
    (by brackets, or as an object that opens with the same key, whichever comes first). Lines count from 1.
    """
    return _Window(stream).elements()


def read_values(stream: IO[bytes]) -> Iterator[tuple[int, Any | Damaged]]:
    """Yield (line, value) of every JSON value of a stream that holds them one after the other, on any lines."""
    return _Window(stream).values()


class _Window:
    """The text of a stream, from somewhere before `pos` to as far as it was read. `line` is the line of `pos`."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream = stream
        self.decoder = codecs.getincrementaldecoder("utf-8-sig")(errors="surrogateescape")
        self.decode = json.JSONDecoder().raw_decode
        self.text = ""
        self.pos = 0
        self.line = 1
        self.ended = False
        self.first_key: str | None = None  # of the last whole element, as JSON

    def elements(self) -> Iterator[tuple[int, Any | Damaged]]:
        self.peek()
        self.go(self.pos + 1)  # over the opening bracket, which the caller has seen
        while True:
            head = self.peek()
            if head == "":
                yield self.line, Damaged("the file ends before its array does", "")
                return
            if head == "]":
                self.go(self.pos + 1)
                if self.peek() == "":
                    return
                found: Any | Damaged = Damaged("text after the end of the array", self.beginning())
            else:
                line, found = self.line, self.element()
                if not isinstance(found, Damaged) or found.reason == "invalid UTF-8":
                    yield line, found
                    if self.peek() == ",":
                        self.go(self.pos + 1)
                        continue
                    if self.peek() in ("]", ""):
                        continue
                    found = Damaged("no comma between two elements of the array", self.beginning())
            line = self.line
            skipped = self.skip_long() if found.reason == TOO_LONG else self.skip_damage()
            yield line, Damaged(f"{found.reason}; {skipped} characters skipped", found.text)
            if self.pos >= len(self.text) and self.ended:
                return

    def values(self) -> Iterator[tuple[int, Any | Damaged]]:
        while self.peek():
            line, found = self.line, self.element()
            if isinstance(found, Damaged) and found.reason != "invalid UTF-8":
                skipped = self.skip_long() if found.reason == TOO_LONG else self.skip_to_line()
                found = Damaged(f"{found.reason}; {skipped} characters skipped", found.text)
            yield line, found

    def element(self) -> Any | Damaged:
        """Parse the element at `pos` and go behind it; stay where it cannot be parsed."""
        while True:
            try:
                value, end = self.decode(self.text, self.pos)
            except json.JSONDecodeError as error:
                cut = error.pos >= len(self.text) - _TAIL or error.msg.startswith("Unterminated")
                if cut and len(self.text) - self.pos > MAX_RECORD_BYTES:
                    return Damaged(TOO_LONG, self.beginning())
                if cut and self.read_on():
                    continue
                if "\0" in self.text[self.pos : error.pos + 1]:
                    return Damaged("NUL byte", self.beginning())
                line = self.line + self.text.count("\n", self.pos, error.pos)
                return Damaged(f"not valid JSON: {error.msg} on line {line}", self.beginning())
            except (RecursionError, ValueError) as error:
                return Damaged(f"not readable as JSON: {error}", self.beginning())
            if end == len(self.text) and self.read_on():
                continue  # a number may go on
            damaged = not self.text.isascii() and _NO_UTF8.search(self.text, self.pos, end)
            found = Damaged("invalid UTF-8", self.beginning()) if damaged else value
            if isinstance(value, dict) and value:
                self.first_key = json.dumps(next(iter(value)), ensure_ascii=False)
            self.go(end)
            return found

    def skip_damage(self) -> int:
        """Go to the next element behind the damage at `pos`, else to the end; return the characters skipped."""
        opening = _FIRST_KEY.match(self.text, self.pos)
        key = opening.group(1) if opening else self.first_key
        # Distances, for reading on moves the text. The nearer end is taken: what is skipped should be the damage alone.
        ends = (self.end_by_brackets(), self.next_beginning_with(key))
        distance = min((e for e in ends if e is not None), default=None)
        if distance is None:
            while self.read_on():
                pass
            distance = len(self.text) - self.pos
        self.go(self.pos + distance)
        return distance

    def skip_long(self) -> int:
        """Go behind the element at `pos` and its comma, holding a window of it at a time; return the characters skipped."""
        skipped, depth, quoted, resume = 0, 0, False, 0
        while True:
            for match in _SIGN.finditer(self.text, self.pos):
                sign = match.group()
                if match.start() < resume:
                    continue  # behind a backslash
                if quoted:
                    quoted = sign != '"'
                    resume = match.end() + 1 if sign == "\\" else resume
                    continue
                quoted = sign == '"'
                depth += (sign in "{[") - (sign in "}]")
                if depth == 0 and not quoted:
                    skipped += match.end() - self.pos
                    self.go(match.end())
                    if self.peek() == ",":
                        self.go(self.pos + 1)
                    return skipped
            resume -= len(self.text)
            skipped += len(self.text) - self.pos
            self.go(len(self.text))
            if not self.read_on():
                return skipped

    def skip_to_line(self) -> int:
        """Go to the next line that opens an object, else to the end; return the characters skipped."""
        skipped = 0
        while True:
            if match := _OBJECT_LINE.search(self.text, self.pos + 1):
                skipped += match.end() - self.pos
                self.go(match.end())
                return skipped
            skipped += len(self.text) - self.pos
            self.go(len(self.text))
            if not self.read_on():
                return skipped

    def next_beginning_with(self, key: str | None) -> int | None:
        """Return how far from `pos` the next object starts that follows a comma and opens with `key` (JSON text)."""
        brace = r"\{" if key is None else rf"\{{[ \t\r\n]*{re.escape(key)}[ \t\r\n]*:"
        pattern = re.compile(rf",[ \t\r\n]*(?={brace})")
        while True:
            if match := pattern.search(self.text, self.pos + 1):
                return match.end() - self.pos
            if not self.read_on():
                return None

    def end_by_brackets(self) -> int | None:
        """Return how far from `pos` the next element starts, if the brackets of the damaged one close; else None."""
        while True:
            depth = 0
            for match in _STRUCTURE.finditer(self.text, self.pos):
                sign = match.group()
                if len(sign) > 1:
                    continue  # a string: brackets in it do not count
                depth += 1 if sign in "{[" else -1
                if depth == 0:
                    end = _skip_space(self.text, match.end())
                    if end < len(self.text) and self.text[end] == ",":
                        return end + 1 - self.pos
                    if end < len(self.text):
                        return end - self.pos if self.text[end] == "]" else None
                    break
            if len(self.text) - self.pos > SCAN_CHARS or not self.read_on():
                return None

    def peek(self) -> str:
        """Go over white space and return the character at `pos`; an empty string at the end of the stream."""
        while True:
            self.go(_skip_space(self.text, self.pos))
            if self.pos < len(self.text) or not self.read_on():
                return self.text[self.pos : self.pos + 1]

    def go(self, pos: int) -> None:
        self.line += self.text.count("\n", self.pos, pos)
        self.pos = pos

    def read_on(self) -> bool:
        """Cut what lies before `pos`, double what lies behind it; False at the end of the stream."""
        if self.ended:
            return False
        self.text, self.pos = self.text[self.pos :], 0
        data = self.stream.read(max(CHUNK_BYTES, len(self.text)))
        self.ended = not data
        self.text += self.decoder.decode(data, final=self.ended)
        return True

    def beginning(self) -> str:
        return self.text[self.pos : self.pos + 200]


def _skip_space(text: str, pos: int) -> int:
    match = _SPACE.match(text, pos)
    return match.end() if match else pos
