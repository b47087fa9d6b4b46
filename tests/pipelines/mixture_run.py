"""One config over real collections, built once for the tests that look at it: construct, prepare, check, card.

The teacher is a scripted server on loopback; everything else is the real thing. About 1 minute of one core.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from card_again import read_stores
from scripted_server import ScriptedServer, prompt_of
from scripted_teacher import teach

from sft_dist.cli import main
from sft_dist.config import RunConfig
from sft_dist.config.load import load_config
from sft_dist.core.records import BadRecord, Example
from sft_dist.mix import draw
from sft_dist.pipelines.train.planning import mixture_of, open_corpus
from sft_dist.sources import open_source

EPOCH = 4000  # examples
SEQ_LEN = 512
# what SOURCES.md of the collection says is broken: (file, line)
DAMAGED = [
    ("data_v2_user_2.jsonl", 134),
    ("data_v2_user_2.jsonl", 168),
    ("data_v2_user_3.jsonl", 10),
    ("data_v2_user_3.jsonl", 121),
    ("data_v2_user_3.jsonl", 122),
]
HELD_SEED = "breakfast_suggestion"
HELD_TEMPLATE = "super_glue/copa/choose"
KEEP_TOP, MAX_IFD = 0.95, 1.0
V1_TASK = "task105_story_cloze-rocstories_sentence_generation"


def lay_out(real: Path, root: Path) -> None:
    """The folder that the shipped config expects: the collection, a task file as v1 writes it, a part of alpaca."""
    for folder in real.iterdir():
        if folder.name != "alpaca-style":
            (root / folder.name).symlink_to(folder)
    alpaca = (real / "alpaca-style" / "alpaca_permissive.jsonl").read_text().splitlines(keepends=True)
    part = [text for i, text in enumerate(alpaca) if i % 4 == 0 or '"flan-cot-strategyqa' in text]
    (root / "alpaca-style").mkdir()
    (root / "alpaca-style" / "alpaca_permissive.jsonl").write_text("".join(part))
    task = json.loads((real / "natural-instructions" / "tasks" / f"{V1_TASK}.json").read_text())
    # One of the demonstrations tells a story that another task's evaluation asks about: every record would leak it.
    shown = [e for e in task["Positive Examples"] if "Rick" not in e["input"]]
    older = {
        "Title": "Writing a story's ending", "Prompt": "Write the last sentence.", "Things to Avoid": "-",
        "Emphasis & Caution": "-", "Definition": task["Definition"][0], "Source": task["Source"],
        "Examples": {"Positive Examples": shown, "Negative Examples": task["Negative Examples"]},
        "Instances": [{"input": f"Once more: {i['input']}", "output": i["output"]} for i in task["Instances"][:40]],
    }  # fmt: skip
    (root / "natural-instructions-v1").mkdir()
    (root / "natural-instructions-v1" / "subtask105_ending.json").write_text(json.dumps(older, indent=1))


def overrides(real: Path, root: Path, data: Path, url: str) -> list[str]:
    """What differs from the shipped config: places, sizes, a model from scratch."""
    shape = f"hidden_size: 32, intermediate_size: 64, layers: 1, heads: 2, max_position_embeddings: {SEQ_LEN}"
    sets = [
        f"construct.sets.{n}.{x}" for n in ("grown", "imagined") for x in ("count=12", "round_requests=2")
    ]
    return [
        "experiment=mixture", f"data.root={root}", f"data.dir={data}", "data.processes=1",
        "data.sources.ni.max_per_task=8", "data.holdout.max_eval_per_task=20",
        f"data.holdout.tasks=[strategyqa_train*,{HELD_TEMPLATE},{HELD_SEED}]",
        f"construct.teacher.url={url}", "construct.teacher.backoff_s=0.01", *sets,
        f"mix.epoch_examples={EPOCH}", f"pack.seq_len={SEQ_LEN}", "train.tokens_per_step=8192",
        "model.path=null", f"model.tokenizer={real}/tokenizers/dolma2/tokenizer.json", f"model.shape={{{shape}}}",
    ]  # fmt: skip


def score_of(example_id: str) -> float:
    """A made-up difficulty from 0 to 1.02: what takes a base model is tested elsewhere (test_score.py)."""
    return 1.02 * random.Random(example_id).random()


def write_scores(config: RunConfig, folder: Path) -> None:
    """A score file a source, for every record: the filter must look up its own."""
    folder.mkdir()
    for name, records in read_again(config).items():
        with (folder / f"{name}.jsonl").open("w") as out:
            for r in records:
                if isinstance(r, Example):
                    out.write(json.dumps({"id": r.id, "task": r.task, "ifd": score_of(r.id)}) + "\n")


def build(shared_data: Path, folder: Path) -> SimpleNamespace:
    """The commands, once: what they said, where everything lies, what the teacher was asked."""
    root, data, scores = folder / "raw", folder / "data", folder / "scores"
    root.mkdir()
    lay_out(shared_data, root)
    with ScriptedServer(answer=teach) as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_API_KEY", "none")
        words = overrides(shared_data, root, data, server.url)
        assert main(["construct", *words]) == 0
        write_scores(load_config(words), scores)
        words.append(f"data.filters.scores={{ifd: {{file: {scores}, keep_top: {KEEP_TOP}, max: {MAX_IFD}}}}}")
        for command in ("prepare", "check", "card"):
            assert main([command, *words]) == 0, command
        asked = [prompt_of(seen.body) for seen in server.seen]
    config = load_config(words)
    return SimpleNamespace(
        real=shared_data,
        root=root,
        data=data,
        words=words,
        config=config,
        card=json.loads((data / "card" / "card.json").read_text()),
        page=(data / "card" / "card.html").read_text(),
        readme=(data / "card" / "README.md").read_text(),
        selection=json.loads((data / "selection.json").read_text()),
        asked=asked,
        records=read_again(config),
        stored=read_stores(data),
    )


def read_again(config: RunConfig) -> dict[str, list[Example | BadRecord]]:
    """Every record of every source, straight from the readers."""
    return {name: list(open_source(name, source)) for name, source in config.data.sources.items()}


def target_tokens(row: dict[str, Any]) -> int:
    return sum(span["length"] for span in row["spans"])


def drawn(mixture: SimpleNamespace) -> list[tuple[str, int]]:
    """(source, place in its store) of each document of the first epoch."""
    corpus = open_corpus(
        {n: mixture.data / "stores" / n for n in mixture.config.data.sources if n in mixture.stored}
    )
    docs = draw(corpus, mixture_of(mixture.config, corpus), seed=mixture.config.seed, epoch=0)
    names = [corpus.source_names[s] for s in corpus.source_of[docs].tolist()]
    return [
        (n, d - corpus.first[corpus.source_names.index(n)]) for n, d in zip(names, docs.tolist(), strict=True)
    ]
