"""Best of n by verifiers, constraints, own prompts, several teachers, rare tasks: against a real server, and killed anywhere."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
from scripted_server import Fault, ScriptedServer, prompt_of
from scripted_teacher import phrase, rng_of, teach

from sft_dist.config.load import load_config
from sft_dist.core.errors import UserError
from sft_dist.core.files import read_jsonl
from sft_dist.core.records import Example
from sft_dist.evals.metrics import metric_of_task
from sft_dist.pipelines.data.construct import construct
from sft_dist.sources import open_source
from sft_dist.verifiers.table import keeps, read_check

SUMS = [
    {"kind": f"sum{i % 3}", "question": f"What is {i} plus {i * i % 7}?", "result": str(i + i * i % 7), "tests": [f"assert f() == {i}", "assert True"], "number": i}
    for i in range(18)
] + [{"kind": "rare", "question": "What is 100 plus 1?", "result": "101", "tests": ["assert f() == 18"], "number": 18}]  # fmt: skip


def write_config(
    folder: Path, url: str, sets: str, data: str = "data", source: str = "", more: str = ""
) -> Path:
    rows = folder / "sums.jsonl"
    rows.write_text("".join(json.dumps(r) + "\n" for r in SUMS))
    file = folder / f"{data}.yaml"
    file.write_text(
        f"""
name: x
model: {{path: some/model}}
data:
  dir: {folder / data}
  sources:
    sums: {{kind: alpaca, path: {rows}, instruction_field: question, output_field: result, task: "{{kind}}", {source}}}
construct:
  teacher: {{model: m, url: "{url}", backoff_s: 0.01, timeout_s: 20}}
  {more}
  sets: {sets}
"""
    )
    return file


def run(folder, server, sets, data="data", source="", more="", overrides=()):
    return construct(load_config([*overrides], write_config(folder, server.url, sets, data, source, more)))


def sometimes_right(body):
    """A teacher that is right in one answer of three, decided by the whole request."""
    a, b = map(int, re.findall(r"\d+", prompt_of(body))[:2])
    rng = rng_of(body)
    return (
        f"{a} and {b}: the answer is {a + b if rng.random() < 1 / 3 else a + b + 1}. {phrase(rng)}"
        if rng.random() < 0.9
        else " "
    )


BEST = "{best: {method: answer, seeds: [sums], samples: 6, verify: {number: {}}}}"


def right_number(body):
    text = sometimes_right(body)
    return text.split(".")[0]


def test_the_first_answer_that_passes_is_kept_and_no_more_is_bought(tmp_path):
    with ScriptedServer(answer=right_number) as server:
        made = run(tmp_path, server, BEST)["best"]
        asked = Counter(prompt_of(s.body) for s in server.seen)
    kept = {e["messages"][0]["content"]: e["messages"][1]["content"] for e in read_jsonl(made.path)}
    assert 5 < len(kept) < 19
    assert made.dropped == {"unverified": 19 - len(kept)} or set(made.dropped) == {"unverified", "empty"}
    for row in SUMS:
        if row["question"] in kept:
            assert kept[row["question"]].endswith(f"the answer is {row['result']}")
            assert 1 <= asked[row["question"]] <= 6
        else:
            assert asked[row["question"]] == 6
    assert any(asked[q] == 1 for q in kept)
    assert any(1 < asked[q] < 6 for q in kept)
    dropped = read_jsonl(made.path.parent / "dropped.jsonl")
    assert all(
        re.search(r"number: the last number is \d+\.0, not \d+\.0", d["detail"])
        for d in dropped
        if d["reason"] == "unverified"
    )


def test_several_different_answers_are_kept(tmp_path):
    sets = "{best: {method: answer, seeds: [sums], samples: 12, keep: 3, verify: {exact: {}}}}"
    with ScriptedServer(
        answer=lambda b: sometimes_right(b).split(".")[0] + f"{' ' * (rng_of(b).randrange(9) % 2)}"
    ) as server:
        same = run(tmp_path, server, sets)["best"]
    # white space aside they are one answer
    assert max(Counter(e["messages"][0]["content"] for e in read_jsonl(same.path)).values()) == 1
    with ScriptedServer(answer=lambda b: f"{phrase(rng_of(b))}: {right_number(b)}") as server:
        made = run(tmp_path, server, sets, "other")["best"]
    many = Counter(e["messages"][0]["content"] for e in read_jsonl(made.path))
    assert max(many.values()) == 3
    assert len({e["id"] for e in read_jsonl(made.path)}) == sum(many.values()) == made.examples


def test_code_is_kept_where_the_tests_of_its_record_pass(tmp_path):
    sets = "{code: {method: answer, seeds: [sums], samples: 3, count: 6, verify: {unit_tests: {cpu_seconds: 5}}, reference_field: tests}}"

    def program(body):
        number = SUMS[[r["question"] for r in SUMS].index(prompt_of(body))]["number"]
        return f"```python\ndef f():\n    return {number + (rng_of(body).random() < 0.5)}\n```"

    with ScriptedServer(answer=program) as server:
        made = run(tmp_path, server, sets, source="prompts: true")["code"]
    examples = read_jsonl(made.path)
    assert 2 <= len(examples) <= 6
    for e in examples:
        number = SUMS[[r["question"] for r in SUMS].index(e["messages"][0]["content"])]["number"]
        assert f"return {number}\n" in e["messages"][1]["content"]
    # prompts have no answer of their own: without a field there is nothing to compare with, and nothing is bought
    with ScriptedServer(answer=program) as server:
        with_none = run(
            tmp_path,
            server,
            "{b: {method: answer, seeds: [sums], verify: {exact: {}}}}",
            "none",
            "prompts: true",
        )["b"]
        assert with_none.dropped == {"no_reference": 19}
        assert not server.seen


def test_killed_anywhere_nothing_is_bought_twice(tmp_path):
    teacher = ["construct.teacher.concurrency=1"]
    with ScriptedServer(answer=right_number) as server:
        run(tmp_path, server, BEST, "whole", overrides=teacher)
        total = len(server.seen)
    points = list(range(3, total, 11))
    kills = len(points)
    child = 0

    def faults(number, _):
        if points and number >= points[0]:
            points.pop(0)
            os.kill(child, signal.SIGKILL)
            time.sleep(0.05)
            return Fault("silent")
        return None

    with ScriptedServer(answer=right_number, faults=faults) as server:
        file = write_config(tmp_path, server.url, BEST, "killed")
        codes = []
        while not codes or codes[-1] == -signal.SIGKILL:
            child = os.fork()
            if not child:
                try:
                    construct(load_config(teacher, file))
                except BaseException:  # noqa: BLE001  the child must never return into the test
                    os._exit(3)
                os._exit(0)
            codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    assert codes == [-signal.SIGKILL] * kills + [0]
    assert kills > 3
    assert set(server.served.values()) == {1}
    assert len(server.served) == total
    for name in ("answers.jsonl", "examples.jsonl", "dropped.jsonl", "counts.json"):
        one, two = (tmp_path / d / "construct/best" / name for d in ("whole", "killed"))
        assert one.read_bytes() == two.read_bytes()


# --- constraints -----------------------------------------------------------------------------------------------------


def obeys(body):
    """A teacher that keeps some constraints, when it is in the mood."""
    prompt, rng = prompt_of(body), rng_of(body)
    words = 250 if "at least" in prompt else 5
    text = " ".join(rng.choice(["some", "words", "here", "follow"]) for _ in range(words))
    if "capital" in prompt:
        text = text.upper()
    return text + (", so" if rng.random() < 0.4 else "")


def test_constraints_stand_in_the_record_and_hold(tmp_path):
    sets = "{led: {method: constrain, seeds: [sums], samples: 3, kinds: [at_least_words, at_most_words, no_commas, capitals, lower_case]}}"
    with ScriptedServer(answer=obeys) as server:
        made = run(tmp_path, server, sets)["led"]
        asked = [prompt_of(s.body) for s in server.seen]
    with ScriptedServer(answer=obeys) as server:
        again = run(tmp_path, server, sets, "again")["led"]
    assert made.path.read_bytes() == again.path.read_bytes()
    config = load_config(
        ["data.sources.led.kind=examples", f"data.sources.led.path={made.path}"], tmp_path / "data.yaml"
    )
    examples = [e for e in open_source("led", config.data.sources["led"]) if isinstance(e, Example)]
    assert len(examples) == made.examples > 6
    assert set(made.dropped) <= {"unverified"}
    number = Counter(len(e.checks) for e in examples)
    assert set(number) == {1, 2}
    for e in examples:
        kinds = [read_check(c)[0] for c in e.checks]
        assert e.task == f"led/{kinds[0]}"
        assert keeps(e.output, e.checks)
        assert e.question in {r["question"] for r in SUMS}
        assert not {"capitals", "lower_case"} <= set(kinds)
        assert not {"at_least_words", "at_most_words"} <= set(kinds)
        assert any(o.startswith("task:sum") or o == "task:rare" for o in e.origin)
        assert {o for o in e.origin if o.startswith("task:led/")} == {f"task:led/{k}" for k in kinds}
    assert all("\n\n" in text for text in asked)
    assert metric_of_task("auto", [e.answers for e in examples], checked=True) == "checks"
    broken = json.loads(made.path.read_text().splitlines()[0]) | {"checks": ['{"verifier": "unit_tests"}']}
    made.path.write_text(json.dumps(broken) + "\n")
    with pytest.raises(UserError, match="'checks': unit_tests cannot stand in a record"):
        open_source("led", config.data.sources["led"])


# --- several turns ---------------------------------------------------------------------------------------------------


def talks(body):
    """A teacher whose user ends one conversation of three, and which fails at one answer of ten."""
    prompt, rng = prompt_of(body), rng_of(body)
    if prompt.endswith("User:"):
        return "END." if rng.random() < 1 / 3 else f"User: And {phrase(rng).lower()}?"
    return "" if rng.random() < 0.3 else f"Answer {len(body['messages'])}: {phrase(rng)}"


def test_conversations_go_on_until_the_user_or_the_teacher_ends(tmp_path):
    sets = "{talk: {method: converse, seeds: [sums], turns: TURNS, attempts: 1}}"
    with ScriptedServer(answer=talks) as server:
        made = run(tmp_path, server, sets.replace("TURNS", "2"))["talk"]
        two = read_jsonl(made.path)
        more = run(tmp_path, server, sets.replace("TURNS", "4"))["talk"]
        assert set(server.served.values()) == {1}
    with ScriptedServer(answer=talks) as server:
        whole = run(tmp_path, server, sets.replace("TURNS", "4"), "whole")["talk"]
    assert whole.path.read_bytes() == more.path.read_bytes()
    examples = read_jsonl(more.path)
    assert len(examples) + sum(more.dropped.values()) == len(SUMS)
    assert set(more.dropped) == {"empty"}
    lengths = Counter(len(e["messages"]) for e in examples)
    assert set(lengths) <= {2, 4, 6, 8}
    assert len(lengths) > 2
    by_prompt = {e["messages"][0]["content"]: e for e in examples}
    for short in two:
        long = by_prompt[short["messages"][0]["content"]]["messages"]
        assert long[: len(short["messages"])] == short["messages"]
    for e in examples:
        assert [m["role"] for m in e["messages"]] == ["user", "assistant"] * (len(e["messages"]) // 2)
        assert all(m["content"].startswith("And ") for m in e["messages"][2::2])
        assert [m["content"].split(":")[0] for m in e["messages"][1::2]] == [
            f"Answer {n}" for n in range(1, len(e["messages"]), 2)
        ]
        assert e["task"].startswith(("sum", "rare"))
        assert f"task:{e['task']}" in e["origin"]
    with pytest.raises(UserError, match="asked with endpoint=completions, by single texts"):
        load_config(
            [
                "construct.teacher={model: m, endpoint: completions}",
                "construct.sets.t={method: converse, seeds: [demo]}",
            ]
        )


# --- prompts of one's own, several teachers, rare tasks --------------------------------------------------------------

OWN = """
system: You write tasks.
tasks: {prompt: "Come up with a series of tasks:\\n{shown}\\n{first}.", item: "{number}. {instruction}"}
classification: {prompt: "Finite labels?\\n{shown}\\n\\nTask: {instruction}\\nIs it classification?", item: "Task: {instruction}\\nIs it classification? {answer}"}
input_first: {prompt: "Examples, {most} at most.\\n\\n{shown}\\n\\nTask: {instruction}", item: "Task: {instruction}\\n{instances}"}
output_first: {prompt: "Labels first.\\n\\n{shown}\\n\\nTask: {instruction}", item: "Task: {instruction}\\n{instances}", instance: "Class label: {output}\\n{input}"}
evolve: {longer: "Make it longer.\\n#Given#: {instruction}\\n#Rewritten#:", rarer: "Make it rarer.\\n#Given#: {instruction}\\n#Rewritten#:"}
equal: "1: {first}\\n2: {second}\\nEqual?"
answer: "Below is an instruction with an input.\\n### Instruction:\\n{instruction}\\n### Input:\\n{input}\\n### Response:"
answer_without_input: "Below is an instruction.\\n### Instruction:\\n{instruction}\\n### Response:"
"""


def published(body):
    prompt, rng = prompt_of(body), rng_of(body)
    if prompt.startswith("Come up with"):
        return "\n".join(f"{i}. {phrase(rng)}" for i in range(9, 14))
    if prompt.startswith("Finite"):
        return "No"
    if prompt.startswith("Examples"):
        return f"Example 1\nInput: {phrase(rng)}\nOutput: {phrase(rng)}"
    if "#Given#" in prompt:
        return prompt.split("#Given#: ")[1].split("\n")[0] + f" and {phrase(rng).lower()}"
    return "Different" if prompt.endswith("Equal?") else f"Here: {phrase(rng)}"


def test_own_prompts_are_asked_as_they_stand(tmp_path):
    (tmp_path / "own.yaml").write_text(OWN)
    own = f"prompts: {tmp_path / 'own.yaml'}"
    sets = (
        f"{{grown: {{method: self_instruct, seeds: [sums], count: 6, round_requests: 1, {own}}}, "
        f"evolved: {{method: evolve, seeds: [sums], count: 4, epochs: 1, {own}}}, answered: {{method: answer, seeds: [sums], count: 3, {own}}}}}"
    )
    with ScriptedServer(answer=published) as server:
        made = run(tmp_path, server, sets)
        bodies = [s.body for s in server.seen]
        assert all(m.examples for m in made.values())
        assert all(b["messages"][0] == {"role": "system", "content": "You write tasks."} for b in bodies)
        texts = [prompt_of(b) for b in bodies]
        heads = Counter(re.split(r"[ ,.\n]", t)[0] for t in texts)
        assert set(heads) == {"Come", "Finite", "Examples", "Make", "1:", "Below"}
        first = next(t for t in texts if t.startswith("Come")).splitlines()
        assert [line.split(" ")[0] for line in first[1:]] == [f"{i}." for i in range(1, 10)]
        assert first[-1] == "9."
        assert f"Below is an instruction.\n### Instruction:\n{SUMS[0]['question']}\n### Response:" in texts
        # another wording is another set
        (tmp_path / "own.yaml").write_text(OWN.replace("with an input", "and its input"))
        with pytest.raises(UserError, match="begun with another templates"):
            run(tmp_path, server, sets)
    for text, words in {
        "taks: {prompt: x}": "taks: unknown key. Did you mean 'tasks'",
        "evolve: {a: no slot}": r"\{instruction\} is missing",
        "equal: '{first} {secnd}'": r"\{secnd\} is no slot here",
        "answer_without_input: '{instruction}'": "stands without answer",
    }.items():
        (tmp_path / "own.yaml").write_text(text)
        with (
            ScriptedServer(answer=teach) as server,
            pytest.raises(UserError, match=rf"construct\.sets\.grown\.prompts: .*{words}"),
        ):
            run(tmp_path, server, sets, "wrong")


def test_each_set_names_its_teacher(tmp_path):
    sets = (
        "{ours: {method: answer, seeds: [sums], count: 5}, theirs: {method: answer, seeds: [sums], count: 5, teacher: big}, "
        "checked: {method: answer, seeds: [theirs], teacher: big}}"
    )
    with ScriptedServer(answer=lambda _: "small") as small, ScriptedServer(answer=lambda _: "big") as big:
        more = f'teachers: {{big: {{model: m, url: "{big.url}", budget_tokens: 100000}}}}'
        source = "}\n    theirs: {kind: examples, path: " + str(
            tmp_path / "data/construct/theirs/examples.jsonl"
        )
        made = run(tmp_path, small, sets, more=more, source=source)
        assert (len(small.seen), len(big.seen)) == (5, 10)
        said = {name: {e["messages"][-1]["content"] for e in read_jsonl(m.path)} for name, m in made.items()}
        assert said == {"ours": {"small"}, "theirs": {"big"}, "checked": {"big"}}
        run(tmp_path, small, sets, more=more, source=source)
        assert (len(small.seen), len(big.seen)) == (5, 10)
        assert list((tmp_path / "data/construct/cache/big").glob("segment-*"))
        with pytest.raises(UserError, match=r"raise construct\.teachers\.big\.budget_tokens"):
            run(
                tmp_path,
                small,
                sets,
                "poor",
                more=more.replace("100000", "1000"),
                source=source.replace("data/", "poor/"),
            )
        with pytest.raises(
            UserError,
            match="'bigger', which is none of construct.teachers; there are big.*Did you mean 'big'",
        ):
            run(tmp_path, small, sets.replace("teacher: big", "teacher: bigger"), more=more)


def test_generation_starts_from_rare_tasks(tmp_path):
    with ScriptedServer(answer=lambda _: "fine") as server:
        made = run(tmp_path, server, "{few: {method: answer, seeds: [sums], rare_below: 3}}")["few"]
        assert [prompt_of(s.body) for s in server.seen] == ["What is 100 plus 1?"]
        assert made.examples == 1
        with pytest.raises(UserError, match="rare_below=1 leaves no task of sums: the rarest has 1 examples"):
            run(tmp_path, server, "{none: {method: answer, seeds: [sums], rare_below: 1}}", "none")


@pytest.mark.parametrize(
    "options, words",
    [
        ("samples: 3", "samples would change nothing, because nothing is verified"),
        ("verify: {exakt: {}}", "verify: 'exakt' is no verifier"),
        ("verify: {exact: {}}, keep: 2", "keep=2 answers cannot come of samples=1"),
        (
            "method: constrain, verify: {exact: {}}",
            "compares with an answer that a prompt with a constraint has none of",
        ),
        ("method: constrain, kinds: [exact]", "'exact' is nothing that an instruction can ask for"),
    ],
)
def test_mistakes_in_the_config(options, words):
    method = "" if "method" in options else "method: answer, "
    with pytest.raises(UserError, match=words):
        load_config(["construct.teacher.model=m", f"construct.sets.g={{{method}seeds: [demo], {options}}}"])
