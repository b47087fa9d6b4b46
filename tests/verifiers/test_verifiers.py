"""Each verifier on answers that one checks by eye; the sandbox on programs that misbehave; what a record may ask for."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from sft_dist.evals.metrics import METRICS
from sft_dist.verifiers.code_sandbox import code_of, failing_tests, has_network
from sft_dist.verifiers.table import CONSTRAINTS, VERIFIERS, broken, check_of, fault, keeps, read_check

FIVE = "One two three, four five."
CASES = {
    "at_least_words": ({"words": 5}, FIVE, "One two three four."),
    "at_most_words": ({"words": 5}, FIVE, FIVE + " Six."),
    "sentences": ({"number": 2}, "It rains. I stay!", "It rains."),
    "bullets": ({"number": 2}, "- a\n- b", "- a\n- b\n- c"),
    "keyword": ({"word": "river"}, "The River, wide.", "The rivers."),
    "no_keyword": ({"word": "the"}, "A theme.", "By The sea."),
    "capitals": ({}, "ALL OF IT.", "All of it."),
    "lower_case": ({}, "all of it.", "All of it."),
    "no_commas": ({}, "a b", "a, b"),
    "json": ({}, '{"a": 1}', "{a: 1}"),
    "start": ({"text": "Well"}, " well, yes", "Oh well"),
    "end": ({"text": "that is all"}, "So that is all.", "That is all of it."),
    "quotes": ({}, '"yes"', 'yes "no"'),
    "language": ({"code": "de"}, "Der Hund schläft heute lange im Garten hinter dem Haus.", "The dog sleeps in the garden today."),
}  # fmt: skip


def test_every_constraint_is_tried_and_can_be_asked_for():
    assert set(CASES) == set(CONSTRAINTS)
    for name in CONSTRAINTS:
        for options in VERIFIERS[name].draws:
            assert fault(name, options) is None
            assert VERIFIERS[name].wording(options).endswith(".")
        assert VERIFIERS[name].aspect


@pytest.mark.parametrize("name", CASES)
def test_a_constraint_holds_and_breaks(name):
    options, good, bad = CASES[name]
    assert broken(good, name, options) is None
    assert name in broken(bad, name, options)
    check = check_of(name, options)
    assert keeps(good, [check])
    assert not keeps(bad, [check])
    assert METRICS["checks"].function(good, [check]) == 1
    assert METRICS["checks"].function(bad, [check]) == 0


@pytest.mark.parametrize(
    "name, answer, reference, passes",
    [
        ("exact", "Lima.", "lima", True),
        ("exact", "The answer is **Lima**.", "Lima", True),
        ("exact", "Reasoning about Cusco.\n#### 1,200", "1200", True),
        ("exact", r"So it is \boxed{7}.", "7", True),
        ("exact", "Cusco", "Lima", False),
        ("exact", "not Lima", "Lima", False),
        ("number", "So 3 + 4 gives 7 apples.", "The rationale\n#### 7", True),
        ("number", "It costs $12,345.50.", "12345.5", True),
        ("number", "It costs 1,200", "200", False),
        ("number", "7 at first, then 8", "7", False),
        ("number", "none", "7", False),
    ],
)
def test_answers_against_a_reference(name, answer, reference, passes):
    assert (broken(answer, name, {}, [reference]) is None) == passes


# --- unit tests ------------------------------------------------------------------------------------------------------

ADD = "def add(a, b):\n    return a + b\n"
TESTS = ["assert add(1, 2) == 3", "assert add(-1, 1) == 0"]


def test_code_passes_or_says_what_failed():
    good = f"Here it is:\n```python\n{ADD}```\nIt adds."
    assert code_of(good) == ADD
    assert broken(good, "unit_tests", {}, TESTS) is None
    assert "AssertionError" in broken(good.replace("+", "-"), "unit_tests", {}, TESTS)
    assert "SyntaxError" in broken("def add(", "unit_tests", {}, TESTS)
    assert "NameError" in broken("pass", "unit_tests", {}, TESTS)


@pytest.mark.parametrize(
    "code, words",
    [
        ("import sys; sys.exit(0)", "ended before the tests did"),
        ("import os; os._exit(0)", "ended before the tests did"),
        ("x = bytearray(3 << 30)", "MemoryError"),
        ("open('big', 'wb').write(bytes(4 << 20))", "File too large"),
        ("files = [open('/dev/null') for _ in range(100)]", "Too many open files"),
        ("import numpy", "No module named 'numpy'"),
        ("while True: pass", "used up 1 s of CPU time"),
        ("import resource; resource.setrlimit(resource.RLIMIT_CPU, (99, 99))", "Error"),
    ],
)
def test_programs_that_misbehave_are_stopped(code, words, monkeypatch):
    monkeypatch.setattr(
        "sft_dist.verifiers.code_sandbox.WAIT_FACTOR", 120
    )  # a second of CPU time may take long here
    assert words in failing_tests(code, "assert True", cpu_seconds=1)


def test_the_folder_is_its_own_and_leaves(monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "x")
    home = "import os\nassert os.environ['HOME'] == os.getcwd() and not os.listdir('.')\nassert 'SECRET_TOKEN' not in os.environ"
    assert failing_tests("", home) is None
    said = failing_tests("import os\nopen('kept', 'w').close()\nraise OSError(os.getcwd())", "")
    assert not Path(said.partition(": ")[2]).exists()


def test_a_process_that_outlives_the_program_keeps_nobody_waiting():
    """As root a program may start processes, and one of them holds the pipe."""
    code = "import os, time\nif os.fork() == 0:\n os.setsid()\n time.sleep(30)\n os._exit(0)\nos._exit(0)"
    began = time.monotonic()
    assert failing_tests(code, "") is not None
    assert time.monotonic() - began < 25


def test_a_program_that_only_waits_is_ended(monkeypatch):
    monkeypatch.setattr("sft_dist.verifiers.code_sandbox.WAIT_FACTOR", 2)
    start = time.monotonic()
    assert "did not end in 2 s" in failing_tests("import time; time.sleep(60)", "", cpu_seconds=1)
    assert time.monotonic() - start < 30


def test_without_a_network_where_the_system_allows_it():
    if has_network():
        pytest.skip("this system does not let a process leave the network")
    said = failing_tests("import socket\nsocket.create_connection(('127.0.0.1', 80), 1)", "")
    assert "unreachable" in said


# --- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, options, words",
    [
        ("exakt", {}, "is no verifier.*Did you mean 'exact'"),
        ("json", {"strict": 1}, "json has no option 'strict'; it has none"),
        ("at_most_words", {}, "needs words, such as 8"),
        ("at_most_words", {"words": "8"}, "is of no use"),
        ("at_most_words", {"words": 0}, "is of no use"),
        ("at_most_words", {"words": True}, "is of no use"),
        ("keyword", {"word": ""}, "is of no use"),
    ],
)
def test_mistakes_in_options(name, options, words):
    assert __import__("re").search(words, fault(name, options))


@pytest.mark.parametrize(
    "check, words",
    [
        ('{"verifier": "unit_tests"}', "cannot stand in a record"),
        ('{"verifier": "exact"}', "cannot stand in a record"),
        ('["json"]', "is no JSON object"),
        ("json", "is no JSON object"),
        ('{"verifier": "keyword"}', "keyword needs word"),
    ],
)
def test_a_record_asks_for_no_code_and_for_nothing_unknown(check, words):
    with pytest.raises(ValueError, match=words):
        read_check(check)
