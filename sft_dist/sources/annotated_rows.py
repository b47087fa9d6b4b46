"""Annotated records of readers that render them through templates or patterns: data files, or what `datasets` opens."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from sft_dist.core.files import expanded
from sft_dist.core.records import BadRecord
from sft_dist.sources.files.blocks import Part
from sft_dist.sources.files.data_files import RawRecord, data_files, file_kind, read_records

if TYPE_CHECKING:
    from sft_dist.sources.hub import HubReader

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


class AnnotatedRows:
    """The records of data files, or of anything that `datasets` opens.

    Attributes:
        files: The data files; those of the library's cache.
        hub: What `datasets` opened; None: data files.
        fingerprint: Of what `datasets` opened; empty for data files.
        dataset: Name of a dataset of the hub, with its subset; None: data files.
    """

    def __init__(
        self,
        name: str,
        path: str,
        subset: str | None,
        split: str,
        revision: str | None,
        columns: tuple[str, ...] | None,
    ) -> None:
        """Open them.

        Args:
            name: Of the source.
            path: Data files, a hub name, or a folder that `save_to_disk` wrote.
            subset: Of a hub dataset.
            split: Of a dataset.
            revision: Of a hub dataset.
            columns: Names of the columns of CSV and TSV files without a header line.

        Raises:
            UserError: When there are none.
        """
        self.dataset: str | None = None
        self.fingerprint = ""
        self._columns = columns
        self.hub: HubReader | None = None
        if not _is_dataset(path):
            self.files = data_files(path)
            return
        from sft_dist.sources.hub import HubReader  # imports `datasets`, which takes seconds

        hub = HubReader(name, path=path, subset=subset, split=split, revision=revision, format="alpaca")
        self.hub, self.files, self.fingerprint = hub, hub.files(), hub.fingerprint()
        self.dataset = f"{path}/{subset}" if subset else path

    def read(self, parts: Sequence[Part] | None) -> Iterator[RawRecord | BadRecord]:
        """Yield the records of parts; None: all."""
        if self.hub is not None:
            return self.hub.records(parts)
        return read_records(self.files if parts is None else parts, columns=self._columns)


def _is_dataset(path: str) -> bool:
    """Return whether `path` is for `datasets`: saved by `save_to_disk`, or no path here and a name as on the hub."""
    place = expanded(path)
    if place.is_dir():
        return any((place / f).is_file() for f in ("state.json", "dataset_dict.json"))
    return not place.exists() and not file_kind(place)[0] and _HUB_NAME.fullmatch(path) is not None
