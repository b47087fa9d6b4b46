"""Prompts without answers: generation starts from them, what is held out is refused, no store ever holds one."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from scripted_server import ScriptedServer, prompt_of
from scripted_teacher import phrase, rng_of, teach

from sft_dist.config import RunConfig
from sft_dist.config.load import validate
from sft_dist.core.errors import UserError
from sft_dist.core.files import read_json, read_jsonl
from sft_dist.pipelines.data.construct import construct
from sft_dist.pipelines.data.prepare import prepare
from sft_dist.selection.files import DROPPED, PROMPT, Selected, seed_examples, training_examples
from sft_dist.selection.sides import select
from sft_dist.shards import Store
from sft_dist.sources import open_source

WORDS = [f"word{i}" for i in range(4000)]
SHAPE = {"hidden_size": 16, "intermediate_size": 16, "layers": 1, "heads": 1, "max_position_embeddings": 4096}


def text(first: int, size: int = 30) -> str:
    return " ".join(WORDS[first : first + size])


# Line k has words of its own. Every fourth is of a task that is held out; of the other task some inputs are evaluated.
ANSWERED = [
    {"instruction": "Shorten it.", "input": text(40 * k), "output": text(40 * k + 30, 8), "task": "held" if k % 4 == 3 else "open"}
    for k in range(40)
]  # fmt: skip
ASKED = [{"instruction": phrase(rng_of({"n": k})), "task": "wild"} for k in range(30)]


def write(
    folder: Path,
    asked: list[dict[str, str]],
    *,
    answered: bool = True,
    construct: object = None,
    **data: object,
) -> RunConfig:
    sources: dict[str, object] = {}
    for name, records in (("answered", ANSWERED), ("asked", asked)):
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(r) + "\n" for r in records))
        sources[name] = {"kind": "alpaca", "path": str(path), "task": "{task}", "prompts": name == "asked"}
    if not answered:
        del sources["answered"]
    held = {"tasks": ["held"], "examples_per_task": 5} if answered else {}
    return validate({
        "data": {"dir": str(folder / "data"), "sources": sources, "processes": 1, "holdout": held, **data},
        "render": {"train_vocab_size": 300, "template": "chatml"},
        "model": {"shape": SHAPE},
        "construct": construct or {},
    })  # fmt: skip


def run(config: RunConfig):
    sources = {n: open_source(n, c) for n, c in config.data.sources.items()}
    return sources, select(config.data, sources, Path(config.data.dir), lambda _: None, seed=config.seed)


def evaluated(selected: Selected) -> list[dict[str, str]]:
    codes = selected.sources["answered"].codes.tolist()
    return [r for r, code in zip(ANSWERED, codes, strict=True) if code == 1]


def test_held_out_decisions_apply_to_prompts(tmp_path):
    _, before = run(write(tmp_path, ASKED))
    seen = next(r for r in evaluated(before) if r["task"] == "open")
    unseen = next(r for r in evaluated(before) if r["task"] == "held")
    planted = [
        {"instruction": "Anything at all here", "task": "held"},  # of the held-out task
        {k: v for k, v in unseen.items() if k != "output"},  # the evaluated input of it
        {
            k: v for k, v in seen.items() if k != "output"
        },  # an evaluated input of a trained task, as that task
        {"instruction": seen["input"].upper(), "task": "wild"},  # and as another
        {"instruction": f"Read {unseen['input']} and go on.", "task": "wild"},  # around an evaluated input
        ASKED[0],
        {"instruction": " ", "task": "wild"},
    ]
    config = write(tmp_path, [*ASKED, *planted], filters={"leakage": {}}, max_bad_share=0.5)
    sources, selected = run(config)
    found = selected.sources["asked"]
    assert found.dropped == {"eval_surplus": 1, "eval_input": 3, "leakage": 1, "exact_duplicate": 1}
    assert found.codes.tolist()[:30] == [PROMPT] * 30
    assert found.codes.tolist()[30:36] == [DROPPED] * 6
    assert (found.read, found.prompts, found.unreadable, found.evaluation, found.kept) == (37, 30, 1, 0, 0)
    assert found.tasks == ()
    assert not any("wild" in d for d in (selected.holdout.inputs, selected.holdout.heldout_inputs))
    assert list(training_examples(sources["asked"], found)) == []
    assert [e.instruction for e in seed_examples(sources["asked"], found)] == [
        r["instruction"] for r in ASKED
    ]
    # prompts change nothing for what is answered, and the counts survive a relaunch
    assert selected.sources["answered"].fingerprint == before.sources["answered"].fingerprint
    assert read_json(tmp_path / "data" / "selection.json")["sources"]["asked"]["prompts"] == 30
    assert run(config)[1].sources["asked"].prompts == 30
    reasons = Counter(r["reason"] for r in read_jsonl(tmp_path / "data" / "rejects" / "asked.jsonl"))
    assert reasons == {**found.dropped, "unreadable": 1}


def test_a_task_of_prompts_is_never_drawn_for_evaluation(tmp_path):
    config = write(tmp_path, ASKED)
    holdout = config.data.holdout.model_copy(update={"tasks": (), "number": 1})
    config = config.model_copy(update={"data": config.data.model_copy(update={"holdout": holdout})})
    _, selected = run(config)
    assert selected.holdout.tasks < {"held", "open"}
    assert selected.sources["asked"].prompts == 30


def test_a_score_is_not_asked_of_prompts(tmp_path):
    rule = {"file": str(tmp_path / "scores"), "missing": "drop"}
    config = write(tmp_path, ASKED, filters={"scores": {"ifd": rule}})
    (tmp_path / "scores").mkdir()
    examples = open_source("answered", config.data.sources["answered"])
    scores = "".join(json.dumps({"id": e.id, "task": e.task, "ifd": 0.5}) + "\n" for e in examples)
    for name, lines in (("answered", scores), ("asked", "")):  # as `sft-dist score` leaves them
        (tmp_path / "scores" / f"{name}.jsonl").write_text(lines)
    _, selected = run(config)
    assert selected.sources["asked"].prompts == 30
    assert selected.id_files["scores.ifd"].missing == 0


def test_no_store_holds_a_prompt(tmp_path):
    config = write(tmp_path, ASKED)
    prepared = prepare(config)
    assert set(prepared.stores) == {"answered"}
    assert len(Store.open(prepared.stores["answered"])) == 25  # 30 of the open task, 5 of them evaluated
    assert not (tmp_path / "data" / "stores" / "asked").exists()


def test_prompts_alone_are_nothing_to_train_on(tmp_path):
    config = write(tmp_path, ASKED, answered=False)
    with pytest.raises(
        UserError, match=r"keep 30 prompts \(asked\) and no example with an answer.*`sft-dist construct`"
    ):
        prepare(config)


SETS = {
    "answers": {"method": "answer", "seeds": ["asked"]},
    "wild": {"method": "instructwild", "seeds": ["asked"], "count": 10, "round_requests": 2},
    "evolved": {"method": "evolve", "seeds": ["asked"], "epochs": 1},
    "mixed": {"method": "self_instruct", "seeds": ["asked", "answered"], "count": 5, "round_requests": 1},
}


@pytest.mark.parametrize("method", ["answer", "evolve", "self_instruct"])
def test_seeds_of_which_nothing_is_left(tmp_path, method):
    """All of them are held out: an empty set would look like a finished one."""
    made = {"method": method, "seeds": ["answered"]}
    config = write(
        tmp_path,
        ASKED,
        construct={"teacher": {"model": "m"}, "sets": {"made": made}},
        holdout={"tasks": ["held", "open"]},
    )
    with pytest.raises(UserError, match=r"made\.seeds \(answered\) keep no training example and no prompt"):
        construct(config)
    assert not (tmp_path / "data/construct/made/examples.jsonl").exists()


def test_every_method_starts_from_prompts(tmp_path):
    secret = {"instruction": "Tell the secret of the house", "task": "held"}
    with ScriptedServer(answer=teach) as server:
        teacher = {"model": "m", "url": server.url, "backoff_s": 0.01}
        config = write(tmp_path, [secret, *ASKED], construct={"teacher": teacher, "sets": SETS})
        made = construct(config)
        asked = [prompt_of(s.body) for s in server.seen]
    assert not any("secret of the house" in t for t in asked)
    prompts = [r["instruction"] for r in ASKED]
    answers = read_jsonl(made["answers"].path)
    assert [e["messages"][0]["content"] for e in answers] == prompts
    assert all(
        len(e["messages"]) == 2 and e["task"] == "wild" and "task:wild" in e["origin"] for e in answers
    )
    assert all(done.examples >= 3 for done in made.values())
    roots = [e["messages"][0]["content"].split(", and then")[0] for e in read_jsonl(made["evolved"].path)]
    assert set(roots) <= set(prompts)
    # a prompt shows no instance: what is shown with its answer comes from the answered source
    shown = next(t for t in asked if "different examples of each task" in t)
    assert f"Input: {ANSWERED[0]['input']}" in shown
    assert not any(f"Task: {p}\n" in shown for p in prompts)


def test_what_is_generated_from_prompts_is_trained_on(tmp_path):
    made = tmp_path / "data" / "construct" / "answers" / "examples.jsonl"
    with ScriptedServer(answer=lambda body: f"It is {prompt_of(body).lower()}.") as server:
        teacher = {"model": "m", "url": server.url}
        config = write(
            tmp_path,
            ASKED,
            answered=False,
            construct={"teacher": teacher, "sets": {"answers": SETS["answers"]}},
        )
        construct(config)
    sources = {n: c.model_dump() for n, c in config.data.sources.items()}
    config = validate({
        **config.model_dump(),
        "data": {
            "dir": str(tmp_path / "data"), "processes": 1,
            "sources": {**sources, "grown": {"kind": "examples", "path": str(made)}},
        },
    })  # fmt: skip
    prepared = prepare(config)
    assert set(prepared.stores) == {"grown"}
    assert len(Store.open(prepared.stores["grown"])) == 30


def test_what_readers_skip_by_design_is_counted(tmp_path):
    rows = [{"question": f"Is {w} a word?", "answer": "yes", "kind": i % 3} for i, w in enumerate(WORDS[:40])]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (tmp_path / "templates.yaml").write_text(
        "dataset: toy\ntemplates:\n  a: !Template\n    answer_choices: null\n    id: a\n"
        "    jinja: '{% if kind %}{{question}} ||| {{answer}}{% endif %}'\n"
        "    metadata: !TemplateMetadata {choices_in_prompt: false, metrics: [], original_task: true}\n"
        "    name: ask\n    reference: ''\n"
    )
    path = str(tmp_path / "rows.jsonl")
    config = validate({
        "data": {
            "dir": str(tmp_path / "data"), "processes": 1,
            "sources": {
                "asked": {"kind": "flan", "path": path, "variants": {"few_shot": 1.0}, "exemplar_pool": 8, "task": "words"},
                "p3": {"kind": "promptsource", "path": path, "templates": str(tmp_path / "templates.yaml")},
            },
        },
        "model": {"path": "some/model"},
    })  # fmt: skip
    expected = {"asked": {"exemplar": {"words": 8}}, "p3": {"template_skips": {"toy/ask": 14}}}
    for _ in range(2):  # decided, then read back
        _, selected = run(config)
        assert {n: s.skipped for n, s in selected.sources.items()} == expected
        assert [s.read for s in selected.sources.values()] == [32, 26]
    written = read_json(tmp_path / "data" / "selection.json")["sources"]
    assert {n: s["skipped"] for n, s in written.items()} == expected
