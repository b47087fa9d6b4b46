"""A file or folder of data, and a model -> a config with a comment at each choice, ready for `sft-dist check`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from sft_dist.core.errors import UserError
from sft_dist.sources.chat import TURN_FIELDS
from sft_dist.sources.files.data_files import RawRecord, data_files, read_records

SAMPLE = 1000  # records that are looked at
QUESTIONS = ("instruction", "prompt", "question", "query", "input")
ANSWERS = ("output", "response", "completion", "answer", "target")
INPUTS = ("input", "context")
GROUPS = ("task", "category", "type", "subject", "source", "dataset")
MAX_GROUPS = 200  # a field of more values does not name tasks


def init_config(path: Path, model: str) -> str:
    """Return the text of a config for this data and model.

    Args:
        path: A data file, or a folder of them.
        model: Folder or hub id of the model to train.

    Raises:
        UserError: When the data holds no records whose layout is known.
    """
    records = _sample(path)
    kind, fields = layout(records, path)
    lines = [f"kind: {kind}", f"path: {json.dumps(str(path))}", *(f"{k}: {v}" for k, v in fields.items())]
    if group := _group(records):
        lines.append(f'task: "{{{group}}}"')
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", path.resolve().stem).strip("-.")[:60] or "mine"
    source = "\n".join(f"      {line}" for line in lines)
    few = len(records) < SAMPLE
    told = f"{len(records):,} records" if few else f"more than {SAMPLE:,} records"
    tokens = 16384 if few else 131072
    by = f"tasks by the field {group!r}" if group else "one task: no field names several"
    return f"""# Written by `sft-dist init`: {told} of the layout {kind}; {by}.
#   sft-dist check THIS        every mistake at once, and what training would consist of
#   sft-dist preview THIS      which tokens carry loss
#   sft-dist train THIS        prepares and trains; then: sft-dist evaluate runs/{name}
name: {name}
model: {{path: {json.dumps(model)}}}  # a hub id or a local folder
# lora: {{rank: 32, alpha: 64}}        # adapters instead of all weights, with optim.lr=2e-4
data:
  dir: data/{name}  # token stores, built once
  sources:
    {name}:
{source}
  validation: {{share: 0.02}}  # of each task; chooses the best checkpoint
  holdout: {{share: 0.02}}  # of each task; judges the model, never used to choose
pack: {{seq_len: 4096}}  # longer documents lose the beginning of their prompt (pack.too_long)
optim: {{lr: 1.0e-5}}
train: {{epochs: {3 if few else 1}, tokens_per_step: {tokens}}}  # tokens of a global batch, over all ranks
"""


def layout(records: list[Mapping[str, Any]], path: Path) -> tuple[str, dict[str, str]]:
    """Return the kind of source that reads these records, and the names of its fields that are not the usual ones.

    Raises:
        UserError: When the layout is not known.
    """
    first = records[0]
    if turns := next((f for f in TURN_FIELDS if isinstance(first.get(f), list)), None):
        return "chat", {} if turns in ("messages", "conversations") else {"messages_field": turns}
    question = next((f for f in QUESTIONS if f in first), None)
    answer = next((f for f in ANSWERS if f in first), None)
    if question is None or answer is None:
        raise UserError(
            f"{path} holds records with the fields {', '.join(map(str, first))}, and none of them is known as turns, a question or "
            f"an answer; write a source of kind alpaca with instruction_field and output_field, or of kind chat (docs/config.md)"
        )
    given = next((f for f in INPUTS if f in first and f != question), None)
    fields = {"instruction_field": (question, "instruction"), "output_field": (answer, "output")}
    if given:
        fields["input_field"] = (given, "input")
    return "alpaca", {key: name for key, (name, usual) in fields.items() if name != usual}


def _sample(path: Path) -> list[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = [
        r.fields for r in islice(read_records(data_files(str(path))), SAMPLE) if isinstance(r, RawRecord)
    ]
    if not found:
        raise UserError(
            f"{path} holds no record that can be read, so there is nothing to train on; check the file"
        )
    return found


def _group(records: list[Mapping[str, Any]]) -> str | None:
    """Return a field that names tasks: a short text in every record, of a few values."""
    for name in GROUPS:
        values = {r.get(name) for r in records if isinstance(r.get(name), str)}
        if 1 < len(values) <= min(MAX_GROUPS, len(records) // 2) and all(
            isinstance(r.get(name), str) for r in records
        ):
            return name
    return None
