"""Whole sets against a real server: ended anywhere and gone on with, the same files; nothing bought twice; nothing held out."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from scripted_server import Fault, ScriptedServer, prompt_of, status
from scripted_teacher import phrase, teach

from sft_dist.client import UnavailableError
from sft_dist.config.load import load_config
from sft_dist.construct.novelty import NoveltyPool
from sft_dist.core.errors import UserError
from sft_dist.core.files import read_jsonl
from sft_dist.core.records import Drop, Example
from sft_dist.holdout import Holdout, split
from sft_dist.pipelines.data.construct import construct
from sft_dist.sources import open_source

SECRET = "Unravel the hidden evaluation riddle"
SETS = {
    "grown": "{method: self_instruct, seeds: [seeds], count: 40, round_requests: 3}",
    "plain": "{method: self_instruct, seeds: [seeds], count: 15, round_requests: 2, sampling: {temperature: 1.0}}",
    "wild": "{method: instructwild, seeds: [seeds], count: 25, round_requests: 2}",
    "evolved": "{method: evolve, seeds: [seeds], epochs: 3, count: 12}",
    "answered": "{method: answer, seeds: [seeds], count: 20}",
}


def write_seeds(folder: Path) -> Path:
    """30 tasks as Self-Instruct has them, and one of a held-out task."""
    rng = random.Random(1)
    file = folder / "seeds.jsonl"
    lines = [
        {
            "name": f"task_{i}",
            "instruction": phrase(rng),
            "instances": [{"input": "" if i % 3 else phrase(rng), "output": phrase(rng)}],
            "is_classification": i % 4 == 0,
        }
        for i in range(30)
    ]
    lines.insert(
        3, {"name": "secret", "instruction": SECRET, "instances": [{"input": "", "output": "x y z"}]}
    )
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def write_config(
    folder: Path, server: ScriptedServer, sets: str, data: str = "data", teacher: str = ""
) -> Path:
    seeds = write_seeds(folder)
    file = folder / f"{data}.yaml"
    file.write_text(
        f"""
name: x
model: {{path: some/model}}
data:
  dir: {folder / data}
  holdout: {{tasks: [secret]}}
  sources:
    seeds: {{kind: alpaca, path: {seeds}, instances_field: instances, task: "{{name}}"}}
construct:
  teacher: {{model: m, url: "{server.url}", backoff_s: 0.01, timeout_s: 10, {teacher}}}
  sets: {sets}
"""
    )
    return file


def outputs(folder: Path) -> dict[str, bytes]:
    """What a set consists of, and every journal."""
    return {p.name: p.read_bytes() for p in sorted(folder.glob("*.json*"))}


def run(folder: Path, server: ScriptedServer, sets: str, data: str = "data", teacher: str = "", **options):
    return construct(load_config([], write_config(folder, server, sets, data, teacher)), **options)


@pytest.mark.parametrize("name", SETS)
def test_a_set_does_not_depend_on_timing_or_concurrency(tmp_path, name):
    endpoint = "endpoint: completions, " if name == "plain" else ""
    with ScriptedServer(answer=teach) as server:
        made = run(tmp_path, server, f"{{{name}: {SETS[name]}}}", "one", endpoint + "concurrency: 1")[name]
    jitter = random.Random(0)
    with ScriptedServer(
        answer=teach, faults=lambda *_: Fault("slow", seconds=jitter.random() / 50)
    ) as server:
        run(tmp_path, server, f"{{{name}: {SETS[name]}}}", "many", endpoint + "concurrency: 8")
        assert server.peak > 1
    assert outputs(tmp_path / "one/construct" / name) == outputs(tmp_path / "many/construct" / name)
    examples = read_jsonl(made.path)
    assert len(examples) == made.examples > 5
    counts = json.loads((made.path.parent / "counts.json").read_text())
    assert counts == {"examples": made.examples, "dropped": made.dropped}
    assert len(read_jsonl(made.path.parent / "dropped.jsonl")) == sum(made.dropped.values())


def test_self_instruct_keeps_what_is_new_sound_and_descends_from_training_tasks(tmp_path):
    with ScriptedServer(answer=teach) as server:
        made = run(tmp_path, server, f"{{grown: {SETS['grown']}}}")["grown"]
        asked = [prompt_of(s.body) for s in server.seen]
    assert not any("hidden evaluation" in text for text in asked)  # neither shown nor a demonstration
    instructions = [line["kept"] for line in read_jsonl(made.path.parent / "instructions.jsonl")[1:]]
    texts = [text for kept in instructions for text, _, _ in kept]
    pool = NoveltyPool(0.7)
    for text in texts:
        assert pool.similar(text) is None
        pool.add(text)
    assert {"unfit_word", "length", "not_new"} <= set(made.dropped)
    # the first requests show 8 seeds; later ones 6, and 2 of what was made before their round
    assert {(len(h), len(m)) for _, h, m in instructions[0]} == {(8, 0)}
    assert {(len(h), len(m)) for _, h, m in instructions[-1]} == {(6, 2)}
    lists = [text for text in asked if "list of tasks" in text]
    assert all("\n8. " in text and "\n9. " not in text for text in lists)
    source = open_source("grown", load_config([], with_source(tmp_path, made.path)).data.sources["grown"])
    examples = [e for e in source if isinstance(e, Example)]
    assert len(examples) == made.examples
    for example in examples:
        assert split(example, Holdout(tasks=frozenset({"secret"}))) == "train"
        seeds = [o for o in example.origin if o.startswith("task:")]
        assert seeds
        assert "task:secret" not in seeds
        # a task that is held out later takes everything with it that it has a part in
        later = split(example, Holdout(tasks=frozenset({seeds[0].removeprefix("task:")})))
        assert isinstance(later, Drop)
        assert later.reason == "heldout_origin"


def with_source(folder: Path, path: Path) -> Path:
    file = folder / "train.yaml"
    file.write_text(
        f"model: {{path: some/model}}\ndata: {{sources: {{grown: {{kind: examples, path: {path}}}}}}}\n"
    )
    return file


def test_origin_counts_the_ancestors_of_generated_parents(tmp_path):
    sets = "{grown: {method: self_instruct, seeds: [seeds], count: 40, round_requests: 1, human: 1, machine: 1, classification_field: null}}"
    with ScriptedServer(answer=teach) as server:
        made = run(tmp_path, server, sets)["grown"]
    lines = read_jsonl(made.path.parent / "instructions.jsonl")[1:]
    ancestors: list[set[int]] = []
    for line in lines:
        ancestors += [set(h).union(*(ancestors[i] for i in m)) for _, h, m in line["kept"]]
    texts = [text for line in lines for text, _, _ in line["kept"]]
    seeds = [json.loads(line) for line in (tmp_path / "seeds.jsonl").read_text().splitlines()]
    names = [s["name"] for s in seeds if s["name"] != "secret"]
    kinds = [line["value"] for line in read_jsonl(made.path.parent / "classification.jsonl")[1:]]
    shown = set(
        range(8)
    )  # demonstrations for open tasks; there are none for labels: nobody says which seeds ask for them
    for example in read_jsonl(made.path):
        instruction = example["messages"][0]["content"][: (example.get("input_start") or 10**9)].strip()
        number = texts.index(instruction)
        expected = {f"task:{names[i]}" for i in ancestors[number] | (set() if kinds[number] else shown)}
        assert {o for o in example["origin"] if o.startswith("task:")} == expected
    assert max(map(len, ancestors)) > 2


def test_evolution_goes_on_from_what_survived(tmp_path):
    with ScriptedServer(answer=teach) as server:
        made = run(tmp_path, server, f"{{evolved: {SETS['evolved']}}}")["evolved"]
    texts = [e["messages"][0]["content"] for e in read_jsonl(made.path)]
    assert {t.count(", and then") for t in texts} == {1, 2, 3}
    assert {"no_gain", "refusal"} <= set(made.dropped)
    assert all(e["messages"][1]["content"].startswith("Here is") for e in read_jsonl(made.path))
    assert len(texts) + sum(made.dropped.values()) == 3 * 12


def test_answers_keep_the_task_and_the_input_of_their_prompt(tmp_path):
    with ScriptedServer(answer=lambda body: "fine") as server:
        made = run(tmp_path, server, f"{{answered: {SETS['answered']}}}")["answered"]
    examples = read_jsonl(made.path)
    assert [e["task"] for e in examples] == [f"task_{i}" for i in range(20)]
    assert all(
        e["messages"][-1]["content"] == "fine" and e["origin"][0] == f"task:{e['task']}" for e in examples
    )
    assert [i for i, e in enumerate(examples) if "input_start" in e] == [i for i in range(20) if i % 3 == 0]


def launch(config: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "sft_dist", "construct", str(config)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


KILLED = "{grown: {method: self_instruct, seeds: [seeds], count: 20, round_requests: 2}, again: {method: evolve, seeds: [seeds], epochs: 2, count: 6}}"


class Child:
    """A launch in a forked process: as mortal as a process of its own, without the seconds of starting one."""

    def __init__(self, config: Path) -> None:
        self.pid = os.fork()
        if not self.pid:
            try:
                construct(load_config([], config))
            except BaseException:  # noqa: BLE001  the child must never return into the test
                os._exit(3)
            os._exit(0)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def survive(tmp_path, start, teacher: str, points: list[int], total: int):
    """Launch until it ends, the launch being killed when the server has heard so many requests."""
    current = []

    def faults(number, _):
        if points and number >= points[0]:
            points.pop(0)
            current[-1].kill()
            time.sleep(0.05)  # the signal arrives before anything that this server still says
            return Fault("silent")
        return None

    with ScriptedServer(answer=teach, faults=faults, delay_s=0.002) as server:
        config = write_config(tmp_path, server, KILLED, "killed", teacher)
        codes = []
        while not codes or codes[-1] == -signal.SIGKILL:
            current.append(start(config))
            codes.append(current[-1].wait())
    assert codes[-1] == 0
    for name in ("grown", "again"):
        assert outputs(tmp_path / "killed/construct" / name) == outputs(tmp_path / "whole/construct" / name)
    assert len(server.served) == total
    return len(codes) - 1, sum(n - 1 for n in server.served.values())


@pytest.mark.parametrize("concurrency", [1, 4])
def test_killed_anywhere_it_ends_as_if_it_had_not_been(tmp_path, concurrency):
    teacher = f"concurrency: {concurrency}"
    with ScriptedServer(answer=teach) as server:
        run(tmp_path, server, KILLED, "whole", teacher)
        total = len(server.seen)
    points = list(range(0, total, 7))
    kills, twice = survive(tmp_path, Child, teacher, list(points), total)
    assert kills == len(points) > 8
    # an answer that had left the server when the process died is lost; with one request at a time there is none
    assert twice <= (0 if concurrency == 1 else kills * (concurrency - 1))


def test_the_command_is_killed_and_started_again(tmp_path):
    with ScriptedServer(answer=teach) as server:
        run(tmp_path, server, KILLED, "whole", "concurrency: 1")
        total = len(server.seen)
    kills, twice = survive(tmp_path, launch, "concurrency: 1", [total // 2], total)
    assert (kills, twice) == (1, 0)


def test_ctrl_c_keeps_what_is_on_its_way(tmp_path):
    with ScriptedServer(
        answer=teach, delay_s=2
    ) as server:  # all 20 would take 10 s: time to interrupt on a busy machine
        config = write_config(tmp_path, server, f"{{answered: {SETS['answered']}}}", teacher="concurrency: 4")
        process = launch(config)
        end = time.monotonic() + 30
        while len(server.seen) < 4 and time.monotonic() < end:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 130
        server.delay_s = 0
        construct(load_config([], config))
    assert len(server.served) == 20
    assert set(server.served.values()) == {1}


def test_a_spent_budget_says_what_is_left_and_more_goes_on(tmp_path):
    with ScriptedServer(answer=teach) as server:
        whole = run(tmp_path, server, f"{{evolved: {SETS['evolved']}}}", "whole")["evolved"]
        spent = json.loads((tmp_path / "whole/construct/launches.jsonl").read_text())
    with ScriptedServer(answer=teach) as server:
        for budget in (4000, 5500):
            with pytest.raises(
                UserError, match=r"-\d stands at item \d+ of 12.*raise construct.teacher.budget_tokens"
            ):
                run(tmp_path, server, f"{{evolved: {SETS['evolved']}}}", "data", f"budget_tokens: {budget}")
            assert not (tmp_path / "data/construct/evolved/examples.jsonl").exists()
        made = run(tmp_path, server, f"{{evolved: {SETS['evolved']}}}", "data", "budget_tokens: 1000000")[
            "evolved"
        ]
    assert made.path.read_bytes() == whole.path.read_bytes()
    assert set(server.served.values()) == {1}
    assert spent["answered"] == len(server.served)


def test_a_server_that_goes_down_is_a_failure_and_nothing_is_lost(tmp_path):
    config_sets = f"{{answered: {SETS['answered']}}}"
    with ScriptedServer(answer=teach, faults=lambda n, _: status(503) if n >= 10 else None) as server:
        with pytest.raises(UnavailableError, match=r"answers stands at item \d+ of 20"):
            run(tmp_path, server, config_sets, teacher="attempts: 2, concurrency: 1")
        server.faults = lambda *_: None
        run(tmp_path, server, config_sets, teacher="attempts: 2, concurrency: 1")
    assert set(server.served.values()) == {1}


def test_a_larger_count_goes_on_and_other_seeds_are_refused(tmp_path):
    with ScriptedServer(answer=teach) as server:
        few = run(
            tmp_path, server, "{g: {method: self_instruct, seeds: [seeds], count: 10, round_requests: 2}}"
        )["g"]
        first = read_jsonl(few.path)
        bought = len(server.served)
        more = run(
            tmp_path, server, "{g: {method: self_instruct, seeds: [seeds], count: 20, round_requests: 2}}"
        )["g"]
        assert read_jsonl(more.path)[: len(first)] == first
        assert more.examples > len(first)
        assert set(server.served.values()) == {1}
        assert len(server.served) > bought
        with pytest.raises(UserError, match="begun with another round_requests"):
            run(
                tmp_path, server, "{g: {method: self_instruct, seeds: [seeds], count: 20, round_requests: 3}}"
            )


def test_a_teacher_that_says_the_same_for_ever_is_stopped(tmp_path):
    with ScriptedServer(answer=lambda _: "9. Count the old bridges of the north") as server:
        with pytest.raises(
            UserError, match=r"last 10 rounds .* added no new instruction.*lower `count` to 1"
        ):
            run(tmp_path, server, "{g: {method: self_instruct, seeds: [seeds], count: 5, round_requests: 2}}")
        seen = len(server.seen)
        with pytest.raises(UserError, match=r"last 10 rounds"):
            run(tmp_path, server, "{g: {method: self_instruct, seeds: [seeds], count: 5, round_requests: 2}}")
        assert len(server.seen) == seen


def test_a_refused_request_is_dropped_with_the_servers_words(tmp_path):
    def faults(_, body):
        return (
            status(400, "prompt too long")
            if "task" not in prompt_of(body) and len(prompt_of(body)) % 5 == 0
            else None
        )

    with ScriptedServer(answer=teach, faults=faults) as server:
        made = run(tmp_path, server, f"{{answered: {SETS['answered']}}}")["answered"]
    assert made.dropped["refused_by_server"] > 0
    assert "prompt too long" in (made.path.parent / "dropped.jsonl").read_text()


def test_a_set_from_an_earlier_set_and_a_source_that_reads_it(tmp_path):
    sets = "{grown: {method: self_instruct, seeds: [seeds], count: 10, round_requests: 2}, better: {method: answer, seeds: [grown]}}"
    with ScriptedServer(answer=teach) as server:
        file = write_config(tmp_path, server, sets)
        path = tmp_path / "data/construct/grown/examples.jsonl"
        override = [f"data.sources.grown.path={path}", "data.sources.grown.kind=examples"]
        made = construct(load_config(override, file))
        with pytest.raises(UserError, match=r"'nowhere', which is no source"):
            construct(load_config([*override, "construct.sets.better.seeds=[nowhere]"], file))
        with pytest.raises(
            UserError, match=r"'grown', which is no source of data.sources that exists before"
        ):
            construct(load_config([*override, "construct.sets.grown.seeds=[grown]"], file))
        with pytest.raises(UserError, match="Did you mean 'better'"):
            construct(load_config(override, file), only=["beter"])
    grown = read_jsonl(made["grown"].path)
    assert {o for e in read_jsonl(made["better"].path) for o in e["origin"]} >= {e["id"] for e in grown[:3]}


def test_two_launches_at_once_are_refused(tmp_path):
    with ScriptedServer(answer=teach, delay_s=0.2) as server:
        config = write_config(tmp_path, server, f"{{answered: {SETS['answered']}}}", teacher="concurrency: 1")
        process = launch(config)
        try:
            end = time.monotonic() + 30
            while not server.seen and time.monotonic() < end:
                time.sleep(0.02)
            with pytest.raises(UserError, match=rf"in use by another launch \(process {process.pid}"):
                construct(load_config([], config))
        finally:
            process.kill()
            process.wait()


def test_mistakes_in_the_config():
    mistakes = {
        "construct.sets.g.method=self_instruct": "no teacher",
        "construct.teacher.api_key_env=sk-123-very-secret": "not the name of an environment variable",
        "construct.teacher.extra.max_tokens=5": "max_tokens cannot be given here",
    }
    with pytest.raises(UserError, match=r"construct\.sets\.g\.humans: unknown key\. Did you mean 'human'"):
        load_config(
            [
                "construct.teacher.model=m",
                "construct.sets.g={method: self_instruct, seeds: [demo], humans: 3}",
            ]
        )
    for override, words in mistakes.items():
        more = ["construct.sets.g.seeds=[demo]"] if "sets" in override else ["construct.teacher.model=m"]
        with pytest.raises(UserError, match=words):
            load_config([override, *more])
    with pytest.raises(UserError, match="cannot be a folder name.* none of cache, lock, launches.jsonl"):
        load_config(["construct.teacher.model=m", "construct.sets.lock={method: answer, seeds: [demo]}"])
    with pytest.raises(UserError, match=r"construct\.sets is empty"):
        construct(load_config())


def test_the_real_seed_tasks(tmp_path, shared_data):
    with ScriptedServer(answer=teach) as server:
        file = write_config(
            tmp_path, server, "{grown: {method: self_instruct, seeds: [seeds], count: 30, round_requests: 2}}"
        )
        made = construct(
            load_config(
                [
                    f"data.sources.seeds.path={shared_data / 'self-instruct' / 'seed_tasks.jsonl'}",
                    "data.holdout.tasks=[]",
                ],
                file,
            )
        )
        asked = [prompt_of(s.body) for s in server.seen]
    assert made["grown"].examples > 20
    labels = [text for text in asked if "Yes or No" in text]
    assert {(text.count("Classification: Yes"), text.count("Classification: No")) for text in labels} == {
        (12, 19)
    }
