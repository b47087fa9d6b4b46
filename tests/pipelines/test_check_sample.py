"""`check` of a large source reads a sample of it, says so, and comes close to what preparation decides by every record."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from sft_dist.config import RunConfig
from sft_dist.config.load import load_config
from sft_dist.pipelines.data import prepare as preparation
from sft_dist.pipelines.data.check import check
from sft_dist.pipelines.train.planning import Summary
from sft_dist.sources import open_source
from sft_dist.sources.files import blocks
from sft_dist.sources.files.data_files import BadRecord
from sft_dist.sources.sampled import SampledSource

RECORDS = 4_800
TASKS = 6
Sft = Callable[..., tuple[int, str, str]]


@pytest.fixture
def large(project: Path, base_model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Records of six tasks in the order of their tasks, one in eight too short to be kept, one in a hundred damaged."""
    chance = random.Random(0)
    with (project / "large.jsonl").open("w") as file:
        for i in range(RECORDS):
            words = " ".join(
                chance.choices(["ab", "cd", "ef", "gh", "ij", "kl", "mn", "op"], k=chance.randint(3, 40))
            )
            answer = "no" if i % 8 == 0 else f"answer {i}"
            record = {
                "task": f"task{i * TASKS // RECORDS}",
                "instruction": f"Say {i}",
                "input": f"{words} {i}",
                "output": answer,
            }
            file.write("{\n" if i % 100 == 50 else json.dumps(record) + "\n")
    (project / "large.yaml").write_text(CONFIG.format(base_model=base_model))
    size = (project / "large.jsonl").stat().st_size
    monkeypatch.setattr(preparation, "SAMPLE_BYTES", size // 4)
    return project


CONFIG = """
data:
  sources:
    large: {{kind: alpaca, path: large.jsonl, task: "{{task}}"}}
  holdout: {{number: 1, max_eval_per_task: 90, examples_per_task: 40}}
  filters: {{length: {{min_answer_chars: 4}}}}
model: {{path: {base_model}}}
pack: {{seq_len: 128}}
train: {{tokens_per_step: 512}}
"""
WORDS = ("large.yaml",)


def close(found: float, exact: float, share: float) -> bool:
    return abs(found - exact) <= share * exact


def figures(config: RunConfig) -> Summary:
    return check(config, limit=500)


@pytest.mark.parametrize("pieces", ["one block", "blocks of which some are read"])
def test_the_figures_of_a_sample_are_those_of_the_whole(
    large: Path, sft: Sft, monkeypatch: pytest.MonkeyPatch, pieces: str
) -> None:
    if pieces != "one block":
        monkeypatch.setattr(blocks, "LEAST_BYTES", 8192)
        monkeypatch.setattr("sft_dist.sources.sampled.PASSED_OVER", 3)
    config = load_config(WORDS[1:], Path(WORDS[0]))
    estimate = figures(config)
    assert not estimate.exact
    assert any("a sample was read of large (about" in w for w in estimate.warnings)
    assert sft("prepare", *WORDS)[0] == 0
    exact = figures(config)
    assert exact.exact
    assert list(estimate.held_out) == list(exact.held_out)
    assert close(estimate.examples, exact.examples, 0.1)
    assert close(estimate.tokens, exact.tokens, 0.1)
    assert set(estimate.drops) == set(exact.drops)
    for reason, n in exact.drops.items():  # the rarest, one record in a hundred, is a dozen of the sample
        assert close(estimate.drops[reason], n, 0.35), reason


def test_a_dry_run_leaves_the_facts_of_all_records_alone(large: Path, sft: Sft) -> None:
    assert sft("prepare", *WORDS)[0] == 0
    before = sorted((large / "data" / "facts").rglob("*"))
    shutil.rmtree(large / "data" / "stores")
    assert sft("check", *WORDS)[0] == 0
    assert sft("check", *WORDS, "data.dir=other")[0] == 0
    assert sorted((large / "data" / "facts").rglob("*")) == before
    assert not (large / "other").exists()


def test_what_the_sample_lacks_is_looked_for_in_all_records(large: Path, sft: Sft) -> None:
    """A sample is no reason to refuse, and none to let a mistake pass."""
    with (large / "large.jsonl").open("a") as file:
        file.write(
            json.dumps({"task": "rare", "instruction": "Say it", "input": "now", "output": "said now"}) + "\n"
        )
    code, _, err = sft("check", *WORDS, "data.holdout.tasks=[rare]")
    assert code == 0, err
    assert "a sample was read" not in err
    code, _, err = sft("check", *WORDS, "data.holdout.tasks=[rarer]")
    assert code == 2
    assert "data.holdout.tasks names 'rarer', which no source holds" in err


def test_lines_that_nobody_counted_are_not_named(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sample that passes over blocks does not know the number of a line."""
    monkeypatch.setattr(blocks, "LEAST_BYTES", 8192)
    whole = open_source("large", load_config(WORDS[1:], Path(WORDS[0])).data.sources["large"])
    known = {r.line for r in whole if isinstance(r, BadRecord)}
    assert all(known)
    sample = SampledSource(whole, (large / "large.jsonl").stat().st_size // 500)  # type: ignore[arg-type]
    assert len(sample.blocks()) < len(whole.blocks())  # type: ignore[attr-defined]
    assert {r.line for r in sample if isinstance(r, BadRecord)} <= {None}
    assert 0 < sample.share < 0.01
