"""A source -> the same source with a sample of its records, and which share of them that is: for estimates before anything is built."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import xxhash

from sft_dist.core.files import fingerprint
from sft_dist.core.records import BadRecord, Example
from sft_dist.sources.base import FileSource, Read, Source
from sft_dist.sources.demo.reader import DemoReader
from sft_dist.sources.files.blocks import Block
from sft_dist.sources.files.data_files import BINARY, file_kind

RECORD_BYTES = 600  # of a record that is generated
PASSED_OVER = 20  # bytes of input that may be passed over to read one: that costs about a twentieth
COMPRESSED = 4  # bytes of text in one of a compressed file or a table of columns


class SampledSource(FileSource):
    """Some blocks of a source, and of their records each with the same chance, by its number alone.

    Attributes:
        share: Of the source's input that the sample is.
    """

    def __init__(self, source: FileSource, size: int) -> None:
        """Choose blocks that lie evenly in the source.

        Args:
            source: The source.
            size: Bytes of input that the sample may have.
        """
        super().__init__(source.name, source.files(), task=None, dataset=None)
        self._source = source
        blocks = source.blocks()
        total = max(1, _text_bytes(source.files()))
        most = max(1, len(blocks) * size * PASSED_OVER // total)
        self._blocks = blocks if len(blocks) <= most else blocks[:: -(-len(blocks) // most)]
        self._passes_over = len(self._blocks) < len(blocks)
        of_blocks = len(self._blocks) / len(blocks)
        self._one_of = max(1, round(total * of_blocks / size))
        self.share = of_blocks / self._one_of

    def fingerprint(self) -> str:
        """Return 32 hex digits over the options of the source and what is chosen; its content is not read for it."""
        blocks = [[(str(part.path), part.start, part.end) for part in block] for block in self._blocks]
        return fingerprint([self._source._options, blocks, self._one_of])  # noqa: SLF001  of its own kind

    def block_fingerprint(self, block: Block) -> str:
        """Return 32 hex digits that stand for a block of this sample."""
        return fingerprint([self.fingerprint(), [(str(part.path), part.start, part.end) for part in block]])

    def blocks(self) -> list[Block]:
        """Return the chosen blocks."""
        return self._blocks

    def read(self, block: Block = (), wanted: Container[int] | None = None) -> Iterator[Read]:
        """Yield what became of the chosen records of a block; of an empty one, of all blocks."""
        chosen = _OneOf(self._one_of) if wanted is None else wanted
        for part in [block] if block or self._blocks == [()] else self._blocks:
            for read in self._source.read(part, chosen):
                yield read._replace(made=[self._unnumbered(r) for r in read.made])
        self.skipped = self._source.skipped

    def _unnumbered(self, record: Example | BadRecord) -> Example | BadRecord:
        """Return a bad record without its line where nobody counted the lines before it."""
        return replace(record, line=None) if self._passes_over and isinstance(record, BadRecord) else record

    def convert(self, fields: Mapping[str, Any]) -> Iterable[Example]:
        """Return the examples that one record holds."""
        return self._source.convert(fields)


class _OneOf(Container[int]):
    """Numbers of records, one of so many."""

    def __init__(self, one_of: int) -> None:
        self._one_of = one_of

    def __contains__(self, number: object) -> bool:
        assert isinstance(number, int)
        return self._one_of == 1 or xxhash.xxh32_intdigest(number.to_bytes(8, "little")) % self._one_of == 0


def sampled(source: Source, size: int) -> Source:
    """Return a source with a sample of its records; a small one as it is.

    Args:
        source: Any source.
        size: Bytes of input that the sample may have.
    """
    if isinstance(source, DemoReader):
        return source.smaller(size // RECORD_BYTES)
    assert isinstance(source, FileSource)
    sample = SampledSource(source, size) if _text_bytes(source.files()) > size else source
    return sample if sample.share < 1 else source


def _text_bytes(files: Iterable[Path]) -> int:
    """Return about how much text the files hold."""
    total = 0
    for file in files:
        if file.is_file():
            kind, compression = file_kind(file)
            total += file.stat().st_size * (COMPRESSED if compression or kind in BINARY else 1)
    return total
