"""Everything on a dataset card, counted again in plain Python: from records, rejects, selection and stored tokens.

Nothing here uses the card's own code. What the card samples by hash is sampled again by sorting all of it.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pyarrow as pa
import xxhash

from sft_dist.config import RunConfig
from sft_dist.core.records import BadRecord, Example
from sft_dist.core.rng import derive
from sft_dist.filters.language import language_of

COLUMNS = (
    "examples", "tokens", "target_tokens", "drawn_examples", "drawn_tokens", "drawn_target_tokens",
)  # fmt: skip
WIDE = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
Row = dict[str, Any]
Records = Mapping[str, Sequence[Example | BadRecord]]


def lines(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def rejects(data: Path, source: str) -> list[Row]:
    """What is not trained on of a source: while selecting, then while rendering."""
    files = [
        data / "rejects" / f"{source}.jsonl",
        *sorted((data / "rejects").glob(f"{source}-render-*.jsonl")),
    ]
    return [line for file in files for line in lines(file)]


def evaluated(data: Path) -> list[Row]:
    return lines(data / "eval" / "seen.jsonl") + lines(data / "eval" / "heldout.jsonl")


def read_stores(data: Path) -> dict[str, list[Row]]:
    """Every stored example of every source, from the Arrow files and not through the index."""
    out: dict[str, list[Row]] = {}
    for folder in sorted((data / "stores").iterdir()):
        tasks = json.loads((folder / "manifest.json").read_text())["tasks"]
        out[folder.name] = []
        for shard in sorted(folder.glob("shard-*.arrow")):
            with pa.memory_map(str(shard)) as stream:
                for row in pa.ipc.open_stream(stream).read_all().to_pylist():
                    out[folder.name].append(row | {"id": row["id"].hex(), "task": tasks[row["task"]]})
    return out


def kept_examples(
    data: Path, records: Records, stored: Mapping[str, Sequence[Row]]
) -> dict[str, list[Example]]:
    """The record behind each stored example: those that the selection trains on, less those that do not render."""
    out: dict[str, list[Example]] = {}
    for name, rows in stored.items():
        codes = np.load(data / f"selection-{name}.npy").tolist()
        chosen = iter([r for r, c in zip(records[name], codes, strict=True) if c == 0])
        out[name] = [next(r for r in chosen if r.id == row["id"]) for row in rows]
    return out


def first_kept(row: Row, seq_len: int) -> int | None:
    """The first of a row's tokens that are trained; None: no answer fits with a prompt before it.

    The last `seq_len` are, less answers at their beginning that stand behind less than a sixteenth of a row (or than all that
    stands between them and the answer before).
    """
    start, before = max(0, len(row["input_ids"]) - seq_len), 0
    if not start:
        return 0
    for span in row["spans"]:
        end, gap = span["start"] + span["length"], span["start"] - before
        if end > start and gap > 0 and span["start"] - start >= min(gap, seq_len // 16):
            return start
        start, before = max(start, end), end
    return None


def amounts_by(
    rows: Sequence[tuple[str, Row]],
    drawn: Sequence[tuple[str, Row]],
    groups_of: Callable[[str, Row], Sequence[str]],
    seq_len: int,
) -> dict[str, dict[str, int]]:
    """The six figures of each group, example by example; a drawn one what is left from `first_kept` on."""
    out: dict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys(COLUMNS, 0))
    for name, row in rows:
        for group in groups_of(name, row):
            out[group]["examples"] += 1
            out[group]["tokens"] += len(row["input_ids"])
            out[group]["target_tokens"] += sum(s["length"] for s in row["spans"])
    for name, row in drawn:
        first = first_kept(row, seq_len)
        if first is None:
            continue
        for group in groups_of(name, row):
            out[group]["drawn_examples"] += 1
            out[group]["drawn_tokens"] += len(row["input_ids"]) - first
            out[group]["drawn_target_tokens"] += sum(
                p > first for s in row["spans"] for p in range(s["start"], s["start"] + s["length"])
            )
    return dict(out)


def balance(counts: Mapping[str, int]) -> Row:
    total = sum(counts.values())
    shares = {t: n / total for t, n in counts.items()}
    return {
        "effective_tasks": math.exp(-sum(s * math.log(s) for s in shares.values() if s)),
        "largest": max(shares.values()),
        "rare": sorted((t for t, s in shares.items() if s < 0.5 / len(shares)), key=lambda t: (shares[t], t)),
    }


def plain_words(text: str) -> list[str]:
    return re.findall(f"[{WIDE}]|[^\\W{WIDE}]+", unicodedata.normalize("NFKC", text).casefold())


def common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence, a column of the table as the bits of one number (Hyyro 2004)."""
    places: dict[str, int] = defaultdict(int)
    for i, word in enumerate(a):
        places[word] |= 1 << i
    full = (1 << len(a)) - 1
    row = full
    for word in b:
        matched = row & places.get(word, 0)
        row = ((row + matched) | (row - matched)) & full
    return len(a) - row.bit_count()


def nearest(texts: Sequence[str]) -> list[float]:
    """The largest ROUGE-L F1 of each text with any other, over its first 256 words."""
    found = [plain_words(t)[:256] for t in texts]
    bags = [Counter(f) for f in found]
    best = [0.0] * len(found)
    for i, a in enumerate(found):
        for j in range(i):
            total = max(1, len(a) + len(found[j]))
            bound = 2 * min(len(a), len(found[j])) / total
            if bound <= min(best[i], best[j]):
                continue
            bound = 2 * sum(min(n, bags[j][w]) for w, n in bags[i].items()) / total
            if bound <= min(best[i], best[j]):
                continue
            score = 2 * common_subsequence(a, found[j]) / total
            best[i], best[j] = max(best[i], score), max(best[j], score)
    return best


def sampled(keys: Sequence[str], size: int, seed: int) -> list[str]:
    """The keys of the smallest hashes, by rising hash."""
    return sorted(set(keys), key=lambda k: (xxhash.xxh3_64_intdigest(k.encode(), seed=seed), k))[:size]


def diversity(
    kept: Mapping[str, Sequence[Example]], seed: int, verb_of: Callable[[str], tuple[str, str] | None]
) -> Row:
    examples = {e.id: e for members in kept.values() for e in members}
    instructions = {e.instruction for members in kept.values() for e in members}
    verbs = Counter(found for text in instructions if (found := verb_of(text)))
    sample = [examples[i] for i in sampled(list(examples), 2000, derive(seed, "card", "texts"))]
    prompts = [
        e.question or e.input or "\n".join(m.content for m in e.messages if m.role == "user") for e in sample
    ]
    texts = {"prompts": prompts, "answers": [e.output for e in sample]}
    compared = {
        "instructions": sampled(list(instructions), 1000, derive(seed, "card", "instructions")),
        "prompts": prompts[:1000],
    }
    best = {name: nearest(members) for name, members in compared.items()}
    return {
        "instructions": len(instructions),
        "with_verb": verbs.total(),
        "verbs": [[v, n, k] for (v, n), k in sorted(verbs.items(), key=lambda x: (-x[1], x[0]))],
        "sampled": len(sample),
        "distinct": {name: [_grams(members, n) for n in (1, 2, 3)] for name, members in texts.items()},
        "nearest": {
            name: [sum(min(19, int(v * 20 + 1e-9)) == k for v in values) for k in range(20)]
            for name, values in best.items()
        },
        "languages": {
            name: Counter(language_of(t) or "" for t in members[:1000]) for name, members in texts.items()
        },
        "nearest_mean": {name: sum(values) / len(values) for name, values in best.items()},
    }


def _grams(texts: Sequence[str], n: int) -> list[int]:
    grams = [tuple(w[i : i + n]) for w in map(plain_words, texts) for i in range(len(w) - n + 1)]
    return [len(set(grams)), len(grams)]


def task_labels(folders: Sequence[Path]) -> dict[str, Row]:
    """What Natural Instructions files say of their tasks."""
    out = {}
    for file in (f for folder in folders for f in sorted(folder.glob("*.json"))):
        raw = json.loads(file.read_text())
        asked, said = raw.get("Input_language") or [], raw.get("Output_language") or []
        language = asked if asked == said or not said else [f"{' and '.join(asked)} to {' and '.join(said)}"]
        out[file.stem] = {
            "category": (raw.get("Categories") or [None])[0],
            "domains": list(dict.fromkeys(raw.get("Domains") or [])),
            "language": " and ".join(language) or None,
            "license": [text for text in raw.get("Instance License") or [] if text],
        }
    return out


def card_again(
    config: RunConfig,
    records: Records,
    files: Mapping[str, Sequence[Path]],
    drawn: Sequence[tuple[str, int]],
    verb_of: Callable[[str], tuple[str, str] | None],
) -> Row:
    """Everything that card.json must hold, `settings` aside.

    Args:
        config: Of the run; its documents keep their end when they are too long.
        records: What the readers give, source by source.
        files: The files that they read.
        drawn: (source, place in its store) of each document of the epoch, duplicates over sources left out.
        verb_of: The root verb and noun of an instruction.
    """
    data, seq_len = Path(config.data.dir), config.pack.seq_len
    selection = json.loads((data / "selection.json").read_text())
    stored = read_stores(data)
    kept = kept_examples(data, records, stored)
    rows = [(name, row) for name in records for row in stored.get(name, ())]
    picked = [(name, stored[name][place]) for name, place in drawn]
    labels = task_labels(
        [Path(c.path) for c in config.data.sources.values() if c.kind == "natural_instructions"]
    )
    empty = {"category": None, "domains": [], "language": None}

    def groups(kind: str) -> Callable[[str, Row], Sequence[str]]:
        def of(_: str, row: Row) -> Sequence[str]:
            found = labels.get(row["task"], empty)[kind]
            return found if isinstance(found, list) else [found] if found else []

        return of

    def grouped(kind: str) -> Row:
        tasks = Counter(g for t in {row["task"] for _, row in rows} for g in groups(kind)("", {"task": t}))
        found = amounts_by(rows, picked, groups(kind), seq_len)
        return {g: {"tasks": tasks[g], "amount": amount} for g, amount in found.items()}

    by_task = amounts_by(rows, picked, lambda _, row: [row["task"]], seq_len)
    by_source = amounts_by(rows, picked, lambda name, _: [name], seq_len)
    before = balance({t: a["examples"] for t, a in by_task.items()})
    after = balance({t: a["drawn_examples"] for t, a in by_task.items()})
    largest_first = sorted(by_task, key=lambda t: (-by_task[t]["examples"], t))
    never = [t for t in largest_first if not by_task[t]["drawn_examples"]]
    held = set(selection["holdout"]["tasks"])
    read = {
        r.task
        for name in stored
        for r, code in zip(records[name], np.load(data / f"selection-{name}.npy").tolist(), strict=True)
        if isinstance(r, Example) and code != 4
    }
    worn = [t for t in largest_first if by_task[t]["drawn_examples"] > 4 * by_task[t]["examples"]]
    warned = {
        "nothing_kept": sorted(read - held - set(by_task)),
        "never_drawn": never,
        "under_represented": [t for t in after["rare"] if t not in never and t not in worn],
        "repeated": [t for t in worn if t not in after["rare"]],
        "scarce": [t for t in worn if t in after["rare"]],
    }
    everything: Counter[str] = Counter()
    sources = []
    for name, members in records.items():
        reasons = Counter(r["reason"] for r in rejects(data, name))
        unreadable = reasons.pop("unreadable", 0)
        everything += reasons
        codes = Counter(np.load(data / f"selection-{name}.npy").tolist())
        given = config.data.sources[name]
        licenses = sorted({x for f in files[name] for x in labels.get(f.stem, {}).get("license", ())})
        own = sorted({e.license for e in kept.get(name, ()) if e.license})
        origins = Counter(
            o.removeprefix("dataset:")
            for e in kept.get(name, ())
            for o in e.origin
            if o.startswith("dataset:")
        )
        sources.append(
            {
                "name": name,
                "kind": given.kind,
                "license": given.license or ", ".join(licenses or own) or None,
                "files": [[f.name, f.stat().st_size] for f in files[name]],
                "datasets": origins,
                "read": len(members),
                "evaluation": codes[1],
                "unreadable": unreadable,
                "prompts": codes[4],
                "skipped": {r: sum(t.values()) for r, t in selection["sources"][name]["skipped"].items()},
                "dropped": reasons,
                "amount": by_source.get(name, dict.fromkeys(COLUMNS, 0)),
            }
        )
    licensed: dict[str, Counter[str]] = defaultdict(Counter)
    for name, of_source in kept.items():
        stated = config.data.sources[name].license
        for e in of_source:
            of_task = ", ".join(labels.get(e.task, {}).get("license", ()))
            licensed[e.license or stated or of_task][name] += 1
    first_dropped: Row = {}
    for name in records:
        for r in rejects(data, name):
            body = r["record"]
            place = body.get("id") or f"{Path(body['file']).name}, line {body['line']}"
            first_dropped.setdefault(r["reason"], {"source": name, "id": place, "detail": r["detail"]})
    targets = Counter(sum(s["length"] for s in row["spans"]).bit_length() - 1 for _, row in rows)
    lengths = Counter(len(row["input_ids"]).bit_length() - 1 for _, row in rows)
    return {
        "name": config.name,
        "sources": sources,
        "tasks": [
            {
                "name": task,
                "sources": [
                    n for n in stored_order(records, stored) if any(r["task"] == task for r in stored[n])
                ],
                "labels": {k: labels.get(task, empty)[k] for k in empty},
                "amount": by_task[task],
            }
            for task in largest_first
        ],
        "answer_lengths": {str(k): targets[k] for k in range(min(targets), max(targets) + 1)},
        "turns": Counter(
            str(sum(m.role == "assistant" for m in e.messages))
            for of_source in kept.values()
            for e in of_source
        ),
        "first_dropped": first_dropped,
        "lengths": {str(k): lengths[k] for k in range(min(lengths), max(lengths) + 1)},
        "total": {c: sum(a[c] for a in by_task.values()) for c in COLUMNS},
        "before": before,
        "after": after,
        "warnings": {kind: names for kind, names in warned.items() if names},
        "across_sources": across_sources(config, stored),
        "not_trained": {
            "truncated": sum(
                len(row["input_ids"]) > seq_len and first_kept(row, seq_len) is not None for _, row in picked
            ),
            **(
                {"answer_exceeds_row": n}
                if (n := sum(first_kept(row, seq_len) is None for _, row in picked))
                else {}
            ),
        },
        "diversity": diversity(kept, config.seed, verb_of),
        "samples": {
            name: [
                json.loads(json.dumps(asdict(next(e for e in members if e.id == i))))
                for i in sampled([e.id for e in members], 4, derive(config.seed, "card", "samples", name))
            ]
            for name, members in kept.items()
        },
        "contaminated": selection["contaminated"],
        "licenses": licensed,
        "id_files": selection.get("id_files", {}),
        "evaluation": {
            name: [len({e["task"] for e in members}), len(members)]
            for name in ("seen", "heldout")
            if (members := lines(data / "eval" / f"{name}.jsonl"))
        },
        "held_out": sorted(selection["holdout"]["tasks"]),
        "dropped": everything,
        "categories": grouped("category"),
        "domains": grouped("domains"),
        "languages": grouped("language"),
    }


def stored_order(records: Records, stored: Mapping[str, Any]) -> list[str]:
    return [name for name in records if name in stored]


def across_sources(config: RunConfig, stored: Mapping[str, Sequence[Row]]) -> int:
    """Stored examples whose tokens an earlier source of the config holds. With `take` one would have to know what is taken."""
    seen: set[str] = set()
    found = 0
    for name in config.data.sources:
        said = [json.dumps([row["input_ids"], row["spans"]]) for row in stored.get(name, ())]
        found += sum(s in seen for s in said)
        seen |= set(said)
    return found


def markdown_tables(text: str) -> dict[str, list[list[str]]]:
    """The tables of README.md by their first head: their rows, as texts."""
    out: dict[str, list[list[str]]] = {}
    for block in text.split("\n\n"):
        if block.startswith("| "):
            cells = [[c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]] for line in block.split("\n")]
            out[cells[0][0]] = [cells[0], *cells[2:]]
    return out


def html_tables(page: str) -> dict[str, list[list[tuple[str, float | None]]]]:
    """The tables of card.html by their first head: rows of (text, the value that it is sorted by)."""
    tree = ET.fromstring(page.removeprefix("<!doctype html>\n").split("<script>")[0] + "</body></html>")
    out = {}
    for table in tree.iter("table"):
        heads = [("".join(th.itertext()), None) for th in table.iter("th")]
        rows = [
            [("".join(td.itertext()), float(v) if (v := td.get("data-v")) else None) for td in tr.iter("td")]
            for tr in table.iter("tr")
        ]
        out[heads[0][0]] = [heads, *(r for r in rows if r)]
    return out
