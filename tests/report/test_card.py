"""The dataset card: every number on it again, counted in plain Python from the records, rejects and stored tokens."""

from __future__ import annotations

import json
import math
import random
import re
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from browser import check_looks
from card_again import card_again, common_subsequence
from rouge_score.rouge_scorer import _score_lcs

import sft_dist
from sft_dist.cli import main
from sft_dist.config.load import load_config
from sft_dist.core.verbs import singular, verb_and_noun
from sft_dist.mix import draw
from sft_dist.pipelines.train.planning import mixture_of, open_corpus
from sft_dist.report.card.charts import columns, rings
from sft_dist.report.card.counts import warnings
from sft_dist.report.card.facts import Amount, Balance, TaskFacts, TaskLabels
from sft_dist.report.card.language import distinct, nearest_rouge_l
from sft_dist.report.card.wording import REASONS, warning
from sft_dist.report.formatting import count
from sft_dist.shards import Store
from sft_dist.sources import open_source

WORDS = [f"w{i}" for i in range(600)]
VERBS = ["Write", "Describe", "Summarise", "Translate", "List", "Explain"]
NOUNS = ["story", "cities", "poem", "glass", "boxes"]


def line(draw: random.Random, size: int) -> str:
    return " ".join(draw.choice(WORDS) for _ in range(size))


def records() -> dict[str, list[dict[str, str]]]:
    """140 records of three tasks, and 40 of a chat-like source without INPUT; duplicates and damage planted."""
    draw = random.Random(0)
    main_ = [
        {
            "instruction": f"{VERBS[k % 3]} the {NOUNS[k % 5]} of this text.",
            "input": line(draw, 4 + k % 30),
            "output": line(draw, 1 + k % 9),
            "task": ("big", "big", "big", "big", "mid", "small")[k % 6] if k % 60 else "tiny",
        }
        for k in range(140)
    ]
    main_ += [main_[1], main_[2], dict(main_[3], output="")]
    asked = [
        {
            "instruction": f"{draw.choice(VERBS)} {draw.choice(NOUNS)} about {line(draw, 9)}",
            "output": line(draw, 12),
        }
        for _ in range(40)
    ]
    asked += [
        dict(asked[0], instruction=asked[0]["instruction"] + " !"),
        {"instruction": f"Describe story about {main_[10]['input']}", "output": "x"},
    ]
    return {"main": main_, "asked": asked}


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[Path, dict, str, str]:
    folder = tmp_path_factory.mktemp("card")
    for name, rows in records().items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    with (folder / "asked.jsonl").open("a") as f:
        f.write('{"instruction": 3}\n')
    (folder / "my.yaml").write_text(f"""
name: small-mixture
data:
  dir: {folder}/data
  max_bad_share: 0.1
  processes: 1
  sources:
    main: {{kind: alpaca, path: {folder}/main.jsonl, task: "{{task}}", dataset: "set-of-{{task}}", license: CC-BY-4.0}}
    asked: {{kind: alpaca, path: {folder}/asked.jsonl, weight: 2.0}}
  holdout: {{tasks: [mid], examples_per_task: 2}}
  filters: {{near_duplicates: {{}}, leakage: {{}}, refusal: true}}
mix: {{rate: proportional, cap: 25, task_min: 20}}
render: {{template: chatml, train_vocab_size: 400}}
pack: {{seq_len: 96}}
train: {{tokens_per_step: 960}}
model: {{shape: {{hidden_size: 16, intermediate_size: 16, layers: 1, heads: 1, max_position_embeddings: 128}}}}
""")
    assert main(["prepare", str(folder / "my.yaml")]) == 0
    assert main(["card", str(folder / "my.yaml")]) == 0
    card = folder / "data" / "card"
    return (
        folder,
        json.loads((card / "card.json").read_text()),
        (card / "card.html").read_text(),
        (card / "README.md").read_text(),
    )


def stored(folder: Path):
    """(source, task, tokens, tokens with loss, id) of each stored example, one by one."""
    for name in ("main", "asked"):
        store = Store.open(folder / "data" / "stores" / name)
        for i in range(len(store)):
            t = store.read(i)
            yield (
                name,
                store.task_names[store.tasks[i]],
                len(t.ids),
                sum(s.length for s in t.spans),
                store.id_hex(i),
            )


def rejects(folder: Path, source: str):
    for path in sorted((folder / "data" / "rejects").glob(f"{source}*.jsonl")):
        yield from map(json.loads, path.read_text().splitlines())


def kept_records(folder: Path) -> dict[str, list[dict[str, str]]]:
    """The input records that are trained on, found by their text: what is neither rejected nor evaluated."""
    out = {}
    gone = Counter()
    for name in ("seen", "heldout"):
        for e in map(json.loads, (folder / "data" / "eval" / f"{name}.jsonl").read_text().splitlines()):
            gone[e["source"], e["messages"][0]["content"], e["messages"][1]["content"]] += 1
    for source, rows in records().items():
        for r in rejects(folder, source):
            if "messages" in r["record"]:
                m = r["record"]["messages"]
                gone[source, m[0]["content"], m[1]["content"]] += 1
        out[source] = []
        for r in reversed(rows):  # a duplicate is dropped from the back
            prompt = f"{r['instruction']}\n\n{r['input']}" if r.get("input") else r["instruction"]
            if gone[source, prompt, r["output"]]:
                gone[source, prompt, r["output"]] -= 1
            else:
                out[source].insert(0, r)
    assert not +gone
    return out


def test_counts_tokens_and_shares(built):
    folder, card, _, _ = built
    rows = list(stored(folder))
    assert card["total"]["examples"] == len(rows)
    assert card["total"]["tokens"] == sum(r[2] for r in rows)
    assert card["total"]["target_tokens"] == sum(r[3] for r in rows)
    assert {t["name"]: t["amount"]["examples"] for t in card["tasks"]} == Counter(r[1] for r in rows)
    for key, value in (("tokens", 2), ("target_tokens", 3)):
        for kind, place in (("tasks", 1), ("sources", 0)):
            expected = Counter()
            for r in rows:
                expected[r[place]] += r[value]
            assert {x["name"]: x["amount"][key] for x in card[kind]} == expected
    assert {int(k): n for k, n in card["lengths"].items() if n} == Counter(int(math.log2(r[2])) for r in rows)
    assert {s["name"]: s["amount"]["examples"] for s in card["sources"]} == {
        n: len(r) for n, r in kept_records(folder).items()
    }


def test_what_one_epoch_draws(built):
    """From the documents of the plan, one by one: truncation keeps the end of what is longer than a row."""
    from sft_dist.config.load import load_config
    from sft_dist.pipelines.train.planning import cost_model, make_planner, open_corpus

    folder, card, _, _ = built
    config = load_config([], folder / "my.yaml")
    corpus = open_corpus({n: folder / "data" / "stores" / n for n in ("main", "asked")})
    plan = make_planner(config, corpus, world_size=1, cost=cost_model(config, 400)).epoch(0)
    examples, tokens, targets, cut = Counter(), Counter(), Counter(), 0
    for doc in plan.docs.tolist():
        store, i = corpus.locate(doc)
        t, task = store.read(i), store.task_names[store.tasks[i]]
        first = max(0, len(t.ids) - 96)
        cut += first > 0
        examples[task] += 1
        tokens[task] += min(96, len(t.ids))
        targets[task] += sum(1 for s in t.spans for p in range(s.start, s.start + s.length) if p > first)
    for task in card["tasks"]:
        a, name = task["amount"], task["name"]
        assert (a["drawn_examples"], a["drawn_tokens"], a["drawn_target_tokens"]) == (
            examples[name],
            tokens[name],
            targets[name],
        )
    assert card["not_trained"]["truncated"] == cut > 0
    assert card["total"]["drawn_examples"] == sum(examples.values())
    assert {t.task: t.target_tokens_after for t in plan.task_table()} == targets
    of_source = Counter(corpus.source_names[i] for i in corpus.source_of[plan.docs])
    assert {s["name"]: s["amount"]["drawn_examples"] for s in card["sources"]} == of_source
    assert card["across_sources"] == plan.counts.duplicates


def test_drops_and_evaluation(built):
    folder, card, html, _ = built
    everything = Counter()
    for source in card["sources"]:
        reasons = Counter(r["reason"] for r in rejects(folder, source["name"]))
        unreadable = reasons.pop("unreadable", 0)
        assert (source["dropped"], source["unreadable"]) == (reasons, unreadable)
        everything += reasons
        lines = len((folder / f"{source['name']}.jsonl").read_text().splitlines())
        assert (
            source["read"]
            == lines
            == source["amount"]["examples"] + source["evaluation"] + unreadable + sum(reasons.values())
        )
    assert card["dropped"] == everything
    assert {"exact_duplicate", "near_duplicate", "leakage", "answer_too_short", "eval_surplus"} >= set(
        everything
    )
    assert everything["exact_duplicate"] == 2
    assert everything["leakage"] == 1
    assert card["sources"][1]["unreadable"] == 1
    for name, numbers in card["evaluation"].items():
        found = [json.loads(x) for x in (folder / "data" / "eval" / f"{name}.jsonl").read_text().splitlines()]
        assert numbers == [len({e["task"] for e in found}), len(found)]
    assert card["held_out"] == ["mid"]
    for reason in everything:
        assert reason.replace("_", " ") in html


def test_contamination(built):
    folder, card, html, text = built
    [finding] = card["contaminated"]
    rejected = [r for r in rejects(folder, "asked") if r["reason"] == "leakage"]
    assert (finding["examples"], finding["source"], finding["example"]) == (
        1,
        "asked",
        rejected[0]["record"]["id"],
    )
    planted = records()["main"][10]["input"].split()
    assert finding["span"].split() == planted[:24]
    assert finding["span"] in html
    assert finding["span"] in text


def test_balance_and_rare_tasks(built):
    _, card, html, _ = built
    for key, which in (("before", "examples"), ("after", "drawn_examples")):
        n = {t["name"]: t["amount"][which] for t in card["tasks"]}
        shares = {t: v / sum(n.values()) for t, v in n.items()}
        assert card[key]["largest"] == pytest.approx(max(shares.values()))
        assert card[key]["effective_tasks"] == pytest.approx(
            math.exp(-sum(s * math.log(s) for s in shares.values()))
        )
        assert set(card[key]["rare"]) == {t for t, s in shares.items() if s < 0.5 / len(shares)}
    assert card["before"]["rare"] == ["tiny"]  # 3 examples
    assert card["after"]["rare"] == []  # a cap, and at least 20 of each
    assert "under-represented" in html


def test_origins(built):
    folder, card, html, text = built
    datasets = Counter(f"set-of-{r['task']}" for r in kept_records(folder)["main"])
    main_, asked = card["sources"]
    assert (main_["license"], main_["datasets"]) == ("CC-BY-4.0", datasets)
    assert (asked["license"], asked["datasets"]) == (None, {})
    assert main_["files"] == [["main.jsonl", (folder / "main.jsonl").stat().st_size]]
    assert "CC-BY-4.0" in html
    assert "| CC-BY-4.0 |" in text


def plain_words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())


def test_diversity(built):
    folder, card, _, _ = built
    kept = [r for rows in kept_records(folder).values() for r in rows]
    d = card["diversity"]
    instructions = {r["instruction"] for r in kept}
    assert d["instructions"] == len(instructions)
    verbs = Counter()
    for text in instructions:  # "Verb the noun of ..." or "Verb noun about ..."
        verb, noun = text.lower().split()[0], text.lower().replace(" the ", " ").split()[1]
        verbs[verb, {"cities": "city", "boxes": "box"}.get(noun, noun)] += 1
    assert {(v, n): k for v, n, k in d["verbs"]} == verbs
    assert d["with_verb"] == sum(verbs.values()) == len(instructions)
    unique = {(r["instruction"], r.get("input"), r["output"]): r for r in kept}.values()
    assert d["sampled"] == len(unique) == len(kept)  # all of so few
    for name, texts in (
        ("prompts", [r.get("input") or r["instruction"] for r in unique]),
        ("answers", [r["output"] for r in unique]),
    ):
        for n in (1, 2, 3):
            grams = [tuple(w[i : i + n]) for w in map(plain_words, texts) for i in range(len(w) - n + 1)]
            assert d["distinct"][name][n - 1] == [len(set(grams)), len(grams)]
    for name, texts in (
        ("instructions", sorted(instructions)),
        ("prompts", [r.get("input") or r["instruction"] for r in unique]),
    ):
        found = [plain_words(t) for t in texts]
        best = [
            max(_score_lcs(a, b).fmeasure for j, b in enumerate(found) if j != i) for i, a in enumerate(found)
        ]
        assert d["nearest_mean"][name] == pytest.approx(sum(best) / len(best))
        bins = Counter(min(19, int(v * 20 + 1e-9)) for v in best)
        assert d["nearest"][name] == [bins[k] for k in range(20)]


def verb_of(text: str) -> tuple[str, str]:
    """Of "Verb the noun of ..." and "Verb noun about ..."."""
    verb, noun = text.lower().replace(" the ", " ").split()[:2]
    return verb, {"cities": "city", "boxes": "box"}.get(noun, noun)


def test_every_number_is_counted_again(built):
    """card.json whole, by code that shares nothing with the card's (see card_again.py)."""
    folder, card, _, _ = built
    config = load_config([], folder / "my.yaml")
    sources = {n: open_source(n, c) for n, c in config.data.sources.items()}
    corpus = open_corpus({n: folder / "data" / "stores" / n for n in sources})
    docs = draw(corpus, mixture_of(config, corpus), seed=config.seed, epoch=0).tolist()
    drawn = [("main", d) if d < corpus.first[1] else ("asked", d - corpus.first[1]) for d in docs]
    again = card_again(
        config,
        {n: list(s) for n, s in sources.items()},
        {n: s.files() for n, s in sources.items()},
        drawn,
        verb_of,
    )
    found = dict(card)
    assert found.pop("settings")["mix.cap"] == 25
    rendered = [s.pop("rendered") for s in found["sources"]]
    assert [r["conversations"] for r in rendered] == [s["amount"]["examples"] for s in again["sources"]]
    assert [r["answers"] for r in rendered] == [s["amount"]["examples"] for s in again["sources"]]
    assert set(found) == set(again)
    for key in again:
        assert close(found[key], again[key]), key


def close(found, expected) -> bool:
    """Equality, of floats within rounding."""
    if isinstance(expected, dict):
        return set(found) == set(expected) and all(close(found[k], v) for k, v in expected.items())
    if isinstance(expected, list | tuple):
        return len(found) == len(expected) and all(map(close, found, expected))
    return found == pytest.approx(expected) if isinstance(expected, float) else found == expected


def test_the_twin_of_the_lcs():
    draw = random.Random(3)
    for _ in range(200):
        a, b = ([draw.choice("abcde") for _ in range(draw.randrange(12))] for _ in range(2))
        expected = _score_lcs(a, b).recall * len(a) if a and b else 0
        assert common_subsequence(a, b) == pytest.approx(expected)


def test_what_is_wrong_with_a_mixture():
    def task(name: str, stored: int, drawn: int) -> TaskFacts:
        amount = Amount(examples=stored, drawn_examples=drawn)
        return TaskFacts(name=name, sources=("s",), labels=TaskLabels(), amount=amount)

    tasks = [
        task("even", 50, 50),
        task("unused", 9, 0),
        task("few", 9, 2),
        task("worn", 9, 37),
        task("four", 9, 36),
        task("thin", 1, 5),
    ]
    after = Balance(effective_tasks=3.0, largest=0.4, rare=("unused", "few", "thin"))
    assert warnings(tasks, after, {"even", "gone"}) == {
        "nothing_kept": ("gone",),
        "never_drawn": ("unused",),
        "under_represented": ("few",),
        "repeated": ("worn",),
        "scarce": ("thin",),
    }
    assert warnings([task("even", 5, 5)], Balance(effective_tasks=1.0, largest=1.0, rare=()), {"even"}) == {}


def test_the_pages_warn(built):
    _, card, html, text = built
    assert card["warnings"] == {"repeated": ["tiny"]}  # 3 examples, drawn 20 times
    for shown in (html, text):
        assert "1 task repeated more than 4 times an epoch; lower the share" in shown


def test_samples_are_kept_examples(built):
    folder, card, html, _ = built
    ids = {r[4]: r[0] for r in stored(folder)}
    for source, samples in card["samples"].items():
        assert len(samples) == 4
        assert all(ids[e["id"]] == source for e in samples)
        assert all(e["id"][:12] in html for e in samples)


def test_the_pages_show_the_numbers(built):
    _, card, html, text = built
    ET.fromstring(html.removeprefix("<!doctype html>\n").split("<script>")[0] + "</body></html>")
    assert "http://" not in html.replace("http://www.w3.org", "")
    for number in (
        card["total"]["examples"],
        card["total"]["drawn_examples"],
        card["diversity"]["instructions"],
    ):
        assert count(number) in html
        assert count(number) in text
    for task in card["tasks"]:
        assert re.search(
            rf"\| {task['name']} \| .*\| {count(task['amount']['examples'])} \| {count(task['amount']['tokens'])} \|",
            text,
        )
    shares = [t["amount"]["examples"] / card["total"]["examples"] for t in card["tasks"]]
    assert all(f"{100 * s:.1f} %" in html and f"{100 * s:.1f} %" in text for s in shares)
    assert "mix.cap" in html
    assert "`mix.cap`" in text


def test_the_page_in_a_browser(built, tmp_path):
    check_looks(built[0] / "data" / "card" / "card.html", tmp_path)


def test_the_pages_show_the_first_record_of_each_drop_and_what_is_spoken(built):
    folder, card, html, text = built
    everything = [r for source in ("main", "asked") for r in rejects(folder, source)]
    assert set(card["first_dropped"]) == {r["reason"] for r in everything}
    for reason, first in card["first_dropped"].items():
        assert first["id"] in html
        assert first["id"] in text
        assert any(r["reason"] == reason and r["detail"] == first["detail"] for r in everything)
    assert card["first_dropped"]["unreadable"]["id"].startswith("asked.jsonl, line ")
    sampled = card["diversity"]["sampled"]
    assert [sum(found.values()) for found in card["diversity"]["languages"].values()] == [sampled, sampled]
    assert set(card["turns"]) == {"1"}
    assert "1 in 100.0 % of examples, 1 at most" in html
    assert "CC-BY-4.0" in card["licenses"]


def test_no_advice_makes_what_another_warns_of_worse():
    found = {"under_represented": ("few",), "repeated": ("worn",), "never_drawn": ("unused",)}
    assert not [kind for kind in found if "mix.task_min" in warning(kind, found)]
    for kind, names in found.items():
        assert "mix.task_min" in warning(kind, {kind: names})
    assert "add examples, or leave them out" in warning("scarce", {"scarce": ("thin",)})


def test_the_same_twice(built):
    folder, _, html, text = built
    assert main(["card", str(folder / "my.yaml"), "--out", str(folder / "again")]) == 0
    assert (folder / "again" / "card.html").read_text() == html
    assert (folder / "again" / "README.md").read_text() == text


def test_a_pool_counts_what_one_process_counts(built, tmp_path, monkeypatch):
    monkeypatch.setattr("sft_dist.selection.tokenize.CHUNK", 5)  # so that few examples are enough for a pool
    command = [
        "prepare",
        str(built[0] / "my.yaml"),
        f"data.dir={tmp_path}",
        "data.processes=2",
        "data.shard_examples=50",
    ]
    assert main(command) == 0
    for name in ("main", "asked"):
        one, two = (Store.open(folder / "stores" / name) for folder in (built[0] / "data", tmp_path))
        assert two.info == one.info
        assert two.info["rendered"]["conversations"] == len(two) > 0


def test_a_missing_store_names_the_command(built, tmp_path, capsys):
    folder = built[0]
    assert main(["card", str(folder / "my.yaml"), f"data.dir={tmp_path}/none"]) == 2
    assert "sft-dist prepare" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("instruction", "found"),
    [
        ("Write a short story about a dog.", ("write", "story")),
        ("Given a text, write three short questions about it.", ("write", "question")),
        (
            "In this task, you are given a sentence. Your task is to classify the sentence as positive.",
            ("classify", "sentence"),
        ),
        ("Can you please give me some tips for sleeping?", ("give", "tip")),
        ("Explain why the sky is blue", ("explain", "")),
        ("You are a search engine. Answer slowly.", ("answer", "slowly")),
        ("Write C++ code to sort", ("write", "code")),
        ("What is the capital of France?", None),
        ("The list of an answer", None),
        ("", None),
    ],
)
def test_root_verbs(instruction, found):
    assert verb_and_noun(instruction) == found


def test_singular():
    words = {
        "stories": "story",
        "boxes": "box",
        "glass": "glass",
        "glasses": "glass",
        "lists": "list",
        "analysis": "analysis",
        "bus": "bus",
    }
    assert {w: singular(w) for w in words} == words


def test_texts_without_words_and_single_texts():
    assert distinct(["", "a"], 2) == (0, 0)
    assert nearest_rouge_l(["a"]).tolist() == []
    assert nearest_rouge_l(["", "", "a b", "a c"]).tolist() == [0, 0, 0.5, 0.5]


def test_figures_are_well_formed():
    for svg in (
        rings([("write", "story", 5), ("write", "", 3), ("tell", "joke", 1)]),
        rings([("write", "story", 5)]),
        columns({"a": [1, 2], "b": [0, 0]}, ["x", "<y>"], description="d"),
    ):
        ET.fromstring(svg)
    assert rings([]) == ""


def test_every_reason_of_a_drop_has_words() -> None:
    root = Path(sft_dist.__file__).parent
    code = [
        f.read_text() for stage in ("render", "selection", "holdout") for f in (root / stage).rglob("*.py")
    ]
    given = {r for text in code for r in re.findall(r'Drop\(\s*"([a-z_]+)"', text)}
    assert len(given) > 15
    elsewhere = {"no_prompt", "unreadable"}  # of evaluation; in a line of its own
    assert given - REASONS.keys() == elsewhere
