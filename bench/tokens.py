"""Preparation, measured: chats -> ids and masks -> a packed plan; ours, bare `encode_batch`, and TRL, alternating.

    python bench/tokens.py                                              # synthetic chats, a tokenizer trained on them
    python bench/tokens.py --data chats.jsonl --tokenizer FOLDER        # real ones: {"messages": [...]} a line

TRL is measured where it can be imported. Prints one JSON object; seconds are CPU seconds of one core, the median of
`--rounds`. `bare` joins the ChatML text by hand and encodes it in one call a thousand: ids, no mask, nothing written. `render`
makes ids and spans and proves them. `ours` reads, renders, writes the store and plans the first epoch. `trl` is what
SFTTrainer does with the same chats before its first step. Ids and labels of ours and TRL are compared one by one.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one core for every side
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

BATCH = 1000
SEQ_LEN = 2048
# ChatML as the built-in template writes it, with the marks from which TRL takes its mask
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}"
    "{% else %}{{ m.content + '<|im_end|>\\n' }}{% endif %}{% endfor %}"
)


def synthetic(n):
    """n chats of one to three rounds, lengths log-normal with a mean near 200 tokens, words Zipf-like."""
    draw = np.random.default_rng(0)
    syllables = [a + b for a in "bcdfghklmnprstvz" for b in "aeiou"]
    words = np.array(["".join(draw.choice(syllables, draw.integers(1, 4))) for _ in range(20_000)])

    def text(mean):
        count = max(1, int(draw.lognormal(np.log(mean) - 0.4, 0.9)))
        return " ".join(words[(20_000 * draw.random(count) ** 3).astype(int)]) + "."

    return [
        [
            {"role": role, "content": text(mean)}
            for _ in range(draw.integers(1, 4))
            for role, mean in (("user", 30), ("assistant", 40))
        ]
        for _ in range(n)
    ]


def read_chats(path, n):
    """Chats of a JSON-lines file of messages, or of alpaca records."""
    chats = []
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            record = json.loads(line)
            if "messages" in record:
                chats.append([{k: m[k] for k in ("role", "content")} for m in record["messages"]])
            else:
                asked = "\n\n".join(filter(None, (record["instruction"], record.get("input"))))
                chats.append(
                    [
                        {"role": "user", "content": asked},
                        {"role": "assistant", "content": record["output"]},
                    ]
                )
            if len(chats) == n:
                break
    return [[m | {"content": m["content"].strip()} for m in c] for c in chats]


def bare(chats, tokenizer):
    """Hand-written text, one encode call a thousand."""
    backend, ids = tokenizer.variant(), []
    for a in range(0, len(chats), BATCH):
        texts = [
            "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in chat)
            for chat in chats[a : a + BATCH]
        ]
        ids += [e.ids for e in backend.encode_batch_fast(texts, add_special_tokens=False)]
    return ids


def examples_of(chats):
    """Chats as the records that the renderer takes."""
    from sft_dist.core.records import Message, make_example

    return [make_example(task="t", source="s", messages=tuple(Message(**m) for m in chat)) for chat in chats]


def render(examples, renderer):
    """Chats already read -> ids and spans, verified; nothing is kept."""
    for a in range(0, len(examples), BATCH):
        renderer.render(examples[a : a + BATCH])


def ours(chats, renderer, folder):
    """Read, render, verify, write a store, plan an epoch; return the store."""
    from sft_dist.batch.planner import Planner
    from sft_dist.core.records import Drop
    from sft_dist.mix import Corpus
    from sft_dist.pack import CostModel
    from sft_dist.shards import ShardWriter, Store, finish_store

    key = {"bench": "tokens"}
    with ShardWriter(folder, 0, "int32", key=key) as writer:
        for a in range(0, len(chats), BATCH):
            examples = examples_of(chats[a : a + BATCH])
            for example, tokens in zip(examples, renderer.render(examples), strict=True):
                if not isinstance(tokens, Drop):
                    writer.add(example.id, 0, 0, tokens)
        writer.close()
    finish_store(folder, key=key, tasks=["t"], sources=["s"])
    store = Store.open(folder)
    cost = CostModel.of_shape(
        hidden_size=512, layers=4, attention_size=512, kv_size=512, intermediate_size=1024, vocab_size=32_000
    )
    planner = Planner(Corpus({"s": store}), seq_len=SEQ_LEN, rows_per_step=8, world_size=1, cost=cost, seed=0)
    planner.epoch(0)
    return store


class Trl:
    """TRL's own preparation, of a trainer around a model as small as can be."""

    def __init__(self, tokenizer_folder):
        import datasets
        import transformers
        import trl

        datasets.disable_progress_bars()
        datasets.disable_caching()
        transformers.utils.logging.set_verbosity_error()
        self._datasets = datasets
        self.version = trl.__version__
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(tokenizer_folder)
        self._tokenizer.chat_template = CHATML
        shape = transformers.LlamaConfig(
            vocab_size=len(self._tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1,
            num_attention_heads=1,
        )  # fmt: skip
        self._scratch = tempfile.TemporaryDirectory()
        self._options = trl.SFTConfig(
            output_dir=self._scratch.name, packing=True, assistant_only_loss=True, max_length=SEQ_LEN,
            use_cpu=True, report_to=[], eos_token="<|im_end|>",
        )  # fmt: skip
        one = datasets.Dataset.from_list(
            [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}]
        )
        self._trainer = trl.SFTTrainer(
            model=transformers.LlamaForCausalLM(shape), args=self._options, train_dataset=one,
            processing_class=self._tokenizer,
        )  # fmt: skip

    def prepare(self, chats, *, packing=True):
        """What SFTTrainer makes of the chats before it trains."""
        raw = self._datasets.Dataset.from_list([{"messages": chat} for chat in chats])
        return self._trainer._prepare_dataset(raw, self._tokenizer, self._options, packing, None, "train")  # noqa: SLF001  what is measured


def differences(store, prepared):
    """Examples of which ids or labels differ (TRL has cut them at a row's length)."""
    differ = 0
    for i, theirs in enumerate(prepared):
        tokens = store.read(i)
        labels = np.full(len(tokens.ids), -100)
        for span in tokens.spans:
            trained = slice(span.start, span.start + span.length)
            labels[trained] = tokens.ids[trained]
        ours = (tokens.ids[:SEQ_LEN].tolist(), labels[:SEQ_LEN].tolist())
        differ += ours != (theirs["input_ids"], theirs["labels"])
    return differ


def cpu_seconds(work):
    start = time.process_time()
    work()
    return time.process_time() - start


def ratio(ones, others):
    """Median of the rounds' ratios."""
    return round(statistics.median(a / b for a, b in zip(ones, others, strict=True)), 3)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="JSON lines of messages or of alpaca records")
    parser.add_argument("--tokenizer", help="folder; with --data")
    parser.add_argument("--examples", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-trl", action="store_true", help="leave TRL out")
    options = parser.parse_args()

    from sft_dist.render.renderer import Renderer
    from sft_dist.render.tokenizer import TextTokenizer, train_tokenizer

    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        chats = read_chats(options.data, options.examples) if options.data else synthetic(options.examples)
        folder = options.tokenizer
        if folder is None:
            folder = str(work / "tokenizer")
            train_tokenizer((m["content"] for c in chats for m in c), 8192).save(Path(folder))
        tokenizer = TextTokenizer.load(folder)
        renderer = Renderer(tokenizer, template="chatml")
        saved = work / "saved"
        renderer.save_tokenizer(saved)
        ours(chats[:BATCH], renderer, work / "warm-up")
        examples = examples_of(chats)
        sides = {
            "bare": lambda _: bare(chats, tokenizer),
            "render": lambda _: render(examples, Renderer(tokenizer, template="chatml")),
            "ours": lambda r: ours(chats, Renderer(tokenizer, template="chatml"), work / f"store-{r}"),
        }
        trl = None
        if not options.no_trl:
            try:
                trl = Trl(str(saved))
                sides["trl"] = lambda _: trl.prepare(chats)
            except ImportError:
                pass
        seconds = {name: [] for name in sides}
        for r in range(options.rounds):
            for name, side in sides.items():
                seconds[name].append(cpu_seconds(lambda side=side, r=r: side(r)))
        store = ours(chats, renderer, work / "compared")
        result = {
            "examples": len(chats),
            "tokens": store.n_tokens,
            "examples_per_cpu_s": {n: round(len(chats) / statistics.median(s)) for n, s in seconds.items()},
            "render_over_bare": ratio(seconds["render"], seconds["bare"]),
            "ours_over_bare": ratio(seconds["ours"], seconds["bare"]),
        }
        if trl is not None:
            few = min(2000, len(chats))
            result["trl"] = trl.version
            result["trl_over_ours"] = ratio(seconds["trl"], seconds["ours"])
            result["compared"] = few
            result["ids_or_masks_that_differ"] = differences(store, trl.prepare(chats[:few], packing=False))
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
