"""Generation and loss with a tiny random Llama; letters are tokens, so that everything can be read."""

from __future__ import annotations

import json

import numpy as np
import pytest

from sft_dist.core.errors import UserError
from sft_dist.core.files import sealed
from sft_dist.core.records import Drop, Message, Span, Tokens, make_example, single_turn
from sft_dist.evals import generate as subject
from sft_dist.evals.extraction import MAX_TOKENS, collect_continuations, continuation_part, halves
from sft_dist.evals.generate import (
    answer_of,
    collect_generations,
    cut_at_stop,
    generate_ids,
    generate_part,
    load_model,
    part_folder,
    room_for,
)
from sft_dist.evals.loss import answer_losses, collect_losses, loss_part
from sft_dist.evals.resumable_work import collect, run_part
from sft_dist.evals.splits import SHOWN_TOKENS

torch = pytest.importorskip("torch")

LETTERS = "abcdefghijklmnopqrstuvwxyz "
PAD, STOP = 27, 28


class Letters:
    pad_id = PAD

    def decode(self, ids, skip_special_tokens=False):
        return "".join(
            LETTERS[i] if i < len(LETTERS) else ("" if skip_special_tokens else f"<{i}>") for i in ids
        )


class Plain:
    """prompt = letters of the instruction; document = prompt + answer + stop, loss on answer and stop."""

    fingerprint = "plain"

    def __init__(self, stop_ids=(STOP,)):
        self.stop_ids = stop_ids

    def prompt(self, example):
        return [LETTERS.index(c) for c in example.messages[0].content]

    def render(self, examples):
        out = []
        for e in examples:
            if e.output == "drop":
                out.append(Drop("empty", ""))
                continue
            prompt, answer = self.prompt(e), [LETTERS.index(c) for c in e.output] + [STOP]
            out.append(
                Tokens(
                    ids=np.array(prompt + answer, dtype=np.int32),
                    spans=(Span(len(prompt), len(answer), 1.0),),
                )
            )
        return out


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=29,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        initializer_range=0.5,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    model = LlamaForCausalLM(config)
    # What an instruction-tuned model may bring along; evaluation must not sample because of it.
    model.generation_config = GenerationConfig(do_sample=True, temperature=5.0, repetition_penalty=1.5)
    path = tmp_path_factory.mktemp("model")
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def model(folder):
    return load_model(str(folder))


def ask(text, answer="ok"):
    return single_turn(task="t", source="s", instruction=text, output=answer)


EXAMPLES = [ask(t) for t in ("hello", "a", "what is it", "zebra crossing", "do", "sum of parts", "q")]


def greedy_by_hand(model, prompt, stop_ids, limit):
    """The slow twin: whole sequence again for every token, no padding, no cache."""
    ids = list(prompt)
    for _ in range(limit):
        with torch.inference_mode():
            token = int(model(torch.tensor([ids])).logits[0, -1].argmax())
        ids.append(token)
        if token in stop_ids:
            break
    return ids[len(prompt) :]


def test_batched_generation_equals_one_by_one_greedy(model):
    prompts = [Plain().prompt(e) for e in EXAMPLES]
    free = [greedy_by_hand(model, p, (), 8) for p in prompts]
    assert len({tuple(f) for f in free}) > 3  # answers depend on the prompt, so the comparison says something
    stop_ids = (free[0][2], free[1][4])
    expected = [greedy_by_hand(model, p, stop_ids, 8) for p in prompts]
    assert len(expected[0]) <= 3 < 8
    assert generate_ids(model, prompts, stop_ids=stop_ids, pad_id=PAD, max_new_tokens=8) == expected
    assert subject.stops_of(model, Plain()) == (STOP,)  # the stop tokens of one call do not stop the next


def test_cut_at_stop_and_answer_of():
    assert cut_at_stop([1, 9, 2, 0, 0], [2, 0]) == [1, 9, 2]
    assert cut_at_stop([1, 9], [2]) == [1, 9]
    assert answer_of("<think>\nlong\n</think>\n\n42 ") == "42"
    assert answer_of(" 42\n") == "42"


def run(model, folder, *, world_size=1, ranks=None, max_new_tokens=6, renderer=None, examples=EXAMPLES):
    for rank in ranks if ranks is not None else range(world_size):
        generate_part(
            model,
            examples,
            renderer or Plain(),
            Letters(),
            folder,
            max_new_tokens=max_new_tokens,
            batch_size=3,
            rank=rank,
            world_size=world_size,
        )


def test_answers_do_not_depend_on_the_number_of_processes(model, tmp_path):
    stop = greedy_by_hand(model, Plain().prompt(EXAMPLES[0]), (), 6)[3]
    renderer = Plain(stop_ids=(stop, STOP))
    run(model, tmp_path / "one", renderer=renderer)
    run(model, tmp_path / "three", world_size=3, renderer=renderer)
    one = collect_generations(tmp_path / "one", EXAMPLES)
    three = collect_generations(tmp_path / "three", EXAMPLES, world_size=3)
    assert one == three
    assert list(one) == [e.id for e in EXAMPLES]
    first = one[EXAMPLES[0].id]
    assert first.stopped
    assert first.tokens <= 4
    assert len(first.prediction) <= 3  # the stop token is not part of the answer
    assert any(not g.stopped and g.tokens == 6 for g in one.values())


def test_a_killed_run_continues_where_it_was(model, tmp_path, monkeypatch):
    calls = []
    real = subject.generate_ids

    def counting(model, prompts, **kwargs):
        calls.append(len(prompts))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(model, prompts, **kwargs)

    monkeypatch.setattr(subject, "generate_ids", counting)
    with pytest.raises(KeyboardInterrupt):
        run(model, tmp_path)
    assert calls == [3, 1]  # the next is shorter than half of it, so the others would be padding
    growing = tmp_path / ".part-00000-of-00001.jsonl"
    with growing.open("ab") as f:
        f.write('{"id": "ä'.encode()[:-1])  # the crash came in the middle of a line, inside a character
    with pytest.raises(UserError, match=r"part-00000-of-00001.jsonl did not appear"):
        collect_generations(tmp_path, EXAMPLES, timeout_s=0)

    calls[:] = [0, 0, 0]
    run(model, tmp_path, world_size=2)  # another number of processes: the three that are done stay done
    assert sum(calls) == len(EXAMPLES) - 3
    assert not growing.with_name("part-00000-of-00001.jsonl").exists()
    monkeypatch.setattr(subject, "generate_ids", real)
    run(model, tmp_path / "straight")
    assert collect_generations(tmp_path, EXAMPLES, world_size=2) == collect_generations(
        tmp_path / "straight", EXAMPLES
    )
    calls[:] = [0, 0, 0]
    run(model, tmp_path, world_size=2)
    assert sum(calls) == 0


def test_a_batch_is_less_than_half_padding(tmp_path):
    lengths = [100, 60, 50, 49, 10, 10, 0, 0]
    examples = {ask(str(i), "x"): n for i, n in enumerate(lengths)}
    seen = []

    def work(batch):
        seen.append([examples[e] for e in batch])
        return [{"id": e.id} for e in batch]

    run_part(
        tmp_path,
        list(examples),
        work,
        rank=0,
        world_size=1,
        batch_size=3,
        length=examples.__getitem__,
        label="",
    )
    assert seen == [[100, 60, 50], [49], [10, 10], [0, 0]]


def test_long_examples_come_first(tmp_path):
    seen = []

    def work(batch):
        seen.append([len(e.instruction) for e in batch])
        return [{"id": e.id} for e in batch]

    run_part(
        tmp_path,
        EXAMPLES,
        work,
        rank=0,
        world_size=1,
        batch_size=3,
        length=lambda e: len(e.instruction),
        label="x",
    )
    assert seen == [[14, 12, 10], [5], [2, 1, 1]]
    assert list(collect(tmp_path, [EXAMPLES[2].id], world_size=1, timeout_s=0)) == [EXAMPLES[2].id]


def test_another_model_or_option_has_another_folder(folder, tmp_path):
    first = part_folder(tmp_path, "generate", str(folder), "renderer", 32)
    assert first == part_folder(tmp_path, "generate", str(folder), "renderer", 32)
    assert first != part_folder(tmp_path, "generate", str(folder), "renderer", 64)
    (folder / "extra.txt").write_text("new")
    assert first != part_folder(tmp_path, "generate", str(folder), "renderer", 32)


def test_a_prompt_beyond_the_context_is_cut_at_its_beginning(model, tmp_path, caplog):
    long = ask("x" * 90 + "hello")
    run(model, tmp_path, examples=[long], max_new_tokens=4)
    answer = collect_generations(tmp_path, [long])[long.id]
    expected = greedy_by_hand(model, Plain().prompt(long)[-60:], (STOP,), 4)
    assert answer.prediction == Letters().decode(expected, skip_special_tokens=True).strip()


def test_out_of_memory_halves_the_batch(model, monkeypatch):
    prompts = [Plain().prompt(e) for e in EXAMPLES]
    expected = generate_ids(model, prompts, stop_ids=[STOP], pad_id=PAD, max_new_tokens=3)
    real, sizes = type(model).generate, []

    def small_device(self, input_ids, **kwargs):
        sizes.append(len(input_ids))
        if len(input_ids) > 2:
            raise torch.OutOfMemoryError
        return real(self, input_ids=input_ids, **kwargs)

    monkeypatch.setattr(type(model), "generate", small_device)
    assert generate_ids(model, prompts, stop_ids=[STOP], pad_id=PAD, max_new_tokens=3) == expected
    assert sizes == [7, 3, 1, 2, 4, 2, 2]


def test_no_model_names_the_remedy(tmp_path):
    with pytest.raises(UserError, match="sft-dist export"):
        load_model(str(tmp_path))


def nats_by_hand(model, tokens):
    ids = torch.tensor([tokens.ids.tolist()])
    with torch.inference_mode():
        logp = model(ids).logits[0].log_softmax(-1)
    return -sum(
        float(logp[p - 1, ids[0, p]]) for s in tokens.spans for p in range(s.start, s.start + s.length)
    )


def test_answer_nats_equal_each_document_alone(model):
    documents = Plain().render([ask("hello", "world"), ask("a", "b"), ask("what is it", "nothing at all")])
    two_spans = Tokens(ids=np.arange(12, dtype=np.int32), spans=(Span(1, 2, 1.0), Span(8, 3, 0.5)))
    documents.append(two_spans)
    expected = [nats_by_hand(model, d) for d in documents]
    assert [nats for nats, _ in answer_losses(model, documents)] == pytest.approx(expected, rel=1e-5)
    assert answer_losses(model, []) == []


def test_the_likeliest_tokens_equal_those_of_each_document_alone(model):
    documents = Plain().render([ask("hello", "world"), ask("a", "b"), ask("q", "x" * (SHOWN_TOKENS + 9))])
    for d, (_, top) in zip(documents, answer_losses(model, documents), strict=True):
        with torch.inference_mode():
            logits = model(torch.tensor([d.ids.tolist()])).logits[0]
        targets = [p for s in d.spans for p in range(s.start, s.start + s.length)][:SHOWN_TOKENS]
        assert top == [logits[p - 1].topk(3).indices.tolist() for p in targets]


def test_answers_are_gone_on_with_word_for_word_or_not(model, tmp_path):
    room = room_for(model, MAX_TOKENS)
    for letter in LETTERS:  # an answer whose second half is what the model says after its first
        begun = [LETTERS.index(c) for c in "hello" + letter * 35]
        said = generate_ids(model, [begun[-room:]], stop_ids=[STOP], pad_id=0, max_new_tokens=MAX_TOKENS)[0]
        if max(said) < len(LETTERS):
            break
    known = ask("hello", letter * 35 + "".join(LETTERS[i] for i in said) + "abc")
    other = ask("hello", letter * 35 + LETTERS[(said[0] + 1) % 26] * (MAX_TOKENS + 3))
    short, lost = ask("a", "b"), ask("a", "drop")
    continuation_part(model, [known, other, short, lost], Plain(), tmp_path, batch_size=2)
    found = collect_continuations(tmp_path, [known, other, short, lost])
    assert [(c.equal, c.tokens) for c in found.values()] == [(True, 32), (False, 32), (False, 0), (False, 0)]


def test_the_halves_of_an_answer():
    rendered = Plain().render([ask("ab", "cdefghi")])[0]  # 8 targets with the stop token
    assert halves(rendered) == ([0, 1, 2, 3, 4, 5], [6, 7, 8, STOP])
    assert halves(Plain().render([ask("ab", "cdefgh")])[0]) == ([0, 1, 2, 3, 4], [5, 6, 7, STOP])
    assert halves(Plain().render([ask("ab", "cdefg")])[0]) == ([], [])  # three are left: too few


def test_out_of_memory_halves_the_batch_of_losses(model, monkeypatch):
    documents = [d for d in Plain().render(EXAMPLES) if isinstance(d, Tokens)]
    expected = answer_losses(model, documents)
    real, sizes = type(model).forward, []

    def small_device(self, input_ids, **kwargs):
        sizes.append(len(input_ids))
        if len(input_ids) > 2:
            raise torch.OutOfMemoryError
        return real(self, input_ids=input_ids, **kwargs)

    monkeypatch.setattr(type(model), "forward", small_device)
    monkeypatch.setattr(
        "sft_dist.evals.loss.accepts", lambda *_: True
    )  # it looks at the arguments of forward
    found = answer_losses(model, documents)
    assert [nats for nats, _ in found] == pytest.approx([nats for nats, _ in expected], rel=1e-5)
    assert [top for _, top in found] == [top for _, top in expected]
    assert max(sizes) == len(documents)
    assert sizes.count(max(sizes)) == 1


def test_losses_by_parts_and_what_cannot_be_rendered(model, tmp_path):
    examples = [ask("hello", "world"), ask("a", "drop"), ask("q", "z")]
    for rank in range(2):
        loss_part(model, examples, Plain(), tmp_path, batch_size=2, rank=rank, world_size=2)
    losses = collect_losses(tmp_path, examples, world_size=2)
    assert [x.tokens for x in losses.values()] == [6, 0, 2]
    assert losses[examples[0].id].nats == pytest.approx(
        nats_by_hand(model, Plain().render(examples[:1])[0]), rel=1e-5
    )
    line = json.loads((tmp_path / "part-00001-of-00002.jsonl").read_text())
    assert line == sealed({"id": examples[1].id, "nats": 0.0, "tokens": 0, "top": []})


def test_a_question_behind_the_last_answer_is_not_asked(model, tmp_path):
    """Dumps of chats often end with one; its answer is not the one that is compared."""
    asked = []

    class Open(Plain):
        def prompt(self, example):
            asked.append([m.content for m in example.messages])
            return super().prompt(example)

    said = (("user", "ask"), ("assistant", "ok"), ("user", "more"))
    turns = tuple(Message(role=r, content=c) for r, c in said)
    run(model, tmp_path, renderer=Open(), examples=[make_example(task="t", source="s", messages=turns)])
    assert asked == [["ask", "ok"]]


def test_what_cannot_be_asked_counts_as_wrong_and_is_not_fatal(model, tmp_path):
    class Picky(Plain):
        def prompt(self, example):
            if example.instruction == "do":
                raise UserError("the template cannot render it")
            return super().prompt(example)

    run(model, tmp_path, renderer=Picky())
    answers = collect_generations(tmp_path, EXAMPLES)
    refused = answers.pop(EXAMPLES[4].id)
    assert (refused.prediction, refused.stopped, refused.tokens) == ("", False, 0)
    assert all(a.tokens for a in answers.values())


def test_no_room_for_a_prompt_names_the_remedy(model, tmp_path):
    with pytest.raises(UserError, match=r"max_new_tokens=64 leaves no room .* context of 64"):
        run(model, tmp_path, max_new_tokens=64)


def test_collect_waits_for_the_other_processes(tmp_path):
    import threading

    for rank, e in enumerate(EXAMPLES[:2]):
        (tmp_path / f".part-{rank:05d}-of-00002.jsonl").write_text(
            json.dumps(sealed({"id": e.id, "x": rank})) + "\n"
        )
    (tmp_path / ".part-00000-of-00002.jsonl").rename(tmp_path / "part-00000-of-00002.jsonl")
    late = threading.Timer(
        0.3, lambda: (tmp_path / ".part-00001-of-00002.jsonl").rename(tmp_path / "part-00001-of-00002.jsonl")
    )
    late.start()
    found = collect(tmp_path, [e.id for e in EXAMPLES[:2]], world_size=2, timeout_s=20)
    assert [r["x"] for r in found.values()] == [0, 1]


def test_with_the_real_renderer_and_tokenizer_to_scores(tmp_path):
    """Tokenizer, template, model folder, generation, loss, baselines, metrics: every part as in a run."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from sft_dist.evals.baselines import Baselines, training_pairs
    from sft_dist.evals.score import score_examples, scores, write_results
    from sft_dist.render.renderer import Renderer
    from sft_dist.render.tokenizer import train_tokenizer

    examples = [
        single_turn(
            task=f"t{i % 2}", source="s", instruction="Name the colour.", input=f"thing {i}", output=c
        )
        for i, c in enumerate(["red", "green", "blue", "red", "grey", "red"])
    ]
    tokenizer = train_tokenizer([m.content for e in examples for m in e.messages], vocab_size=320)
    renderer = Renderer(tokenizer, template="chatml")
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=256,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "export")
    model = load_model(str(tmp_path / "export"))
    folder = part_folder(tmp_path / "parts", "generate", str(tmp_path / "export"), renderer.fingerprint, 5)
    generate_part(model, examples, renderer, tokenizer, folder, max_new_tokens=5, batch_size=4)
    loss_part(model, examples, renderer, tmp_path / "loss", batch_size=4)
    losses = collect_losses(tmp_path / "loss", examples)
    # An untrained model knows nothing: its loss is near that of a uniform guess.
    assert sum(x.nats for x in losses.values()) / sum(x.tokens for x in losses.values()) == pytest.approx(
        np.log(tokenizer.vocab_size), abs=0.5
    )
    judged = score_examples(
        {"seen": examples},
        collect_generations(folder, examples),
        Baselines(map(training_pairs, examples)),
        metric="exact_match",
        losses=losses,
    )
    assert all(
        j.scores["nearest"]["exact_match"] for j in judged
    )  # the evaluated examples stand in the training set here
    result = scores(judged, asked="exact_match")
    write_results(tmp_path / "eval", judged, result)
    assert result["sets"]["seen"]["macro"]["score"]["nearest"]["mean"] == 1.0
    assert result["sets"]["seen"]["tasks"]["t0"]["n"] == 3
