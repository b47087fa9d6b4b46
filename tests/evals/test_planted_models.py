"""Three small transformers that were trained to learn, to ignore their instruction and to memorise: the probes tell them apart."""

from __future__ import annotations

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from sft_dist.core.records import Tokens, single_turn
from sft_dist.evals.extraction import collect_continuations, continuation_part
from sft_dist.evals.loss import answer_losses
from sft_dist.evals.probe_material import Answers, Material
from sft_dist.evals.probes import asked_of, judge_probes
from sft_dist.evals.splits import AnswerLoss
from sft_dist.render.renderer import Renderer
from sft_dist.render.tokenizer import train_tokenizer

CLASSES = {
    "animal": "cat dog cow hen fox owl pig bee ant rat",
    "colour": "red blue pink gold grey green black white brown beige",
    "tool": "saw axe drill file nail rake spade wrench chisel hammer",
    "food": "rice soup cake bread plum pear bean corn fig salad",
    "metal": "iron zinc lead tin copper silver nickel steel cobalt brass",
    "place": "town lake hill farm port cave moor field beach wood",
    "garb": "hat coat sock shoe belt scarf glove shirt vest skirt",
    "plant": "oak elm fern moss rose lily palm reed thorn ivy",
    "body": "arm leg ear nose chin heel hand knee neck thumb",
    "craft": "boat ship raft kite bike cart train plane sled tram",
    "shape": "cube cone ball ring star square circle wedge arc disc",
    "sound": "hum buzz clap roar hiss click beep bang moan chirp",
}
NAMES = list(CLASSES)
WORDS = {name: words.split() for name, words in CLASSES.items()}


def instruction(name):
    return f"Name the {name}."


def records(number, seed):
    """Yield (class that is asked for, input of four words, answer), every input once."""
    rng = random.Random(seed)
    out = {}
    while len(out) < number:
        classes = rng.sample(NAMES, 4)
        words = [rng.choice(WORDS[c]) for c in classes]
        out[" ".join(words)] = (classes[0], words[0], rng.sample(words, 4))
    return [(c, " ".join(order), answer) for c, answer, order in out.values()]


def example(name, given, answer, asked=None):
    return single_turn(
        task=name, source="planted", instruction=instruction(asked or name), input=given, output=answer
    )


def trained(renderer, examples, *, steps, seed=0):
    """A Llama of two layers, trained on answers only."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=renderer.tokenizer.vocab_size, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=64, tie_word_embeddings=True, pad_token_id=0, initializer_range=0.06,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    documents = renderer.render(examples)
    width = max(len(d.ids) for d in documents)
    ids = torch.zeros((len(documents), width), dtype=torch.long)
    labels = torch.full_like(ids, -100)
    for row, d in enumerate(documents):
        ids[row, : len(d.ids)] = torch.from_numpy(np.asarray(d.ids, dtype=np.int64))
        for s in d.spans:
            labels[row, s.start : s.start + s.length] = ids[row, s.start : s.start + s.length]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    rng = np.random.default_rng(seed)
    size = min(64, len(documents))
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1.0, (step + 1) / 20, (steps - step) / (0.3 * steps))
        picked = torch.from_numpy(rng.choice(len(documents), size, replace=False))
        model(input_ids=ids[picked], labels=labels[picked]).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def probed(renderer, model, trained_on, unseen):
    """Judge the forward-only probes of a model as evaluation does."""
    by_task = {}
    for e in trained_on:
        by_task.setdefault(e.task, []).append(e)
    material = Material(
        sets={"seen": unseen},
        trained={t: es[:8] for t, es in by_task.items()},
        families={n: n for n in NAMES},
    )
    variants, asked = asked_of(("instruction", "memorisation"), material)
    wanted = list({e.id: e for e in [*unseen, *asked["loss"]]}.values())
    rendered = renderer.render(wanted)
    assert all(isinstance(r, Tokens) for r in rendered)
    losses = {
        e.id: AnswerLoss(id=e.id, nats=n, tokens=sum(s.length for s in r.spans))
        for e, (n, _), r in zip(wanted, answer_losses(model, rendered), rendered, strict=True)
    }
    return judge_probes(variants, material, Answers(generations={}, losses=losses), None)


@pytest.fixture(scope="module")
def found():
    torch.set_num_threads(1)
    tokenizer = train_tokenizer([" ".join([instruction(n), CLASSES[n]]) for n in NAMES] * 3, 600)
    renderer = Renderer(tokenizer, template="chatml")
    data = records(3000, seed=1)
    unseen = [example(*r) for n in NAMES for r in [r for r in data[2500:] if r[0] == n][:8]]
    right = [example(*r) for r in data[:2500]]
    rng = random.Random(2)
    # the instruction says nothing of the answer; the task stays that of the answer
    shuffled = [example(name, given, answer, asked=rng.choice(NAMES)) for name, given, answer in data[:2500]]
    few = right[:50]
    return SimpleNamespace(
        normal=probed(renderer, trained(renderer, right, steps=300), right, unseen),
        shuffled=probed(renderer, trained(renderer, shuffled, steps=300), shuffled, unseen),
        memorised=probed(renderer, trained(renderer, few, steps=200), few, unseen),  # 50 examples, 200 epochs
    )


def prefers(result):
    return result["instruction"]["sets"]["seen"]["model"]["prefers_right"]


@pytest.mark.slow
def test_a_model_that_ignores_its_instruction_is_told_from_one_that_reads_it(found):
    normal, shuffled = prefers(found.normal), prefers(found.shuffled)
    assert normal["mean"] > 0.9
    assert shuffled["low"] < 0.5 < shuffled["high"]
    assert shuffled["high"] < normal["low"]
    assert len(found.normal["instruction"]["ignored"]) <= 1
    assert len(found.shuffled["instruction"]["ignored"]) >= 10


@pytest.mark.slow
def test_a_model_that_knows_its_examples_by_heart_is_told_from_one_that_learnt_the_task(found):
    gap = {name: getattr(found, name)["memorisation"]["gap"]["model"] for name in ("normal", "memorised")}
    assert gap["normal"]["high"] < 1 < gap["memorised"]["low"]
    assert "more likely than unseen ones" in found.memorised["memorisation"]["sentence"]


@pytest.mark.slow
def test_answers_known_by_heart_are_gone_on_with_and_those_of_one_that_saw_them_briefly_are_not(tmp_path):
    """48 answers of random words: nothing but memory gives their second half. Both models are trained transformers."""
    torch.set_num_threads(1)
    tokenizer = train_tokenizer([" ".join([instruction(n), CLASSES[n]]) for n in NAMES] * 3, 600)
    renderer = Renderer(tokenizer, template="chatml")
    rng = random.Random(3)
    every = [w for words in WORDS.values() for w in words]

    def made_up(number):
        return [
            example(n, " ".join(rng.sample(every, 4)), " ".join(rng.sample(every, 7)))
            for n in NAMES
            for _ in range(number)
        ]

    known, unseen = made_up(4), made_up(4)
    by_task = {}
    for e in known:
        by_task.setdefault(e.task, []).append(e)
    material = Material(sets={"seen": unseen}, trained=by_task)
    variants, asked = asked_of(("extraction", "shift"), material)

    def answered(name, model):
        continuation_part(model, asked["continue"], renderer, tmp_path / name, batch_size=48)
        rendered = renderer.render(unseen)
        losses = {
            e.id: AnswerLoss(
                id=e.id, nats=n, tokens=sum(s.length for s in r.spans), top=tuple(map(tuple, top))
            )
            for e, (n, top), r in zip(unseen, answer_losses(model, rendered), rendered, strict=True)
        }
        said = collect_continuations(tmp_path / name, asked["continue"])
        return Answers(generations={}, losses=losses, continuations=said)

    heart = answered("heart", trained(renderer, known, steps=200))
    brief = answered("brief", trained(renderer, known, steps=6))
    found = judge_probes(variants, material, heart, brief)
    own = found["extraction"]
    assert own["model"]["trained"]["mean"] == 1.0
    assert own["model"]["unseen"]["mean"] == own["base"]["trained"]["mean"] == 0.0
    assert own["difference"]["low"] > 0.8
    assert (
        found["shift"]["sets"]["seen"]["lower"]["low"] > 0.2
    )  # it says what it knows, which the other never ranks high
    same = judge_probes(variants, material, brief, brief)
    assert same["extraction"]["difference"]["difference"] == 0.0
    assert same["shift"]["sets"]["seen"]["first"]["mean"] == 1.0
