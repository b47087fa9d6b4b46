"""index.json of a checkpoint: what lies in which file. Written with a checksum of itself; read, or called damaged.

Believed is an index only if its checksum and its types are right and its slices cover every parameter exactly once.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue
from safetensors import SafetensorError, safe_open

from sft_dist.core.files import checksum, fingerprint, write_checked
from sft_dist.core.records import Position

FORMAT = 3
FILE = "index.json"
WEIGHTS = ("master", "ema")  # kinds of tensors that are weights; the others are the optimizer's state
OLD = (
    f"it was written by a version of checkpoint format {{}}, this one reads {FORMAT}: continue or export it with that version, or "
    "train anew with checkpoint.resume=never"
)

Count = Annotated[int, Field(ge=0, lt=1 << 62)]
Hash = Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
FileName = Annotated[str, Field(pattern=r"^rank-\d{5,}\.(weights|optimizer)\.safetensors$")]


class DamagedError(ValueError):
    """A checkpoint that cannot be believed; the text says why."""


class OldFormatError(ValueError):
    """A checkpoint of an earlier format; the text says what to do."""


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Part(_Strict):
    """One file of one rank.

    Attributes:
        kind: What its tensors are.
        slices: Parameter -> (first element, elements) of the flattened parameter that the file holds.
        checksum: xxh3-128 of the file.
    """

    kind: Literal["weights", "optimizer"]
    slices: dict[str, tuple[Count, Count]]
    checksum: Hash


class Place(_Strict):
    """core.records.Position."""

    step: Count
    epoch: Count
    epoch_step: Count


class Index(_Strict):
    """What a checkpoint consists of.

    Attributes:
        format: `FORMAT`.
        position: Where the run continues.
        optimizer_step: Updates that the optimizer counts.
        facts: What the trainer keeps with it: hash of the data plan, last losses, ranks that wrote it.
        parameters: Shape of every trained parameter.
        states: Kinds of tensors kept of each parameter besides its master weight.
        optimizer: Whether the optimizer's state is (still) there.
        files: By name.
    """

    format: Literal[3]
    position: Place
    optimizer_step: Count
    facts: dict[str, JsonValue]
    parameters: dict[str, tuple[Count, ...]]
    states: dict[str, tuple[str, ...]]
    optimizer: bool
    files: dict[FileName, Part]

    def at(self) -> Position:
        """Return the position to continue at."""
        return Position(**self.position.model_dump())

    def where(self, file_kind: str) -> dict[str, list[tuple[str, int, int]]]:
        """Return for each parameter (file, first element, elements) of its slices in files of a kind, in order."""
        found: dict[str, list[tuple[str, int, int]]] = {}
        for file, part in self.files.items():
            if part.kind == file_kind:
                for name, (start, length) in part.slices.items():
                    found.setdefault(name, []).append((file, start, length))
        return {name: sorted(pieces, key=lambda piece: piece[1]) for name, pieces in found.items()}

    def kinds(self, name: str, file_kind: str) -> list[str]:
        """Return the kinds of tensors that files of a kind hold of a parameter."""
        return [k for k in ("master", *self.states[name]) if file_of(k) == file_kind]

    def hole(self) -> str:
        """Return what the slices do not cover exactly once, or an empty string."""
        if odd := sorted(self.parameters.keys() ^ self.states.keys()):
            return f"{odd[0]} has no shape or no kinds"
        for kind in ("weights", *(("optimizer",) if self.optimizer else ())):
            where = self.where(kind)
            if unknown := sorted(where.keys() - self.parameters.keys()):
                return f"its files hold {unknown[0]}, which is no parameter"
            for name, shape in self.parameters.items():
                end = 0
                for _, start, length in where.get(name, []):
                    if start != end:
                        return f"the {kind} of {name} are there {'twice' if start < end else 'in part'} (element {min(start, end)})"
                    end = start + length
                if end != math.prod(shape):
                    return f"the {kind} of {name} end at element {end} of {math.prod(shape)}"
        return ""


def file_of(kind: str) -> str:
    """Return the kind of file that tensors of a kind lie in."""
    return "weights" if kind in WEIGHTS else "optimizer"


def write_index(folder: Path, body: Mapping[str, Any]) -> None:
    """Write index.json with its checksum."""
    write_checked(folder / FILE, body)


def read_index(folder: Path) -> Index:
    """Read index.json.

    Raises:
        DamagedError: When it is absent, torn, altered, mistyped, of another step than its folder or full of holes.
        OldFormatError: When an earlier version wrote it.
    """
    try:
        body = json.loads((folder / FILE).read_bytes())
        if not isinstance(body, dict):
            raise DamagedError(f"{FILE} holds a {type(body).__name__}, not an object")
        said = body.pop("checksum", None)
        if said is None and body.get("format") in (1, 2):
            raise OldFormatError(OLD.format(body["format"]))
        if said != fingerprint(body):
            raise DamagedError(f"{FILE} does not match its checksum")
        index = Index.model_validate_json(json.dumps(body))
    except (DamagedError, OldFormatError):
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedError(f"{FILE} cannot be read: {' '.join(str(error).split())[:300]}") from None
    step = folder.name.rpartition("step-")[2]
    if step.isdecimal() and int(step) != index.position.step:
        raise DamagedError(f"{FILE} is of step {index.position.step}")
    if hole := index.hole():
        raise DamagedError(hole)
    return index


def check_file(folder: Path, name: str, index: Index) -> None:
    """Compare one file with what the index says of it.

    Raises:
        DamagedError: When it is absent or not as it was written.
    """
    part = index.files[name]
    try:
        if checksum(folder / name) != part.checksum:
            raise DamagedError(f"{name} does not match its checksum")
        expected = {f"{k}/{n}": [part.slices[n][1]] for n in part.slices for k in index.kinds(n, part.kind)}
        with safe_open(folder / name, framework="pt") as file:
            found = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118  no mapping
    except (OSError, SafetensorError) as error:
        raise DamagedError(f"{name} cannot be read: {error}") from None
    if found != expected:
        odd = sorted(k for k in expected.keys() | found.keys() if expected.get(k) != found.get(k))
        raise DamagedError(
            f"{name} holds {odd[0]} as {found.get(odd[0])}, its index says {expected.get(odd[0])}"
        )
