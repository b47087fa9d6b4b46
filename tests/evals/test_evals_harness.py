"""Output of lm-evaluation-harness by hand: figures, intervals over items, paired differences. Needs no harness."""

from __future__ import annotations

import math
from dataclasses import asdict

import pytest

from sft_dist.core.errors import UserError
from sft_dist.evals.harness import harness_scores, read_output
from sft_dist.evals.statistics import mcnemar_p, wilson
from sft_dist.pipelines.evaluate.harness import named_tasks


def output(right, *, bleu=30.0):
    """What `simple_evaluate` returns for a task of one metric by item and one of the whole, and a group over it."""
    mean = sum(right) / len(right)
    samples = [
        {
            "doc_id": i,
            "filter": "none",
            "metrics": ["acc", "bleu"],
            "acc": float(x),
            "bleu": ("a", "b"),
            "filtered_resps": "a",
            "target": "b",
        }
        for i, x in enumerate(right)
    ]
    figures = {
        "alias": "toy", "sample_len": len(right), "acc,none": mean, "acc_stderr,none": 0.05, "bleu,none": bleu, "bleu_stderr,none": "N/A",
    }  # fmt: skip
    return {
        "results": {"toy": figures, "group": {"alias": "group", "acc,none": mean}},
        "samples": {"toy": samples},
        "higher_is_better": {"toy": {"acc": True, "bleu": True}},
    }


def found(model, base=None):
    read = {who: read_output(output(right)) for who, right in (("model", model), ("base", base)) if right}
    return harness_scores({w: t for w, (t, _) in read.items()}, {w: i for w, (_, i) in read.items()})


def test_figures_and_items_are_read_and_groups_are_not():
    totals, items = read_output(output([1, 0, 1, 1]))
    assert [(t.metric, t.value, t.filter) for t in totals] == [("acc", 0.75, "none"), ("bleu", 30.0, "none")]
    assert totals[0].stderr == 0.05
    assert math.isnan(totals[1].stderr)
    assert [asdict(i)["scores"] for i in items] == [{"acc": 1.0}, {"acc": 0.0}, {"acc": 1.0}, {"acc": 1.0}]


def test_intervals_are_over_items_and_a_metric_of_the_whole_has_none():
    acc, bleu = found([1] * 30 + [0] * 10)["toy"]["metrics"]
    assert (acc["score"]["model"]["low"], acc["score"]["model"]["high"]) == pytest.approx(wilson(30, 40))
    assert acc["score"]["model"]["stderr"] == 0.05
    assert "low" not in bleu["score"]["model"]
    assert "difference" not in acc


def test_the_difference_to_the_base_is_paired_on_the_item():
    model, base = [1] * 30 + [0] * 10, [1] * 20 + [0] * 20
    acc, _ = found(model, base)["toy"]["metrics"]
    d = acc["difference"]
    assert (d["difference"], d["win"], d["loss"], d["units"]) == (0.25, 10, 0, 40)
    assert d["low"] > 0.1
    assert d["p"] == pytest.approx(mcnemar_p(10, 0), abs=0.002)  # sign flips of 0 and 1 are McNemar's test
    assert d["p_holm"] == d["p"]  # one contrast


def test_a_figure_that_is_not_the_mean_of_its_items_gets_no_interval_of_ours():
    broken = output([1, 0, 1, 1])
    broken["results"]["toy"]["acc,none"] = 0.5
    totals, items = read_output(broken)
    acc, _ = harness_scores({"model": totals}, {"model": items})["toy"]["metrics"]
    assert acc["score"]["model"] == {"mean": 0.5, "stderr": 0.05}


def test_task_files_and_folders_are_found(tmp_path):
    (tmp_path / "a.yaml").write_text("# comment\ntask: my_task\noutput_type: generate_until\n")
    (tmp_path / "b.yaml").write_text("metric_list: []\n")
    assert named_tasks(f"{tmp_path}/a.yaml,{tmp_path}") == [
        {"folder": str(tmp_path), "task": "my_task"},
        {"folder": str(tmp_path), "task": None},
    ]
    for bad in (f"{tmp_path}/b.yaml", "hellaswag", str(tmp_path / "none.yaml")):
        with pytest.raises(UserError, match="is neither a task file"):
            named_tasks(bad)
    with pytest.raises(UserError, match="names no task file"):
        named_tasks("[]")
