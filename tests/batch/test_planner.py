"""An epoch's plan: every drawn document once, the same rows for any number of ranks, exact weights."""

import dataclasses
import gc
import sys
import weakref
from itertools import chain

import numpy as np
import pytest

from sft_dist.batch import Planner, collate
from sft_dist.core.errors import UserError
from sft_dist.core.records import Position
from sft_dist.mix import Mixture, SourceMix
from sft_dist.pack import CostModel

COST = CostModel(linear_flops_per_token=1000.0, attention_flops_per_pair=20.0, head_flops_per_target=10.0)


def planner(corpus, **changes):
    settings = {"seq_len": 256, "rows_per_step": 8, "world_size": 1, "cost": COST, "seed": 0, **changes}
    return Planner(corpus, **settings)


def documents(plan):
    """All (document, start, length) of an epoch, in training order, and the rows of each batch."""
    rows = [row for step in range(plan.n_steps) for row in plan.rows(step)]
    return [
        t
        for row in rows
        for t in zip(row.docs.tolist(), row.starts.tolist(), row.lengths.tolist(), strict=True)
    ]


def dealt(step_plan):
    return [row for micro in step_plan.micro_rows for rank in micro for row in rank]


def as_set(rows):
    return sorted(tuple(row.docs.tolist()) for row in rows)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("micro_rows", [1, 2])
@pytest.mark.parametrize("balance_window", [1, 3])
def test_every_document_once_no_row_over_capacity_equal_micro_steps(
    random_corpus, world_size, micro_rows, balance_window
):
    corpus = random_corpus(400)
    settings = {"world_size": world_size, "micro_rows": micro_rows, "balance_window": balance_window}
    plan = planner(corpus, **settings).epoch(0)
    seen = []
    for i in range(plan.n_steps):
        step = plan.step(i)
        assert all(len(micro) == world_size for micro in step.micro_rows)
        assert all(len(rank) <= micro_rows for micro in step.micro_rows for rank in micro)
        assert all(row.tokens <= 256 for row in dealt(step))
        assert step.imbalance >= 1.0
        seen += [doc for row in dealt(step) for doc in row.docs.tolist()]
    assert sorted(seen) == list(range(400))


def test_batches_are_the_same_rows_in_the_same_order_for_any_number_of_ranks(random_corpus):
    corpus = random_corpus(400)
    for balance_window in (1, 4):
        plans = [
            planner(corpus, world_size=w, micro_rows=m, balance_window=balance_window).epoch(1)
            for w, m in [(1, 1), (2, 1), (3, 1), (4, 1), (8, 1), (2, 2), (1, 8)]
        ]
        assert len({plan.hash for plan in plans}) == 1
        for i in range(plans[0].n_steps):
            steps = [plan.step(i) for plan in plans]
            assert len({s.target_weight for s in steps}) == 1
            assert all(as_set(dealt(s)) == as_set(dealt(steps[0])) for s in steps)


def test_target_weight_of_a_step_is_exactly_what_its_batches_carry(random_corpus):
    corpus = random_corpus(300)
    for settings in (
        {},
        {"seq_len": 40, "too_long": "truncate_prompt"},
        {"seq_len": 40, "too_long": "truncate_answer"},
    ):
        plan = planner(corpus, world_size=2, micro_rows=2, **settings).epoch(0)
        total = 0.0
        for i in range(plan.n_steps):
            step = plan.step(i)
            batches = [collate(corpus, rank) for micro in step.micro_rows for rank in micro]
            assert sum(float(b.target_weights.sum()) for b in batches) == step.target_weight
            assert step.fill == sum(len(b.input_ids) for b in batches if b.doc_ids) / (
                8 * settings.get("seq_len", 256)
            )
            total += step.target_weight
        assert total == plan.counts.target_weight


def test_epochs_and_seeds_differ_and_repeat(random_corpus):
    corpus = random_corpus(200)
    plan = planner(corpus).epoch(0)
    assert documents(plan) == documents(planner(corpus).epoch(0))
    assert plan.hash == planner(corpus).epoch(0).hash
    others = [
        planner(corpus).epoch(1),
        planner(corpus, seed=1).epoch(0),
        planner(corpus, seq_len=300).epoch(0),
    ]
    assert len({plan.hash, *(o.hash for o in others)}) == 4
    assert documents(plan) != documents(others[0])


def test_the_plan_is_pinned(make_corpus):
    """A run that is resumed with a newer version must meet the same batches: changing this breaks every resume."""
    corpus = make_corpus({"a": [(np.arange(n), [(1, n - 1, 1.0)]) for n in (9, 4, 7, 3, 5, 2, 8, 6)]})
    rows = planner(corpus, seq_len=12, rows_per_step=2, seed=1)
    assert [[row.docs.tolist() for row in rows.epoch(0).rows(i)] for i in range(2)] == [
        [[5, 7], [3, 0]],
        [[1, 6], [2, 4]],
    ]
    assert rows.epoch(0).n_steps == 2
    dealt_rows = planner(corpus, seq_len=12, rows_per_step=4, seed=1, world_size=2).epoch(0).step(0)
    assert [[r.docs.tolist() for rank in m for r in rank] for m in dealt_rows.micro_rows] == [
        [[1, 6], [3, 0]],
        [[5, 7], [2, 4]],
    ]


def test_hash_tells_stores_apart(make_corpus, tmp_path):
    docs = [([1, 2, 3], [(1, 2, 1.0)])] * 4
    one = planner(make_corpus({"a": docs})).epoch(0)
    other = planner(make_corpus({"b": docs})).epoch(0)
    assert documents(one) == documents(other)
    assert one.hash != other.hash


@pytest.mark.parametrize(
    ("too_long", "expected", "dropped"),
    [
        # Documents of 3, 5 and 6 tokens in rows of 4; the second trains its first answer token, the third its last two.
        ("drop", [(0, 0, 3)], {"too_long": 2}),
        ("truncate_prompt", [(0, 0, 3), (2, 2, 4)], {"answer_exceeds_row": 1}),
        ("truncate_answer", [(0, 0, 3), (1, 0, 4)], {"prompt_exceeds_row": 1}),
    ],
)
def test_too_long(make_corpus, too_long, expected, dropped):
    corpus = make_corpus(
        {
            "a": [
                ([1, 2, 3], [(2, 1, 1.0)]),
                (
                    [1, 2, 3, 4, 5],
                    [(1, 1, 1.0)],
                ),  # cut from the left, token 1 comes first and cannot be a target
                ([1, 2, 3, 4, 5, 6], [(4, 2, 1.0)]),
            ]
        }
    )
    plan = planner(corpus, seq_len=4, too_long=too_long, rows_per_step=1).epoch(0)
    assert sorted(documents(plan)) == expected
    assert plan.counts.dropped == dropped
    assert plan.counts.truncated == len(expected) - 1
    assert plan.counts.drawn == 3


def test_no_answer_is_trained_without_its_prompt(make_corpus):
    """Rows of 32 tokens, so two tokens of a prompt are the least. Documents end with their last answer."""
    docs = {
        "its beginning is cut": (40, [(6, 34)]),
        "one token of its prompt would remain": (40, [(9, 31)]),
        "two tokens of its prompt remain": (40, [(10, 30)]),
        "an earlier answer is cut, the next has its question": (40, [(4, 10), (20, 20)]),
        "an earlier answer in two weights": (40, [(4, 2), (6, 8), (20, 20)]),
        "a text without a prompt": (40, [(1, 39)]),
    }
    corpus = make_corpus({"a": [(range(n), [(*s, 1.0) for s in spans]) for n, spans in docs.values()]})
    kept = corpus.slices(np.arange(len(docs)), 32, keep_end=True)
    assert list(
        zip(kept.starts.tolist(), kept.lengths.tolist(), kept.target_tokens.tolist(), strict=True)
    ) == [
        (40, 0, 0),
        (40, 0, 0),
        (8, 32, 30),
        (14, 26, 20),
        (14, 26, 20),
        (8, 32, 31),
    ]
    counts = planner(corpus, seq_len=32, too_long="truncate_prompt", rows_per_step=1).epoch(0).counts
    assert (counts.truncated, counts.dropped) == (4, {"answer_exceeds_row": 2})


def test_too_long_is_an_error_when_asked(make_corpus):
    corpus = make_corpus({"a": [([1, 2, 3], [(2, 1, 1.0)]), ([1] * 9, [(2, 1, 1.0)])]})
    with pytest.raises(
        UserError, match=r"1 documents are longer than pack.seq_len=4 tokens \(the longest has 9\)"
    ):
        planner(corpus, seq_len=4, too_long="error").epoch(0)
    assert planner(corpus, seq_len=9, too_long="error").epoch(0).counts.examples == 2


def test_a_row_shorter_than_every_document_names_the_shortest(make_corpus):
    corpus = make_corpus({"a": [([1] * 12, [(2, 1, 1.0)]), ([1] * 9, [(2, 1, 1.0)])]})
    with pytest.raises(UserError, match=r"shorter than every document \(the shortest has 9 tokens\)"):
        planner(corpus, seq_len=8, too_long="drop").epoch(0)


def test_documents_without_targets_are_counted_and_nothing_but_them_is_an_error(make_corpus):
    corpus = make_corpus({"a": [([1, 2], []), ([1, 2], [(1, 1, 1.0)]), ([], [])]})
    plan = planner(corpus).epoch(0)
    assert documents(plan) == [(1, 0, 2)]
    assert plan.counts.dropped == {"no_target": 2}
    corpus = make_corpus({"b": [([1, 2], [])]})
    with pytest.raises(UserError, match="none of the 1 documents can be trained on"):
        planner(corpus).epoch(0)


def test_the_last_batch_is_spread_over_the_ranks(make_corpus):
    docs = [(np.arange(10), [(1, 9, 1.0)])] * 21  # two a row: 11 rows for batches of 4
    corpus = make_corpus({"a": docs})
    plan = planner(corpus, seq_len=20, rows_per_step=4, world_size=4).epoch(0)
    assert (plan.counts.rows, plan.n_steps) == (11, 3)
    last = plan.step(2)
    assert len(last.micro_rows) == 1
    assert sorted(row.tokens for row in dealt(last)) in ([10, 10, 10, 20], [10, 10, 20, 20])
    assert last.target_weight == 9 * sum(len(row.docs) for row in dealt(last))


def test_fewer_documents_than_ranks_leave_empty_rows_not_missing_micro_steps(make_corpus):
    corpus = make_corpus({"a": [([1, 2, 3], [(1, 2, 1.0)])] * 2})
    step = planner(corpus, rows_per_step=4, world_size=4).epoch(0).step(0)
    assert [len(micro) for micro in step.micro_rows] == [4]
    batches = [collate(corpus, rank) for rank in step.micro_rows[0]]
    assert sorted(len(b.doc_ids) for b in batches) == [0, 0, 1, 1]
    assert all(len(b.input_ids) > 0 for b in batches)  # an idle rank still runs the model
    assert step.target_weight == 4.0


def test_without_packing_each_document_has_its_row(random_corpus):
    corpus = random_corpus(50)
    plan = planner(corpus, packing=False).epoch(0)
    assert all(len(row.docs) == 1 for i in range(plan.n_steps - 1) for row in plan.rows(i))
    assert plan.counts.rows == 50
    assert sorted(doc for doc, _, _ in documents(plan)) == list(range(50))


def test_counts(make_corpus):
    corpus = make_corpus(
        {"a": [([1] * 6, [(4, 2, 0.5)]), ([1] * 2, [(1, 1, 1.0)]), ([1] * 5, [(1, 4, 1.0)])]}
    )
    counts = planner(corpus, seq_len=8, rows_per_step=1).epoch(0).counts
    assert dataclasses.asdict(counts) == {
        "drawn": 3,
        "examples": 3,
        "tokens": 13,
        "target_tokens": 7,
        "target_weight": 6.0,
        "rows": 2,
        "fill": 13 / 16,
        "steps": 2,
        "truncated": 0,
        "dropped": {},
        "duplicates": 0,
    }


def test_task_table_before_and_after_mixing(make_corpus):
    a = [([1] * 4, [(2, 2, 1.0)]), ([1] * 6, [(1, 5, 1.0)])]
    b = [([1] * 8, [(6, 2, 1.0)])]
    corpus = make_corpus({"a": a, "b": b})
    plan = planner(corpus, seq_len=6, mixture=Mixture(sources={"b": SourceMix(epochs=3.0)})).epoch(0)
    table = {t.task: t for t in plan.task_table()}
    even, odd = table["even"], table["odd"]
    assert (even.examples_before, even.tokens_before) == (2, 12)
    assert (even.examples_after, even.tokens_after, even.target_tokens_after) == (4, 4 + 3 * 6, 2 + 3 * 2)
    assert (even.share_after, even.epochs) == (0.8, 2.0)
    assert (odd.examples_after, odd.tokens_after, odd.target_tokens_after) == (1, 6, 5)


def test_repeats_of_a_mixture_are_all_trained(random_corpus):
    corpus = random_corpus(90)
    mixture = Mixture(sources={"a": SourceMix(epochs=3.0)})
    plan = planner(corpus, mixture=mixture).epoch(0)
    times = np.bincount([doc for doc, _, _ in documents(plan)], minlength=90)
    assert times.tolist() == [3] * 30 + [1] * 60


def test_an_epoch_is_planned_once_and_never_lies_beside_another(random_corpus, monkeypatch):
    """At 100 million documents a plan takes seconds, and gigabytes on every rank."""
    planned, plan = [], Planner._plan

    def watched(self, epoch):
        gc.collect()
        assert not any(there() for _, there in planned)
        made = plan(self, epoch)
        planned.append((epoch, weakref.ref(made)))
        return made

    monkeypatch.setattr(Planner, "_plan", watched)
    one = planner(random_corpus(60))
    first = one.epoch(0)
    assert not any(np.shares_memory(row.docs, first.docs) for row in first.rows(0))
    del first
    steps = list(one.steps(Position(), epochs=3))
    assert {s.epoch for s, _ in steps} == {0, 1, 2}
    assert [epoch for epoch, _ in planned] == [0, 1, 2]


def test_resume_from_any_position_continues_as_if_never_stopped(random_corpus):
    corpus = random_corpus(200)
    whole = list(planner(corpus).steps(Position(), epochs=2))
    n = planner(corpus).epoch(0).n_steps
    assert whole[-1][1] == Position(step=len(whole), epoch=2)
    assert whole[n - 1][1] == Position(step=n, epoch=1)
    for k in (1, n - 1, n, len(whole) - 1):
        state = whole[k - 1][1]
        rest = list(planner(corpus, world_size=2).steps(state, epochs=2))
        assert [(p.epoch, p.step) for p, _ in rest] == [(p.epoch, p.step) for p, _ in whole[k:]]
        assert [as_set(dealt(p)) for p, _ in rest] == [as_set(dealt(p)) for p, _ in whole[k:]]
    assert list(planner(corpus).steps(Position(epoch=2), epochs=2)) == []


def test_balance_orders_micro_steps_by_cost(random_corpus):
    corpus = random_corpus(600, longest=256)
    default = planner(corpus, world_size=2).epoch(0)
    window = planner(corpus, world_size=2, balance_window=8).epoch(0)
    random = []
    for i in range(default.n_steps):
        rows = default.rows(i)
        costs = [COST.row_cost(r.tokens, float((r.lengths.astype(float) ** 2).sum())) for r in rows]
        random.append(
            sum(max(costs[k : k + 2]) for k in range(0, 8, 2))
            / sum(np.mean(costs[k : k + 2]) for k in range(0, 8, 2))
        )
    by_default = np.mean([default.step(i).imbalance for i in range(default.n_steps)])
    in_window = np.mean([window.step(i).imbalance for i in range(window.n_steps - 1)])
    assert in_window < by_default < np.mean(random)


def test_what_a_device_spends_deals_rows_to_micro_steps_but_does_not_choose_them(random_corpus):
    corpus = random_corpus(600, longest=256)
    by_pairs = CostModel(linear_flops_per_token=0.0, attention_flops_per_pair=1.0)
    plain, dealt_by_pairs = (
        planner(corpus, world_size=2, balance_window=4, micro_cost=cost).epoch(0) for cost in (None, by_pairs)
    )
    assert plain.hash == dealt_by_pairs.hash
    orders = [
        [[row.docs.tolist() for row in dealt(plan.step(i))] for i in range(plan.n_steps)]
        for plan in (plain, dealt_by_pairs)
    ]
    assert orders[0] != orders[1]
    assert [sorted(step) for step in orders[0]] == [sorted(step) for step in orders[1]]


def test_nothing_here_imports_torch():
    import subprocess

    code = "import sys, sft_dist.batch, sft_dist.mix, sft_dist.pack, sft_dist.shards; print('torch' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        == "False\n"
    )


def test_a_length_curriculum_orders_the_rows_of_the_first_steps_only(random_corpus):
    corpus = random_corpus(400)
    plain, short = planner(corpus).epoch(0), planner(corpus, short_first_steps=4).epoch(0)
    rows = [[plan.rows(step) for step in range(plan.n_steps)] for plan in (plain, short)]
    assert [as_set(r) for r in rows[1][4:]] == [as_set(r) for r in rows[0][4:]]
    assert as_set(chain(*rows[1][:4])) == as_set(chain(*rows[0][:4]))
    lengths = [
        np.mean([np.square(row.lengths, dtype=float).sum() / row.tokens for row in batch])
        for batch in rows[1][:4]
    ]
    assert lengths == sorted(lengths)
    assert short.hash != plain.hash
    assert planner(corpus, short_first_steps=4).epoch(0).hash == short.hash
    second = planner(corpus, short_first_steps=4).epoch(1)
    assert second.hash == planner(corpus).epoch(1).hash


def test_the_heaviest_steps_are_those_with_the_most_expensive_rows(random_corpus):
    plan = planner(random_corpus(400)).epoch(0)
    worst = [
        max(
            COST.row_cost(row.tokens, float((row.lengths.astype(float) ** 2).sum()), 0.0)
            for row in plan.rows(i)
        )
        for i in range(plan.n_steps)
    ]
    # the head's share is left out here, so the order is compared by cost, not step by step
    found = plan.heaviest(3)
    assert len(set(found)) == 3
    assert min(worst[i] for i in found) >= 0.99 * sorted(worst)[-3]
    assert sorted(plan.heaviest(plan.n_steps)) == list(range(plan.n_steps))
