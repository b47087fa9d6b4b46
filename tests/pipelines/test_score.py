"""The score pipeline: which losses make an IFD, resumption, refusal of scores that do not fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from sft_dist.config.load import load_config
from sft_dist.core.errors import UserError
from sft_dist.core.records import Span, Tokens
from sft_dist.pipelines.data import score
from sft_dist.pipelines.data.score import documents

Sft = Callable[..., tuple[int, str, str]]


def test_documents_have_the_same_targets_with_and_without_the_prompt():
    # 0 1 2 [3 4] 5 6 [7]: two answers, of which the second is one token
    tokens = Tokens(ids=np.arange(10, 18, dtype=np.int32), spans=(Span(3, 2, 1.0), Span(7, 1, 0.5)))
    whole, first, second = documents(tokens, 5, seq_len=8)
    assert (whole.ids.tolist(), whole.targets.tolist(), whole.alone, whole.example) == (
        list(range(10, 18)),
        [3, 4, 7],
        False,
        5,
    )
    assert (first.ids.tolist(), first.targets.tolist(), first.alone) == ([12, 13, 14], [1, 2], True)
    assert (second.ids.tolist(), second.targets.tolist(), second.alone) == ([16, 17], [1], True)


def test_a_long_example_keeps_its_end_and_what_weighs_nothing_is_no_target():
    tokens = Tokens(ids=np.arange(10, 18, dtype=np.int32), spans=(Span(3, 2, 1.0), Span(7, 1, 1.0)))
    whole, *alone = documents(
        tokens, 0, seq_len=4
    )  # 14 15 16 17: the rest of the first answer has no predictor
    assert (whole.ids.tolist(), whole.targets.tolist()) == ([14, 15, 16, 17], [3])
    assert [d.ids.tolist() for d in alone] == [[16, 17]]
    assert list(documents(Tokens(ids=tokens.ids, spans=(Span(3, 2, 0.0),)), 0, seq_len=8)) == []


def test_scores_are_those_of_plain_transformers(sft: Sft, project: Path, base_model: Path):
    """Every IFD again, one document at a time, padded by nothing, with the library's own forward."""
    import torch
    from transformers import AutoModelForCausalLM

    from sft_dist.config.load import load_config
    from sft_dist.pipelines.data.renderer import make_renderer
    from sft_dist.sources import open_source

    assert sft("score", "my.yaml")[0] == 0
    config = load_config([], project / "my.yaml")
    renderer = make_renderer(config, project, list)
    model = AutoModelForCausalLM.from_pretrained(base_model).eval()

    def nats(ids, targets):
        with torch.no_grad():
            logits = model(torch.tensor([ids.tolist()])).logits[0].log_softmax(-1)
        return -sum(float(logits[t - 1, ids[t]]) for t in targets)

    for name, source_config in config.data.sources.items():
        lines = [
            json.loads(x) for x in (project / "data" / "scores" / f"{name}.jsonl").read_text().splitlines()
        ]
        examples = {e.id: e for e in open_source(name, source_config)}
        # 60 records: 3 of each task are evaluated, and the other task asks about the same 6 inputs
        assert len(lines) == {"records": 48, "chats": 17}[name]
        for line in lines[::5]:
            [tokens] = renderer.render([examples[line["id"]]])
            given = nats(tokens.ids, [t for s in tokens.spans for t in range(s.start, s.start + s.length)])
            alone = sum(
                nats(tokens.ids[s.start - 1 : s.start + s.length], range(1, s.length + 1))
                for s in tokens.spans
            )
            assert line["ifd"] == pytest.approx(given / alone, abs=1e-4)
            assert line["tokens"] == sum(s.length for s in tokens.spans)


def test_a_check_that_ends_in_nan_is_not_passed(project: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(score.isolation_check, "measure_isolation", lambda *_: float("nan"))
    config = load_config([], project / "my.yaml")
    renderer = SimpleNamespace(tokenizer=SimpleNamespace(vocab_size=1))
    with pytest.raises(UserError, match="packed documents see one another"):
        score._Losses.load(config, renderer)


def test_an_interrupted_scoring_goes_on(sft: Sft, project: Path):
    sft("score", "my.yaml")
    path = project / "data" / "scores" / "records.jsonl"
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:7]) + lines[7][:20])  # killed in the middle of a write
    assert sft("score", "my.yaml")[0] == 0
    assert path.read_bytes().startswith(b"".join(lines[:7]))
    assert {
        json.loads(x)["id"]: json.loads(x)["ifd"] for x in path.read_bytes().splitlines()
    } == pytest.approx({json.loads(x)["id"]: json.loads(x)["ifd"] for x in lines}, abs=1e-4)
    done = path.read_bytes()
    sft("score", "my.yaml")
    assert path.read_bytes() == done


def test_scores_of_other_settings_are_not_continued(sft: Sft, project: Path):
    sft("score", "my.yaml")
    code, _, error = sft("score", "my.yaml", "pack.seq_len=64")
    assert code == 2
    assert "seq_len (128 -> 64)" in error
    assert "--rebuild" in error
    assert sft("score", "my.yaml", "pack.seq_len=64", "--rebuild")[0] == 0


def test_an_untrained_model_scores_nothing(sft: Sft, project: Path):
    code, _, error = sft("score", "experiment=demo", f"data.dir={project}/d")
    assert code == 2
    assert "untrained" in error


def test_the_filter_keeps_the_hardest_of_each_task(sft: Sft, project: Path):
    code, _, error = sft("prepare", "my.yaml", "data.filters.scores={ifd: {keep_top: 0.5}}")
    assert code == 2
    assert "sft-dist score" in error
    sft("score", "my.yaml")
    assert sft("prepare", "my.yaml", "data.filters.scores={ifd: {keep_top: 0.5}}")[0] == 0
    scores = {}
    for line in map(json.loads, (project / "data" / "scores" / "records.jsonl").read_text().splitlines()):
        scores.setdefault(line["task"], {})[line["id"]] = line["ifd"]
    rejects = [
        json.loads(x) for x in (project / "data" / "rejects" / "records.jsonl").read_text().splitlines()
    ]
    dropped = {r["record"]["id"] for r in rejects if r["reason"] == "score_rank"}
    for found in scores.values():
        order = sorted(found, key=found.__getitem__)
        assert dropped & set(found) == set(order[: len(order) // 2])
