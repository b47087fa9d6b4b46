"""Near duplicates: what is compared, exact similarity, the index, and what LSH misses."""

from __future__ import annotations

import random

import numpy as np
import pytest

from sft_dist.core.records import Message, make_example, single_turn
from sft_dist.filters import Seen, near_duplicates
from sft_dist.filters.near_duplicates import NearDuplicates, Sketcher, bands_of, jaccard, parts_of
from sft_dist.filters.ngrams import ngrams, shingles, words

WORDS = [f"word{i}" for i in range(2000)]


def plain_shingles(text: str, n: int) -> set[tuple[str, ...]]:
    """The same in plain Python."""
    found = [w.casefold() for w in text.replace(".", " ").replace(",", " ").split()]
    return {tuple(found[i : i + n]) for i in range(len(found) - n + 1)} or (
        {tuple(found)} if found else set()
    )


def plain_jaccard(a: str, b: str, n: int) -> float:
    x, y = plain_shingles(a, n), plain_shingles(b, n)
    return len(x & y) / len(x | y) if x | y else 1.0


def example(instruction: str, output: str, input: str = ""):  # noqa: A002
    return single_turn(task="t", source="s", instruction=instruction, input=input, output=output)


def kept(examples, **options):
    """Run the rule; return the details of the drops by place."""
    options = {"threshold": 0.8, "shingle_words": 5, "permutations": 128} | options
    sketcher = Sketcher(**options)
    index = NearDuplicates(threshold=options["threshold"], bands=sketcher.bands)
    ids = [f"{i:032x}" for i in range(len(examples))]
    return {
        i: d.detail.replace("0" * 30, "")
        for i, (e, s) in enumerate(zip(examples, sketcher(examples), strict=True))
        if (d := index.add(sketcher.shingles(e), s.bands, s.whole_bands, ids[i], "src"))
    }


def test_words_fold_case_and_split_han_characters():
    assert words("Don't STOP, 3 times!") == ["don", "t", "stop", "3", "times"]
    assert words("\u4f60\u597d Welt") == ["\u4f60", "\u597d", "welt"]
    assert words("\uff21\uff22") == ["ab"]  # full width


def test_ngrams_are_equal_exactly_where_the_words_are():
    codes = np.array([1, 2, 3, 1, 2, 3], np.uint64)
    grams = ngrams(codes, 3).tolist()
    assert grams[0] == grams[3]
    assert len(set(grams)) == 3
    assert len(ngrams(codes, 7)) == 0


def test_jaccard_is_that_of_sets_of_words():
    draw = random.Random(0)
    for _ in range(50):
        first = [draw.choice(WORDS[:30]) for _ in range(draw.randrange(40))]
        second = first[: draw.randrange(40)] + [draw.choice(WORDS[:30]) for _ in range(draw.randrange(10))]
        a, b = " ".join(first), " ".join(second)
        assert jaccard(shingles(a, 3), shingles(b, 3)) == pytest.approx(plain_jaccard(a, b, 3))


def test_parts():
    assert parts_of(example("Do it.", "Done.", "This")) == ("\nDo it.", "This", "Done.")
    assert parts_of(example("Do it.", "Done.")) == ("\nDo it.", "Done.")
    turns = [Message(role="system", content="S")]
    turns += [
        Message(role=r, content=c)
        for r, c in (("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
    ]
    assert parts_of(make_example(task="t", source="s", messages=tuple(turns))) == ("S\na\n\nc", "b\nd")


def test_the_first_of_several_is_kept_and_the_drop_says_what_was_measured():
    text = " ".join(WORDS[:60])
    near = " ".join([*WORDS[:59], "other"])
    far = " ".join([*WORDS[:30], *WORDS[100:130]])
    # 56 shingles of 5 words; the last word stands in one of them
    assert kept([example(text, "yes"), example(near, "yes"), example(far, "yes"), example(text, "yes")]) == {
        1: f"like example 00 of src: prompt {55 / 57:.2f}, answer 1.00 >= 0.8",
        3: "like example 00 of src: prompt 1.00, answer 1.00 >= 0.8",
    }


def test_a_shared_instruction_or_passage_makes_no_duplicates():
    definition, passage = " ".join(WORDS[:200]), " ".join(WORDS[200:400])
    # one definition, other inputs; one passage, other answers; one input, another instruction
    assert not kept([example(definition, "yes", "red apple"), example(definition, "yes", "green pear")])
    assert not kept([example(f"{passage} Who came?", "Ann Lee"), example(f"{passage} Who went?", "Bob May")])
    assert not kept(
        [example("Name the colour.", "red", passage), example("Name the first word.", "red", passage)]
    )
    assert kept(
        [example("Name the colour.", "red", passage), example("Name the colour.", "red", f"{passage} end")]
    )


def test_lsh_finds_what_brute_force_finds():
    draw = random.Random(1)
    examples, texts = [], []
    for i in range(400):
        if i % 2 and draw.random() < 0.9:  # change some words of an earlier text
            base = texts[draw.randrange(len(texts))].split()
            for _ in range(draw.randrange(4)):
                base[draw.randrange(len(base))] = draw.choice(WORDS)
        else:
            base = [draw.choice(WORDS) for _ in range(80)]
        texts.append(" ".join(base))
        examples.append(example(texts[-1], "the same answer"))
    expected: dict[int, int] = {}
    stays: list[int] = []
    for i, text in enumerate(texts):
        match = next((j for j in stays if plain_jaccard(text, texts[j], 5) >= 0.8), None)
        if match is None:
            stays.append(i)
        else:
            expected[i] = match
    found = {i: int(d.split()[2], 16) for i, d in kept(examples).items()}
    assert len(expected) > 50
    assert found == expected


def test_bands_reach_the_threshold():
    for threshold in (0.5, 0.7, 0.8, 0.9):
        bands, rows = bands_of(threshold, 128)
        assert bands * rows <= 128
        assert 1 - (1 - threshold**rows) ** bands >= 0.99
        assert 1 - (1 - threshold ** (rows + 1)) ** (128 // (rows + 1)) < 0.99


def test_sketches_do_not_depend_on_the_batch():
    examples = [example(" ".join(WORDS[i : i + 50]), WORDS[i]) for i in range(20)]
    sketcher = Sketcher(threshold=0.8, shingle_words=5, permutations=64)
    together = sketcher(examples)
    for one, other in zip(together, [s for e in examples for s in sketcher([e])], strict=True):
        assert np.array_equal(one.bands, other.bands)
    assert sketcher([]) == []


def test_texts_without_words_are_compared_as_empty():
    assert kept([example("!!!", "..."), example("???", "---"), example("!!!", "word")]).keys() == {1}


def test_seen_grows_and_tells_keys_apart():
    draw = random.Random(2)
    keys = (
        [draw.getrandbits(128) for _ in range(3000)]
        + [k << 64 | 1 for k in range(1, 50)]
        + list(range(1, 50))
    )
    seen, plain = Seen(), {}
    for n, key in enumerate([*keys, *keys[::7], *keys]):
        assert seen.first(key, f"{n:032x}") == plain.get(key)
        plain.setdefault(key, f"{n:032x}")


def test_one_conversation_in_two_formats():
    passage, definition = " ".join(WORDS[:60]), " ".join(WORDS[200:400])
    alpaca = example("Name the river.", "Rhine", passage)
    messages = example(f"Name the river.\n{passage}", "Rhine")
    changed = example(f"Name the river.\n\n{passage} please", "Rhine")
    assert kept([alpaca, messages, changed]).keys() == {1, 2}
    assert kept([messages, alpaca, changed]).keys() == {1, 2}
    assert kept([alpaca, messages])[1].startswith("like example 00 of src: prompt 1.00, answer 1.00")
    # short ones too, whose INPUT is shorter than a shingle
    assert kept(
        [example("Name the colour of it.", "red", "apple"), example("Name the colour of it. apple", "red")]
    )
    # a definition that two records share does not make them alike
    assert not kept([example(definition, "yes", "red apple"), example(f"{definition}\n\ngreen pear", "yes")])
    assert not kept([example("Name the river.", "Rhine", passage), example(passage, "Rhine stone")])


def test_an_index_goes_on_in_64_bits(monkeypatch):
    examples = [example(" ".join(WORDS[i : i + 30]), "yes") for i in range(0, 1500, 15)]
    both = [*examples, *examples[::-1]]
    narrow = kept(both)
    monkeypatch.setattr(near_duplicates, "LARGEST_INT32", 300)
    assert kept(both) == narrow
    assert len(narrow) == len(examples)
