"""The card of a mixture of real collections: every number of it, in its three forms, counted by other code."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
from card_again import card_again, evaluated, html_tables, lines, markdown_tables, plain_words, rejects
from mixture_run import drawn

from sft_dist.core.records import Example
from sft_dist.core.verbs import verb_and_noun
from sft_dist.report.card.wording import REASONS
from sft_dist.sources import open_source

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def again(mixture: SimpleNamespace) -> dict[str, Any]:
    """The whole card, counted by other code."""
    files = {n: open_source(n, c).files() for n, c in mixture.config.data.sources.items()}
    return card_again(mixture.config, mixture.records, files, drawn(mixture), verb_and_noun)


def test_every_number_of_the_card_is_counted_again(mixture, again):
    card = dict(mixture.card)
    for key, value in card.pop("settings").items():
        found: Any = mixture.config.model_dump(mode="json")
        for part in key.split("."):
            found = found[part]
        assert found == value, key
    for source in card["sources"]:
        rendered = source.pop("rendered")
        rows = mixture.stored.get(source["name"], [])
        refused = sum(
            len(lines(f)) for f in (mixture.data / "rejects").glob(f"{source['name']}-render-*.jsonl")
        )
        assert rendered.get("conversations", 0) == len(rows) + refused, source["name"]
        if not refused:
            assert rendered.get("answers", 0) == sum(len(row["spans"]) for row in rows), source["name"]
    assert set(card) == set(again)
    for key in again:
        assert close(card[key], again[key]), key


def close(found: Any, expected: Any) -> bool:
    """Equality, of floats within rounding."""
    if isinstance(expected, dict):
        return set(found) == set(expected) and all(close(found[k], v) for k, v in expected.items())
    if isinstance(expected, list | tuple):
        return len(found) == len(expected) and all(map(close, found, expected))
    return found == pytest.approx(expected) if isinstance(expected, float) else found == expected


def test_what_is_said_to_be_contaminated_is(mixture):
    """Each finding: the words it shows stand in both, and its training examples are among the rejects."""
    found = {c["id"]: c for c in mixture.card["contaminated"]}
    examples = {e["id"]: e for e in evaluated(mixture.data)}
    named: Counter[str] = Counter()
    for name in mixture.records:
        for r in rejects(mixture.data, name):
            if r["reason"] == "leakage":
                named[r["detail"].split("evaluation example ")[1].split()[0]] += 1
    assert named
    assert set(named) <= set(found)
    for i, finding in found.items():
        assert finding["examples"] >= named[i]
        assert finding["coverage"] >= mixture.config.data.filters.leakage.coverage
        assert finding["task"] == examples[i]["task"]
        trained = next(
            r
            for r in mixture.records[finding["source"]]
            if isinstance(r, Example) and r.id == finding["example"]
        )
        asked = [m["content"] for m in examples[i]["messages"]] + examples[i].get("references", [])
        learnt = [m.content for m in trained.messages] + list(trained.references)
        for texts in (asked, learnt):
            assert any(finding["span"] in " ".join(plain_words(t)) for t in texts), finding


def test_the_readme_prints_the_numbers(mixture, again):
    tables = markdown_tables(mixture.readme)
    total = again["total"]

    def shares(a: dict[str, int]) -> list[str]:
        return [percent(a[k], total[k]) for k in ("examples", "drawn_examples")]

    kept = {s["name"]: s["amount"]["examples"] for s in again["sources"]}
    names = list(kept)
    reasons = {f"`{r}`": n for r, n in again["dropped"].items()}
    left_out = {row[0].split(":")[0]: row[1:] for row in tables[""][1:]}
    assert left_out["**kept**"] == [*(f"{kept[n]:,}" for n in names), f"{sum(kept.values()):,}"]
    for reason, n in reasons.items():
        each = [s["dropped"].get(reason.strip("`"), 0) for s in again["sources"]]
        assert left_out[reason] == [*(f"{k:,}" for k in each), f"{n:,}"]
    for label, key in (
        ("records", "read"),
        ("evaluated instead", "evaluation"),
        ("unreadable", "unreadable"),
    ):
        each = [s[key] for s in again["sources"]]
        assert left_out[label] == [f"{k:,}" for k in [*each, sum(each)]]
    rendered = tables["source"]  # the last table of that name: what the renderer counted
    assert [r[0].replace("\\", "") for r in rendered[1:]] == names
    for kind in ("category", "domain", "language"):
        groups = again[{"category": "categories", "domain": "domains", "language": "languages"}[kind]]
        assert {r[0]: r[1:] for r in tables[kind][1:]} == {
            g: [
                f"{x['tasks']:,}",
                f"{x['amount']['examples']:,}",
                f"{x['amount']['tokens']:,}",
                *shares(x["amount"]),
            ]
            for g, x in groups.items()
        }
    for row, t in zip(tables["task"][1:], again["tasks"], strict=False):
        a = t["amount"]
        assert row[0].replace("\\", "") == t["name"]
        assert row[2:] == [
            *(f"{a[k]:,}" for k in ("examples", "tokens", "target_tokens")),
            *shares(a),
            f"{a['drawn_examples'] / a['examples']:.2f}",
        ]
    d = again["diversity"]
    assert [[r[0], r[1].replace("\u2013", ""), r[2]] for r in tables["root verb"][1:]] == [
        [v, n, f"{k:,}"] for v, n, k in d["verbs"][:20]
    ]
    assert {r[0]: r[1:] for r in tables[f"of {d['sampled']:,} examples"][1:]} == {
        name: [f"{percent(k, n)} of {n:,}" for k, n in grams] for name, grams in d["distinct"].items()
    }
    histogram = {r[0]: r[1:] for r in tables["ROUGE-L with the nearest other"][1:]}
    assert histogram.pop("mean") == [f"{m:.3f}" for m in d["nearest_mean"].values()]
    assert histogram == {
        f"{k / 20:.2f} to {(k + 1) / 20:.2f}": [f"{v[k]:,}" for v in d["nearest"].values()]
        for k in range(20)
        if any(v[k] for v in d["nearest"].values())
    }
    for sentence in (
        f"{total['examples']:,} training examples of {len(again['tasks']):,} tasks from {len(names)} sources",
        f"{total['tokens']:,} tokens, of which {total['target_tokens']:,} ({percent(total['target_tokens'], total['tokens'])})",
        f"trains on {total['drawn_examples']:,} examples, {total['drawn_tokens']:,} tokens",
        f"as even as {again['before']['effective_tasks']:.1f} equal tasks",
        f"as even as {again['after']['effective_tasks']:.1f} equal tasks",
        f"{len(again['after']['rare'])} tasks have less than 50 %",
        f"truncated {again['not_trained']['truncated']:,}",
        f"{len(again['contaminated'])} evaluation examples were found",
        *(f"{k:,} of {t:,} tasks" for t, k in again["evaluation"].values()),
        *(f"{len(names):,} task" for names in again["warnings"].values()),
    ):
        assert sentence in mixture.readme


def percent(part: float, whole: float) -> str:
    return f"{100 * (part / whole):.1f} %"


def test_the_page_prints_the_numbers(mixture, again):
    """Every table cell that holds a figure, by the value that it is sorted by (six digits)."""
    tables, total = html_tables(mixture.page), again["total"]

    def row(part: dict[str, int]) -> list[float]:
        return [
            part["examples"],
            part["tokens"],
            part["examples"] / total["examples"],
            part["drawn_examples"] / total["drawn_examples"],
            part["drawn_examples"] / max(1, part["examples"]),
        ]

    def figures(name: str, skipped: tuple[int, ...] = ()) -> dict[str, list[float]]:
        return {
            r[0][0]: [v for i, (_, v) in enumerate(r) if v is not None and i not in skipped]
            for r in tables[name][1:]
        }

    for kind, key in (("category", "categories"), ("domain", "domains"), ("language", "languages")):
        expected = {g: [x["tasks"], *row(x["amount"])] for g, x in again[key].items()}
        assert figures(kind) == {g: pytest.approx(v, rel=1e-5) for g, v in expected.items()}
    found = figures("task", skipped=(8,))
    for t in again["tasks"]:
        a = t["amount"]
        expected = row(a)
        expected.insert(2, a["target_tokens"])
        rare = " rare" if t["name"] in again["after"]["rare"] else ""
        assert found[t["name"] + rare] == pytest.approx(expected, rel=1e-5), t["name"]
    rows = tables["reason"][1:-1]  # a first cell names the first record of its reason, too
    left_out = {r[0][0].partition("first: ")[0]: [v for _, v in r[2:]] for r in rows}
    for reason, n in again["dropped"].items():
        each = [s["dropped"].get(reason, 0) for s in again["sources"]]
        assert left_out[reason.replace("_", " ") + REASONS[reason]] == [n, *each]
    verbs = {(r[0][0], r[1][0].replace("\u2013", "")): r[2][1] for r in tables["root verb"][1:]}
    assert verbs == {(v, n): k for v, n, k in again["diversity"]["verbs"][:400]}


def test_the_pages_show_every_source_and_reason(mixture):
    for shown in (mixture.page.replace("<wbr/>", ""), mixture.readme):
        assert all(name in shown for name in mixture.config.data.sources)
        assert all(REASONS[reason] in shown for reason in mixture.card["dropped"])
        assert "MIT and Apache-2.0" in shown
