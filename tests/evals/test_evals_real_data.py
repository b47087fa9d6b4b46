"""The metrics and baselines on real Natural Instructions tasks."""

from __future__ import annotations

import json

import pytest

from sft_dist.core.records import single_turn
from sft_dist.evals.baselines import Baselines, training_pairs
from sft_dist.evals.score import score_examples, scores
from sft_dist.evals.splits import Generation, cap_per_task


def read(path):
    raw = json.loads(path.read_text(encoding="utf-8"))
    for instance in raw["Instances"]:
        yield single_turn(
            task=path.stem, source="ni", instruction=raw["Definition"][0], input=instance["input"],
            output=instance["output"][0], references=tuple(instance["output"]),
        )  # fmt: skip


@pytest.fixture(scope="module")
def tasks(shared_data):
    paths = sorted((shared_data / "natural-instructions" / "tasks").glob("task*.json"))[::12]
    return {p.stem: list(read(p)) for p in paths}


def test_a_perfect_model_scores_one_and_the_baselines_do_not(tasks):
    training = [e for members in tasks.values() for e in members[:-40]]
    evaluated = cap_per_task([e for members in tasks.values() for e in members[-40:]], 10, seed=0)
    perfect = {e.id: Generation(id=e.id, prediction=e.answers[-1], stopped=True, tokens=1) for e in evaluated}
    judged = score_examples({"seen": evaluated}, perfect, Baselines(map(training_pairs, training)))
    macro = scores(judged)["sets"]["seen"]["macro"]
    assert macro["metrics"]["exact_match"]["model"] == 1.0
    assert macro["score"]["model"]["mean"] == 1.0  # tasks in other scripts are judged by the other track
    assert macro["tasks"] == len(tasks)
    for baseline in ("majority", "nearest"):
        assert 0.02 < macro["score"][baseline]["mean"] < 0.6
