"""What another trainer would train on, counted beside ours on documents that one checks by eye."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml

from sft_dist.config.convert import convert
from sft_dist.config.data import PackConfig
from sft_dist.pipelines.data.audit import count

# length, target tokens of the whole, of its first and of its last 10
DOCUMENTS = ((6, 3, 3, 3), (4, 2, 2, 2), (14, 4, 0, 4), (12, 5, 5, 3))


class _Corpus:
    """Stands for mix.Corpus: four documents."""

    lengths = np.array([d[0] for d in DOCUMENTS])

    def __len__(self) -> int:
        return len(DOCUMENTS)

    def slices(self, docs: Any, seq_len: int, *, keep_end: bool) -> Any:
        assert seq_len == 10
        targets = np.array([d[3 if keep_end else 2] for d in DOCUMENTS])[docs]
        return SimpleNamespace(
            lengths=np.minimum(self.lengths[docs], seq_len).astype(np.int32), target_tokens=targets
        )


@pytest.mark.parametrize(
    ("pack", "expected"),
    [
        # documents, dropped, cut, silent, tokens, targets, rows
        ({"too_long": "drop", "packing": False}, (4, 2, 0, 0, 10, 5, 2)),
        ({"too_long": "truncate_answer", "packing": False}, (4, 0, 2, 1, 30, 10, 4)),
        ({"too_long": "truncate_prompt"}, (4, 0, 2, 0, 30, 12, 3)),
    ],
)
def test_cuts_rows_and_loss_are_counted(pack: dict[str, Any], expected: tuple[int, ...]) -> None:
    found = count(_Corpus(), PackConfig(seq_len=10, **pack), apart=False, drops_silent=False)  # type: ignore[arg-type]
    names = ("documents", "dropped", "cut", "silent", "tokens", "target_tokens", "rows")
    assert tuple(getattr(found, n) for n in names) == expected
    assert found.fill == pytest.approx(found.tokens / (10 * found.rows))
    assert found.apart == (pack.get("packing") is False)


def test_we_leave_out_what_a_cut_leaves_without_loss() -> None:
    found = count(
        _Corpus(),
        PackConfig(seq_len=10, too_long="truncate_answer", packing=False),
        apart=True,
        drops_silent=True,
    )  # type: ignore[arg-type]
    assert (found.dropped, found.cut, found.silent, found.tokens, found.target_tokens, found.rows) == (
        1,
        1,
        0,
        20,
        10,
        3,
    )


def test_the_command_counts_the_same_data(
    project: Path, base_model: Path, sft: Callable[..., tuple[int, str, str]]
) -> None:
    theirs = {
        "model_name_or_path": str(base_model), "dataset_name": "messages.jsonl", "max_length": 256, "packing": False,
        "per_device_train_batch_size": 2,
    }  # fmt: skip
    (project / "trl.yaml").write_text(yaml.safe_dump(theirs))
    assert convert(project / "trl.yaml", ranks=1).get("render.train_on") == "all"
    masked = theirs | {"assistant_only_loss": True}
    (project / "masked.yaml").write_text(yaml.safe_dump(masked))
    assert convert(project / "masked.yaml", ranks=1).get("render.train_on") is None
    code, out, err = sft("audit", "trl.yaml", "--ranks", "1")
    assert code == 0, err
    rows = {
        c[0].strip(): [x.strip().replace(",", "") for x in c[1:3]]
        for line in out.splitlines()
        if len(c := line.strip("│ ").split("│")) == 3
    }
    tokens, loss = rows["tokens"], rows["tokens with loss"]
    assert int(loss[0]) > int(loss[1]) > 0
    assert int(loss[0]) <= int(tokens[0])
    assert int(rows["rows"][1]) < int(rows["rows"][0])
