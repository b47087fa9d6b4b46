"""What an epoch draws: how often each task and source, which examples, in which order."""

import os
import time
from collections import Counter

import numpy as np
import pytest

from sft_dist.core.errors import UserError
from sft_dist.core.records import Message, Span, Tokens, make_example
from sft_dist.mix import Corpus, Mixture, SourceMix, draw, make_pool
from sft_dist.shards import ShardWriter, Store, finish_store


def counts(corpus, mixture, epoch=0, seed=0):
    """Draws by source and task."""
    indices = draw(corpus, mixture, seed=seed, epoch=epoch)
    names = [
        (corpus.source_names[corpus.source_of[i]], corpus.task_names[corpus.task_of[i]]) for i in indices
    ]
    return dict(Counter(names))


def by_source(corpus, mixture):
    out = Counter()
    for (source, _), n in counts(corpus, mixture).items():
        out[source] += n
    return dict(out)


def test_all_draws_every_example_once_in_shuffled_order(make_corpus):
    corpus = make_corpus({"a": {"x": 30, "y": 5}, "b": {"z": 15}})
    indices = draw(corpus, Mixture(), seed=0, epoch=0)
    assert sorted(indices.tolist()) == list(range(50))
    assert indices.tolist() != list(range(50))
    assert indices.dtype == np.int64


def test_a_draw_depends_on_seed_and_epoch_alone(make_corpus):
    corpus = make_corpus({"a": {"x": 50}})
    first = draw(corpus, Mixture(), seed=0, epoch=0).tolist()
    assert draw(corpus, Mixture(), seed=0, epoch=0).tolist() == first
    assert draw(corpus, Mixture(), seed=0, epoch=1).tolist() != first
    assert draw(corpus, Mixture(), seed=1, epoch=0).tolist() != first


def test_proportional_caps_each_task(make_corpus):
    corpus = make_corpus({"a": {"x": 100, "y": 10}, "b": {"z": 40}})
    mixture = Mixture(rate="proportional", cap=30)
    assert counts(corpus, mixture) == {("a", "x"): 30, ("a", "y"): 10, ("b", "z"): 30}


def test_a_task_that_two_sources_hold_has_one_cap(make_corpus):
    corpus = make_corpus({"a": {"x": 60}, "b": {"x": 30, "y": 5}})
    assert corpus.task_names == ["x", "y"]
    drawn = counts(corpus, Mixture(rate="proportional", cap=45))
    assert drawn == {("a", "x"): 30, ("b", "x"): 15, ("b", "y"): 5}


def test_temperature_flattens(make_corpus):
    corpus = make_corpus({"a": {"x": 90, "y": 10}})
    assert counts(corpus, Mixture(rate="temperature", temperature=1.0)) == {("a", "x"): 90, ("a", "y"): 10}
    # Square roots 9.49 and 3.16 of an epoch of 100.
    assert counts(corpus, Mixture(rate="temperature", temperature=2.0)) == {("a", "x"): 75, ("a", "y"): 25}
    # Capped at 40: roots 6.32 and 3.16 of an epoch of 50.
    drawn = counts(corpus, Mixture(rate="temperature", temperature=2.0, cap=40))
    assert drawn == {("a", "x"): 33, ("a", "y"): 17}


def test_weight_multiplies_a_sources_rate(make_corpus):
    corpus = make_corpus({"a": {"x": 20}, "b": {"y": 20}})
    weights = {"b": SourceMix(weight=2.0)}
    assert by_source(corpus, Mixture(sources=weights)) == {"a": 20, "b": 40}
    assert by_source(corpus, Mixture(sources=weights, epoch_examples=30)) == {"a": 10, "b": 20}


def test_share_is_of_the_epoch_and_the_rest_is_divided_by_rate(make_corpus):
    corpus = make_corpus({"a": {"x": 60}, "b": {"y": 30}, "mine": {"z": 10}})
    mixture = Mixture(sources={"mine": SourceMix(share=0.4)})
    assert by_source(corpus, mixture) == {"mine": 40, "a": 40, "b": 20}
    mixture = Mixture(sources={"mine": SourceMix(share=0.4)}, epoch_examples=1000)
    assert by_source(corpus, mixture) == {"mine": 400, "a": 400, "b": 200}


def test_a_sources_share_is_divided_by_the_rates_of_its_tasks(make_corpus):
    corpus = make_corpus({"a": {"x": 90, "y": 10}, "b": {"z": 100}})
    mixture = Mixture(
        sources={"a": SourceMix(share=0.5), "b": SourceMix(share=0.5)}, rate="proportional", cap=20
    )
    # Under the cap there are 20 + 10 + 20.
    assert counts(corpus, mixture) == {("a", "x"): 17, ("a", "y"): 8, ("b", "z"): 25}


def test_epochs_of_a_source_are_absolute(make_corpus):
    corpus = make_corpus({"a": {"x": 20}, "b": {"y": 10}})
    assert by_source(corpus, Mixture(sources={"b": SourceMix(epochs=2.5)})) == {"a": 20, "b": 25}
    mixture = Mixture(sources={"b": SourceMix(epochs=2.5)}, epoch_examples=30)
    assert by_source(corpus, mixture) == {"a": 5, "b": 25}
    mixture = Mixture(sources={"a": SourceMix(epochs=1.0), "b": SourceMix(share=0.2)})
    assert by_source(corpus, mixture) == {"a": 20, "b": 5}


def test_nothing_is_repeated_before_everything_was_drawn(make_corpus):
    corpus = make_corpus({"a": {"x": 10}, "b": {"y": 10}})
    mixture = Mixture(sources={"b": SourceMix(epochs=2.3)})
    seen = []
    for epoch in range(30):
        times = np.bincount(draw(corpus, mixture, seed=0, epoch=epoch), minlength=20)
        assert times[:10].tolist() == [1] * 10
        assert sorted(times[10:].tolist()) == [2] * 7 + [3] * 3
        seen.append(tuple(np.flatnonzero(times[10:] == 3).tolist()))
    assert len(set(seen)) > 15  # the remainder is drawn afresh
    assert {i for three in seen for i in three} == set(range(10))


def test_task_bounds(make_corpus):
    corpus = make_corpus({"a": {"x": 100, "y": 3, "z": 20}})
    mixture = Mixture(task_min=8, task_max=40)
    assert counts(corpus, mixture) == {("a", "x"): 40, ("a", "y"): 8, ("a", "z"): 20}
    # With a fixed epoch the tasks between their bounds make up for the others.
    mixture = Mixture(task_min=8, task_max=40, epoch_examples=80)
    assert counts(corpus, mixture) == {("a", "x"): 40, ("a", "y"): 8, ("a", "z"): 32}


def test_task_bounds_hold_over_sources(make_corpus):
    corpus = make_corpus({"a": {"x": 7}, "b": {"x": 7}, "c": {"x": 7, "y": 50}})
    drawn = counts(corpus, Mixture(task_max=10))
    assert sum(n for (_, task), n in drawn.items() if task == "x") == 10
    assert drawn["c", "y"] == 10


def test_task_bounds_hold_after_rounding(make_corpus):
    # One of x from two sources is a half each, one of y from three a third each: not two of x and none of y.
    corpus = make_corpus({"a": {"x": 5, "y": 5}, "b": {"x": 5, "y": 5}, "c": {"y": 5}})
    drawn = counts(corpus, Mixture(task_max=1))
    assert sorted(task for _, task in drawn) == ["x", "y"]


def test_take_chooses_once_for_all_epochs(make_corpus):
    corpus = make_corpus({"a": {"x": 40}, "b": {"y": 40}})
    mixture = Mixture(sources={"a": SourceMix(take_share=0.25), "b": SourceMix(take_examples=7)})
    drawn = [draw(corpus, mixture, seed=0, epoch=e).tolist() for e in range(2)]
    assert sorted(drawn[0]) == sorted(drawn[1])
    assert drawn[0] != drawn[1]
    assert by_source(corpus, mixture) == {"a": 10, "b": 7}
    assert set(drawn[0]) != set(draw(corpus, mixture, seed=1, epoch=0).tolist())


def test_an_example_that_two_sources_hold_is_drawn_from_the_first(make_corpus):
    twin = "f" * 32
    corpus = make_corpus({"a": {"x": 3}, "b": {"x": 4}}, ids={("a", 1): twin, ("b", 0): twin, ("b", 2): twin})
    assert sorted(draw(corpus, Mixture(), seed=0, epoch=0).tolist()) == [0, 1, 2, 4, 6]
    assert make_pool(corpus, Mixture(), 0).duplicates == 2
    kept = draw(corpus, Mixture(drop_duplicates=False), seed=0, epoch=0)
    assert sorted(kept.tolist()) == list(range(7))


def test_an_example_that_the_first_source_does_not_take_is_left_to_the_second(make_corpus):
    shared = {(source, i): f"{i:016x}" * 2 for source in "ab" for i in range(10)}
    corpus = make_corpus({"a": {"x": 10}, "b": {"x": 10}}, ids=shared)
    drawn = draw(corpus, Mixture(sources={"a": SourceMix(take_examples=4)}), seed=0, epoch=0)
    assert sorted(corpus.id_hex(i) for i in drawn.tolist()) == sorted(shared["a", i] for i in range(10))


@pytest.mark.parametrize("temperature", [1e-9, 1e-3, 1e9])
def test_a_temperature_at_the_edge(make_corpus, temperature):
    """Powers of counts, as plain floats, end at infinity."""
    drawn = counts(
        make_corpus({"a": {"x": 60, "y": 4}, "b": {"x": 40}}),
        Mixture(rate="temperature", temperature=temperature, epoch_examples=50),
    )
    x, y = drawn["a", "x"] + drawn["b", "x"], drawn.get(("a", "y"), 0)
    assert (x, y) == ((25, 25) if temperature > 1 else (50, 0))
    assert drawn["a", "x"] == round(0.6 * x)


def test_an_epoch_that_rounds_to_nothing_is_refused(make_corpus):
    for empty in (SourceMix(weight=1e-9), SourceMix(epochs=1e-6)):
        with pytest.raises(UserError, match="draws none of 3 examples, because all weights and epochs"):
            make_pool(make_corpus({"a": {"x": 3}}), Mixture(sources={"a": empty}), 0)


def test_one_example_under_two_tasks_is_drawn_once(make_corpus):
    # sources without a task of their own name it after themselves
    one = [
        make_example(task=task, source=task, messages=(Message(role="user", content="Hi"),)) for task in "ab"
    ]
    assert one[0].id != one[1].id
    corpus = make_corpus({"a": {"a": 2}, "b": {"b": 2}}, ids={("a", 0): one[0].id, ("b", 1): one[1].id})
    assert sorted(draw(corpus, Mixture(), seed=0, epoch=0).tolist()) == [0, 1, 2]


def test_duplicates_inside_one_source_are_its_own_affair(make_corpus):
    corpus = make_corpus({"a": {"x": 2}, "b": {"x": 1}}, ids={("a", 0): "f" * 32, ("a", 1): "f" * 32})
    assert len(draw(corpus, Mixture(), seed=0, epoch=0)) == 3


def test_flan2021_limits_the_pool_of_a_task_and_caps_its_rate(make_corpus, monkeypatch):
    from sft_dist.mix.weights import PRESETS, Preset

    assert PRESETS["flan2021"] == Preset(caps={"": 3000}, task_pool=30000)
    monkeypatch.setitem(PRESETS, "flan2021", Preset(caps={"": 3}, task_pool=30))
    corpus = make_corpus({"a": {"x": 100, "y": 2}})
    mixture = Mixture(preset="flan2021")
    assert counts(corpus, mixture) == {("a", "x"): 3, ("a", "y"): 2}
    seen = {i for e in range(200) for i in draw(corpus, mixture, seed=0, epoch=e).tolist() if i < 100}
    assert len(seen) == 30


def test_flan2022_has_the_published_shares_and_caps(make_corpus):
    names = ["flan2021", "t0", "cot", "niv2", "dialog"]
    corpus = make_corpus({name: {name: 20} for name in names})
    mixture = Mixture(preset="flan2022", epoch_examples=1000)
    assert by_source(corpus, mixture) == {"flan2021": 400, "t0": 320, "cot": 50, "niv2": 200, "dialog": 30}


def test_flan2022_caps_the_tasks_of_each_submixture(make_corpus, monkeypatch):
    from dataclasses import replace

    from sft_dist.mix.weights import PRESETS

    published = {"flan2021": 30_000, "t0": 20_000, "cot": 100_000, "niv2": 5_000, "dialog": 200_000}
    assert PRESETS["flan2022"].caps == published
    scaled = {name: cap // 5000 for name, cap in published.items()}  # 6, 4, 20, 1, 40
    monkeypatch.setitem(PRESETS, "flan2022", replace(PRESETS["flan2022"], caps=scaled))
    corpus = make_corpus({"t0": {"large": 40, "small": 2}, "niv2": {"x": 30, "y": 1}})
    # t0 has 320 of 520: 4 to 2 between its tasks; niv2 200: one each, for both reach their cap of 1.
    assert counts(corpus, Mixture(preset="flan2022", epoch_examples=520)) == {
        ("t0", "large"): 213,
        ("t0", "small"): 107,
        ("niv2", "x"): 100,
        ("niv2", "y"): 100,
    }


def test_flan2022_knows_its_submixtures_only_and_renormalises_those_present(make_corpus):
    corpus = make_corpus({"t0": {"x": 20}, "niv2": {"y": 20}})
    mixture = Mixture(preset="flan2022", epoch_examples=520)
    assert by_source(corpus, mixture) == {"t0": 320, "niv2": 200}
    corpus = make_corpus({"mine": {"x": 20}})
    with pytest.raises(UserError, match="'mine' is none of them"):
        draw(corpus, mixture, seed=0, epoch=0)


def test_t0_divides_the_cap_of_a_large_dataset_by_its_templates(make_corpus, monkeypatch):
    from sft_dist.mix.weights import PRESETS, Preset

    assert PRESETS["t0"] == Preset(caps={"": 500_000}, split_cap=True)
    monkeypatch.setitem(PRESETS, "t0", Preset(caps={"": 50}, split_cap=True))
    corpus = make_corpus({"p3": {"big/one": 60, "big/two": 60, "big/three": 60, "small/one": 50}})
    drawn = counts(corpus, Mixture(preset="t0"))
    assert drawn == {
        ("p3", "big/one"): 16,
        ("p3", "big/two"): 16,
        ("p3", "big/three"): 16,
        ("p3", "small/one"): 50,
    }


@pytest.mark.parametrize(
    ("mixture", "message"),
    [
        (
            Mixture(sources={"a": SourceMix(share=0.7), "b": SourceMix(share=0.4)}),
            "sum to 1.1, more than the whole",
        ),
        (Mixture(sources={"a": SourceMix(share=0.7), "b": SourceMix(share=0.2)}), "come from nowhere"),
        (Mixture(sources={"a": SourceMix(share=1.0)}), "nothing is left"),
        (Mixture(sources={"a": SourceMix(share=0.5, epochs=2.0)}), "share and epochs"),
        (Mixture(sources={"a": SourceMix(share=0.5, weight=2.0)}), "share and weight"),
        (Mixture(sources={"aa": SourceMix(share=0.5)}), "Did you mean 'a'"),
        (Mixture(cap=3), "mix.cap has no effect"),
        (Mixture(temperature=2.0), "mix.temperature has no effect"),
        (Mixture(task_min=5, task_max=4), "below mix.task_min"),
        (
            Mixture(sources={"a": SourceMix(share=0.1)}, task_min=5),
            "share of a is 2 .* mix.task_min=5 asks for 5",
        ),
        (
            Mixture(sources={"a": SourceMix(share=0.5)}, task_max=4),
            "share of a is 10 .* mix.task_max=4 allows 4",
        ),
        (Mixture(preset="t0", rate="proportional"), "sets the rates itself"),
        (Mixture(sources={"a": SourceMix(epochs=3.0)}, epoch_examples=10), "does not add up"),
    ],
)
def test_settings_that_contradict_are_refused(make_corpus, mixture, message):
    corpus = make_corpus({"a": {"x": 10}, "b": {"y": 10}})
    with pytest.raises(UserError, match=message):
        draw(corpus, mixture, seed=0, epoch=0)


def test_shares_may_sum_to_one_in_floating_point(make_corpus):
    corpus = make_corpus({"a": {"x": 10}, "b": {"y": 10}, "c": {"z": 10}})
    sources = {"a": SourceMix(share=0.1), "b": SourceMix(share=0.2), "c": SourceMix(share=0.7)}
    assert by_source(corpus, Mixture(sources=sources, epoch_examples=100)) == {"a": 10, "b": 20, "c": 70}


@pytest.mark.parametrize("seed", range(30))
def test_quotas_add_up_whatever_the_settings(make_corpus, seed):
    rng = np.random.default_rng(seed)
    names = ["a", "b", "c"]
    corpus = make_corpus(
        {s: {f"t{t}": int(rng.integers(1, 40)) for t in rng.permutation(9)[:4]} for s in names}
    )
    total = int(rng.integers(20, 500))
    low = int(rng.integers(0, 3))
    rate = str(rng.choice(["all", "proportional", "temperature"]))
    mixture = Mixture(
        sources={"a": SourceMix(share=0.3)} if seed % 2 else {"b": SourceMix(weight=3.0)},
        rate=rate,
        temperature=2.0 if rate == "temperature" else 1.0,
        cap=None if rate == "all" else 12,
        task_min=low,
        epoch_examples=total,
    )
    indices = draw(corpus, mixture, seed=seed, epoch=0)
    assert len(indices) == total
    if seed % 2:
        assert (corpus.source_of[indices] == 0).sum() == round(0.3 * total)
    else:
        assert np.bincount(corpus.task_of[indices], minlength=len(corpus.task_names)).min() >= low


def test_a_million_examples_in_a_few_tenths_of_a_second(make_corpus):
    corpus = make_corpus({"a": {"x": 10}, "b": {"y": 10}})
    draw(corpus, Mixture(sources={"a": SourceMix(share=0.5)}), seed=0, epoch=0)  # compile
    mixture = Mixture(sources={"a": SourceMix(share=0.5)}, epoch_examples=1_000_000)
    start = time.process_time()
    assert len(draw(corpus, mixture, seed=0, epoch=0)) == 1_000_000
    assert time.process_time() - start < 0.3


def test_shares_of_tokens_and_of_targets_are_exact_over_whole_passes(tmp_path, monkeypatch):
    """Source a: 100 examples of 3 tokens, all but the first with loss; b: 40 of 12, one with loss; c: 10 and 20 of 5 and 9."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    shapes = {"a": [("x", 100, 3, 2)], "b": [("y", 40, 12, 1)], "c": [("z", 10, 5, 4), ("w", 20, 9, 3)]}
    stores = {}
    for s, (source, tasks) in enumerate(shapes.items()):
        with ShardWriter(tmp_path / source, 0, "uint16", key={"tokenizer": "one"}) as writer:
            for t, (_, n, length, targets) in enumerate(tasks):
                for i in range(n):
                    ids = np.arange(length, dtype=np.int32)
                    spans = (Span(length - targets, targets, 1.0),)
                    writer.add(f"{s:08x}{t:04x}{i:04x}" * 2, t, 0, Tokens(ids=ids, spans=spans))
        finish_store(
            tmp_path / source, key={"tokenizer": "one"}, tasks=[t for t, *_ in tasks], sources=[source]
        )
        stores[source] = Store.open(tmp_path / source)
    corpus = Corpus(stores)
    lengths = {"x": (3, 2), "y": (12, 1), "z": (5, 4), "w": (9, 3)}

    def shares(mixture, place):
        amounts = Counter()
        for (source, task), n in counts(corpus, mixture).items():
            amounts[source] += n * lengths[task][place]
        return {s: v / sum(amounts.values()) for s, v in amounts.items()}, sum(amounts.values())

    asked = {"a": SourceMix(share=0.5), "b": SourceMix(share=0.2)}
    for unit, place in (("tokens", 0), ("targets", 1)):
        found, _ = shares(Mixture(sources=asked, unit=unit), place)
        assert found == pytest.approx({"a": 0.5, "b": 0.2, "c": 0.3}, abs=0.01)
        found, total = shares(Mixture(sources=asked, unit=unit, epoch_tokens=60_000), place)
        assert found == pytest.approx({"a": 0.5, "b": 0.2, "c": 0.3}, abs=0.0005)
        assert total == pytest.approx(60_000, abs=30)
    # what examples would have made of it
    assert shares(Mixture(sources=asked), 0)[0]["b"] > 0.35
    # task_min counts examples; a share that it makes impossible is refused in the unit
    with pytest.raises(
        UserError, match=r"the share of b is 240 tokens of an epoch.*task_min=40 asks for 480"
    ):
        draw(corpus, Mixture(sources=asked, unit="tokens", epoch_tokens=1200, task_min=40), seed=0, epoch=0)
    with pytest.raises(ValueError, match="counted in two units"):
        Mixture(unit="tokens", epoch_examples=10)
    with pytest.raises(ValueError, match="counted in two units"):
        Mixture(epoch_tokens=10)
