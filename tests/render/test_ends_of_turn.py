"""A tiny model, overfitted on turns that end in several ways, ends each of them by itself: exported, served and evaluated."""

from __future__ import annotations

import json

import pytest
import template_table

from sft_dist.core.records import make_example

torch = pytest.importorskip("torch")
SHAPES = ("thoughts, call, result, answer", "thoughts")  # no prompt with two answers
NAMES = ("gpt_oss", "glm")
STEPS = 250


def overfitted(documents, vocabulary, folder):
    """Train a tiny Llama on the documents, loss on their spans alone, and save it as a base."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    size = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(
        vocab_size=vocabulary, max_position_embeddings=1024, bos_token_id=None, eos_token_id=0, **size
    )
    model = LlamaForCausalLM(config)
    longest = max(len(d.ids) for d in documents)
    ids, labels = (
        torch.zeros(len(documents), longest, dtype=torch.long),
        torch.full((len(documents), longest), -100),
    )
    for row, d in enumerate(documents):
        ids[row, : len(d.ids)] = torch.tensor(d.ids.astype("int64"))
        for s in d.spans:
            labels[row, s.start : s.start + s.length] = ids[row, s.start : s.start + s.length]
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(STEPS):
        loss = model(input_ids=ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.02, loss
    model.save_pretrained(folder)
    return model


def exported(model, base, renderer, root):
    """Export the trained weights as a run does."""
    from sft_dist.checkpoint import io
    from sft_dist.checkpoint.export import export_checkpoint
    from sft_dist.checkpoint.export_plan import Base

    weights = {n: p.detach().flatten() for n, p in model.named_parameters()}
    spans = {n: [0, w.numel()] for n, w in weights.items()}
    files = io.write_part(
        root / ".aside", 0, {"weights": {f"master/{n}": w for n, w in weights.items()}}, spans
    )
    shapes = {n: list(p.shape) for n, p in model.named_parameters()}
    index = {
        "format": io.FORMAT, "position": {"step": 1, "epoch": 0, "epoch_step": 1}, "optimizer_step": 1, "facts": {},
        "parameters": shapes, "states": {n: [] for n in shapes}, "optimizer": False,
    }  # fmt: skip
    io.commit(root / ".aside", root / "step", index, files)
    export_checkpoint(
        root / "step",
        Base(path=str(base)),
        root / "out",
        dtype="float32",
        tokenizer=renderer.tokenizer,
        template_text=renderer.template_text,
        stop_ids=list(renderer.stop_ids),
    )
    return root / "out"


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_kind_of_turn_ends_by_itself(name, tmp_path):
    from transformers import AutoModelForCausalLM

    from sft_dist.evals.generate import collect_generations, generate_part, load_model, stops_of

    renderer = template_table.own_renderers()[name]
    whole = [template_table.example(s) for s in SHAPES]
    documents = [d for found in renderer.documents(whole) for d in found]
    asked = [
        make_example(task="t", source="s", messages=e.messages[: i + 1], tools=e.tools)
        for e in whole
        for i, m in enumerate(e.messages)
        if m.role == "assistant"
    ]
    assert sum(len(d.spans) for d in documents) == len(asked)
    (tmp_path / "run").mkdir()
    model = overfitted(documents, renderer.tokenizer.vocab_size, tmp_path / "base")
    out = exported(model, tmp_path / "base", renderer, tmp_path / "run")

    served, evaluated = AutoModelForCausalLM.from_pretrained(out), load_model(str(out))
    ends = json.loads((out / "generation_config.json").read_text())["eos_token_id"]
    assert ends == served.generation_config.eos_token_id == list(stops_of(evaluated, renderer))
    assert ends[: len(renderer.stop_ids)] == list(renderer.stop_ids)

    seen, tokens = set(), {}
    for ask in asked:
        fed = renderer.prompt(ask)
        found = served.generate(torch.tensor([fed]), max_new_tokens=200, do_sample=False)[
            0, len(fed) :
        ].tolist()
        [full] = renderer.documents([ask])[0]
        last = full.spans[-1]
        assert found == full.ids[last.start : last.start + last.length].tolist()
        seen.add(found[-1])
        tokens[ask.id] = len(found)
    assert seen == {renderer.tokenizer.control_id(s) for s in renderer.stop_tokens}  # each kind of end

    generate_part(
        evaluated, asked, renderer, renderer.tokenizer, tmp_path / "parts", max_new_tokens=200, batch_size=2
    )
    answers = collect_generations(tmp_path / "parts", asked)
    assert {i: (a.stopped, a.tokens) for i, a in answers.items()} == {i: (True, n) for i, n in tokens.items()}
