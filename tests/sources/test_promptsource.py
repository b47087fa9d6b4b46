"""promptsource templates over annotated records: equal to the reference, and bounded whatever a template does."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
import yaml

from sft_dist.config import RunConfig
from sft_dist.config.sources import AlpacaSource, PromptsourceSource
from sft_dist.core.errors import UserError
from sft_dist.core.files import read_jsonl
from sft_dist.core.records import BadRecord, Example
from sft_dist.selection.files import TRAIN
from sft_dist.selection.sides import select
from sft_dist.sources import open_source
from sft_dist.sources.files.data_files import RawRecord
from sft_dist.sources.promptsource import environment as promptsource_environment
from sft_dist.sources.promptsource.environment import PromptEnvironment
from sft_dist.sources.promptsource.reader import PromptsourceReader
from sft_dist.sources.promptsource.render import CompiledTemplate, PromptRecord
from sft_dist.sources.promptsource.template_files import read_templates

ORACLE = {
    "piqa": ("piqa", 660),
    "super_glue_boolq": ("super_glue/boolq", 600),
    "super_glue_copa": ("super_glue/copa", 720),
    "commonsense_qa": ("commonsense_qa", 300),
}


def template_yaml(folder, **templates):
    """Write a template file of the dataset toy/small; a template is its jinja, or a dict of its fields."""
    lines = ["dataset: toy", "subset: small", "templates:"]
    for number, (name, given) in enumerate(templates.items()):
        fields = {"jinja": given} if isinstance(given, str) else dict(given)
        metadata = json.dumps(fields.pop("metadata", {"original_task": True}))
        lines.append(f"  0000-{number}: !Template")
        for key, value in {"answer_choices": None, "name": name, "reference": "", **fields}.items():
            lines.append(f"    {key}: {json.dumps(value)}")
        lines.append(f"    metadata: !TemplateMetadata {metadata}")
    path = folder / "templates.yaml"
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)


def reader(tmp_path, rows, templates, **options):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return PromptsourceReader(
        "p3", path=str(tmp_path / "rows.jsonl"), templates=template_yaml(tmp_path, **templates), **options
    )


def shown(source):
    return [(e.task, e.messages[0].content, e.output) if isinstance(e, Example) else e.reason for e in source]


# --- equality with the reference -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ORACLE)
def test_renders_as_the_reference_does(shared_data, name):
    dataset, count = ORACLE[name]
    file = shared_data / "promptsource" / "templates" / dataset / "templates.yaml"
    environment = PromptEnvironment()
    compiled = {t.name: CompiledTemplate(t, environment, None, file) for t in read_templates(file)}
    rows = read_jsonl(shared_data / "raw-annotated" / f"{name}.jsonl")
    records = [PromptRecord(RawRecord("x", i, row)) for i, row in enumerate(rows[:60], 1)]
    lines = read_jsonl(shared_data / "p3-oracle" / f"{name}.jsonl")
    assert len(lines) == count
    for line in lines:
        template, record = compiled[line["template"]], records[line["row"]]
        assert template.render(record, environment, 0) == line["parts"]
        assert template.choices(record, environment, 0) == line["answer_choices"]


@pytest.mark.parametrize("name", ORACLE)
def test_examples_are_the_oracle_s_renderings_and_skips_are_counted(shared_data, tmp_path, name):
    dataset, count = ORACLE[name]
    head = (shared_data / "raw-annotated" / f"{name}.jsonl").read_text().splitlines(keepends=True)[:60]
    (tmp_path / "rows.jsonl").write_text("".join(head))
    source = PromptsourceReader(
        "p3",
        path=str(tmp_path / "rows.jsonl"),
        templates=str(shared_data / "promptsource/templates"),
        dataset=dataset,
    )
    lines = read_jsonl(shared_data / "p3-oracle" / f"{name}.jsonl")
    kept = [o for o in lines if len(o["parts"]) == 2 and all(o["parts"])]
    assert Counter(shown(source)) == Counter((f"{dataset}/{o['template']}", *o["parts"]) for o in kept)
    skips = Counter(f"{dataset}/{o['template']}" for o in lines if o not in kept)
    assert source.skipped == ({"template_skips": skips} if skips else {})
    assert skips.total() == count - len(kept) == (120 if name == "super_glue_copa" else 0)


def test_every_template_file_parses_and_compiles(shared_data):
    environment, count = PromptEnvironment(), 0
    files = sorted((shared_data / "promptsource" / "templates").rglob("templates.yaml"))
    for file in files:
        for template in read_templates(file):
            CompiledTemplate(template, environment, None, file)
            if count % 10 == 0:
                CompiledTemplate(template, environment, 2048, file)
            assert template.id
            assert template.task.startswith(template.dataset)
            count += 1
    assert (len(files), count) == (39, 360)


def test_templates_that_append_to_lists_and_choose(shared_data, tmp_path):
    folder = shared_data / "promptsource" / "templates"
    (tmp_path / "scan.jsonl").write_text(
        json.dumps({"commands": "turn left twice", "actions": "I_TURN_LEFT I_TURN_LEFT"})
    )
    source = PromptsourceReader(
        "scan", path=str(tmp_path / "scan.jsonl"), templates=str(folder / "scan"), template_names=("plain",)
    )
    [(_, prompt, output)] = shown(source)
    assert (prompt, output) == (
        "Natural language commands: turn left twice\n\nSequence of actions:",
        "turn left, turn left",
    )
    words = ["dog", "frisbee", "catch"]
    (tmp_path / "gen.jsonl").write_text(
        "".join(json.dumps({"concepts": words, "target": f"t{i}"}) + "\n" for i in range(40))
    )
    first = [
        shown(
            PromptsourceReader(
                "g", path=str(tmp_path / "gen.jsonl"), templates=str(folder / "common_gen"), seed=s
            )
        )
        for s in (0, 0, 1)
    ]
    assert first[0] == first[1] != first[2]
    topics = Counter(w for t, p, _ in first[0] if "topic" in t for w in words if f"topic {w}" in p)
    assert set(topics) <= set(words)


# --- what a template gives -------------------------------------------------------------------------------------------


def test_an_example_by_eye(tmp_path):
    rows = [{"text": "It rains.", "label": 1}, {"text": "It snows.", "label": 0}]
    template = {
        "jinja": "Is this about rain or snow?\n{{text}}\n||| {{ answer_choices[label] }}",
        "answer_choices": "snow ||| rain",
        "metadata": {
            "original_task": True,
            "choices_in_prompt": True,
            "metrics": ["Accuracy"],
            "languages": ["en"],
        },
    }
    source = reader(tmp_path, rows, {"weather": template})
    first, second = list(source)
    assert (first.task, first.source) == ("toy/small/weather", "p3")
    assert [m.content for m in first.messages] == ["Is this about rain or snow?\nIt rains.", "rain"]
    assert (first.references, second.output) == (("rain",), "snow")
    assert first.origin[:2] == ("dataset:toy", "dataset:toy/small")
    assert first.origin[2].startswith("record:")
    assert first.origin[2] != second.origin[2]
    info = source.task_info()["toy/small/weather"]
    assert (info.fixed_choices, info.metrics, info.choices_in_prompt, info.languages) == (
        ("snow", "rain"),
        ("Accuracy",),
        True,
        ("en",),
    )
    assert source.answer_choices("weather", rows[0]) == ["snow", "rain"]
    # evaluation picks among them by likelihood
    assert (first.choices, source.task_metrics()) == (("snow", "rain"), {"toy/small/weather": "choice"})


def test_separators_inside_fields_never_split(tmp_path):
    row = {"a": "x ||| y", "deep": {"list": ["p|||q", ["r ||| s"]]}, "choices": ["1|||2", "3"]}
    templates = {
        "top": "{{a}} ||| {{a}}",
        "nested": "{{deep.list[0]}} ||| {{deep['list'][1][0]}}",
        "choices": {
            "jinja": "{{answer_choices[0]}} ||| {{answer_choices | length}}",
            "answer_choices": "{{choices[0]}} ||| {{choices[1]}}",
        },
        "cut": "{{a | truncate(5, True, '', 0)}} ||| {{ a | length }}",
    }
    assert [t[1:] for t in shown(reader(tmp_path, [row], templates))] == [
        ("x ||| y", "x ||| y"),
        ("p|||q", "r ||| s"),
        ("1|||2", "2"),
        ("x |||", "7"),
    ]


def test_private_characters_of_a_record_stay(tmp_path):
    """Separators are replaced by such characters meanwhile, by those that the record does not hold."""
    [(_, prompt, _)] = shown(reader(tmp_path, [{"a": "\ue000\ue000\ue000 ||| x"}], {"t": "{{a}} ||| y"}))
    assert prompt == "\ue000\ue000\ue000 ||| x"


@pytest.mark.parametrize(
    "jinja",
    [
        "",
        "only a prompt",
        "{{a}} ||| ",
        " ||| {{a}}",
        "{{a}} ||| b ||| c",
        "{% if a == 'z' %}p ||| q{% endif %}",
    ],
)
def test_anything_but_prompt_and_answer_skips_the_record(tmp_path, jinja):
    source = reader(tmp_path, [{"a": "x"}] * 3, {"t": jinja})
    assert list(source) == list(source) == []
    assert source.skipped == {"template_skips": {"toy/small/t": 3}}


def test_fields_are_whole_unless_truncation_is_asked_for(tmp_path):
    row = {"text": "word " * 1000}
    [(_, whole, _)] = shown(reader(tmp_path, [row], {"t": "{{text}}. ||| {{ text | length }}"}))
    assert len(whole) == 5001
    [(_, cut, length)] = shown(
        reader(tmp_path, [row], {"t": "{{text}}. ||| {{ text | length }}"}, truncate_chars=2048)
    )
    assert cut == "word " * 408 + "word...."  # three dots of the cut, one of the template
    assert length == "5000"  # the filter applies to what is inserted, not to what it is computed from


def test_a_template_changes_no_record(tmp_path):
    templates = {
        "a": "{{ words.append('c') or '' }}{{ words | join(' ') }} ||| x",
        "b": "{{ words | join(' ') }} ||| x",
    }
    assert [t[1] for t in shown(reader(tmp_path, [{"words": ["a", "b"]}], templates))] == ["a b c", "a b"]


def test_what_does_not_fit_is_a_bad_record_that_names_the_template(tmp_path):
    templates = {
        "good": "{{a}} ||| {{ b | default('none') }}{% if c is defined %}!{% endif %}",
        "asks": "{{a}} ||| {{goal}}",
        "fails": "{{a + 1}} ||| x",
    }
    source = reader(tmp_path, [{"a": "x"}, {"a": "y", "answer_choices": 1}], templates)
    assert shown(source)[:3] == [
        ("toy/small/good", "x", "none"),
        "template 'asks' asks for field 'goal', which is missing (the record has a)",
        "template 'fails': TypeError: can only concatenate str (not \"int\") to str",
    ]
    assert all("a field 'answer_choices'" in reason for reason in shown(source)[3:])
    bad = list(source)[1]
    assert isinstance(bad, BadRecord)
    assert (bad.file, bad.line, bad.text) == (
        str(tmp_path / "rows.jsonl"),
        1,
        "{'a': 'x', '__asked__': asks}",
    )


def test_bad_lines_stay_bad_records(tmp_path):
    source = reader(tmp_path, [{"a": "x"}], {"t": "{{a}} ||| y"})
    with (tmp_path / "rows.jsonl").open("a") as f:
        f.write("{broken\n")
    assert [type(r).__name__ for r in source] == ["Example", "BadRecord"]


# --- which templates -------------------------------------------------------------------------------------------------

FOUR = {
    f"{kind} {i}": {"jinja": f"{kind}{i} {{{{a}}}} ||| y", "metadata": {"original_task": kind == "ask"}}
    for kind in ("ask", "turn")
    for i in (1, 2)
}


@pytest.mark.parametrize(
    "options, names",
    [
        ({}, ["ask 1", "ask 2", "turn 1", "turn 2"]),
        ({"template_names": ("ask*", "turn 2")}, ["ask 1", "ask 2", "turn 2"]),
        ({"template_names": ("!* 1",)}, ["ask 2", "turn 2"]),
        ({"original_task_only": True}, ["ask 1", "ask 2"]),
    ],
)
def test_templates_are_chosen(tmp_path, options, names):
    assert [
        e.task.removeprefix("toy/small/") for e in reader(tmp_path, [{"a": "x"}], FOUR, **options)
    ] == names


def test_names_that_choose_nothing_are_errors(tmp_path):
    with pytest.raises(
        UserError, match=r"template_names: no template is called 'asks 1'.*Did you mean 'ask 1'"
    ):
        reader(tmp_path, [], FOUR, template_names=("asks 1",))
    with pytest.raises(UserError, match="leave none of 4 templates"):
        reader(tmp_path, [], FOUR, template_names=("turn*",), original_task_only=True)


def test_one_template_a_record_is_drawn_evenly_and_by_the_record(tmp_path):
    rows = [{"a": f"x{i}"} for i in range(400)]
    source = reader(tmp_path, rows, FOUR, per_record="one")
    drawn = {e.messages[0].content.split()[1]: e.task for e in source}
    counts = Counter(drawn.values())
    assert len(drawn) == 400
    assert min(counts.values()) > 75, counts  # 100 expected, deviation 8.7
    assert {
        e.messages[0].content.split()[1]: e.task for e in reader(tmp_path, rows[::-1], FOUR, per_record="one")
    } == drawn
    assert {
        e.messages[0].content.split()[1]: e.task
        for e in reader(tmp_path, rows, FOUR, per_record="one", seed=1)
    } != drawn


def test_a_drawn_template_that_skips_gives_way_to_the_next(tmp_path):
    templates = {"never": "", "x only": "{% if a == 'x' %}{{a}} ||| 1{% endif %}"}
    source = reader(
        tmp_path, [{"a": "x", "n": i} for i in range(20)] + [{"a": "y"}], templates, per_record="one"
    )
    assert [e.task for e in source] == ["toy/small/x only"] * 20
    assert source.skipped["template_skips"].total() == 1


def test_the_templates_of_a_folder_are_chosen_by_dataset(shared_data, tmp_path):
    templates, rows = (
        str(shared_data / "promptsource/templates"),
        str(shared_data / "raw-annotated/piqa.jsonl"),
    )
    source = PromptsourceReader("p", path=rows, templates=templates, dataset="piqa", task="p3/{__template__}")
    assert next(iter(source)).task == "p3/what_is_the_correct_ending"
    with pytest.raises(
        UserError, match=r"holds the templates of 39 datasets .*set dataset to one of these names"
    ):
        PromptsourceReader("p", path=rows, templates=templates)
    with pytest.raises(UserError, match="Did you mean 'piqa'"):
        PromptsourceReader("p", path=rows, templates=templates, dataset="pika")
    with pytest.raises(UserError, match="does not exist"):
        PromptsourceReader("p", path=rows, templates=str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"holds no templates\.yaml"):
        PromptsourceReader("p", path=rows, templates=str(tmp_path))


@pytest.mark.parametrize(
    "text, message",
    [
        ("a: [", "line 2 is not a promptsource template file"),
        ("dataset: x", "has no 'dataset' and 'templates'"),
        ("dataset: x\ntemplates:\n  u: !Template {name: n}", "template 'n' has no 'name' and 'jinja'"),
        (
            "dataset: x\ntemplates:\n  u: !!python/object/apply:os.getcwd []",
            "could not determine a constructor",
        ),
        (
            "dataset: x\ntemplates:\n  u: !Template {name: n, jinja: a}\n  v: !Template {name: n, jinja: a}",
            "two templates named 'n'",
        ),
        (
            "dataset: x\ntemplates:\n  u: !Template {name: n, jinja: '{{ a'}",
            r"template 'n' is not valid \(line 1 of it\).*\['!n'\]",
        ),
        (
            "dataset: x\ntemplates:\n  u: !Template {name: n, jinja: '{% include \"/etc/passwd\" %}'}",
            "may not read another file",
        ),
        (
            "dataset: x\ntemplates:\n  u: !Template {name: n, jinja: '{{ a | nofilter }}'}",
            "No filter named 'nofilter'",
        ),
    ],
)
def test_damaged_template_files_are_refused(tmp_path, text, message):
    (tmp_path / "t.yaml").write_text(text)
    (tmp_path / "rows.jsonl").write_text('{"a": "x"}\n')
    with pytest.raises(UserError, match=message):
        PromptsourceReader("p", path=str(tmp_path / "rows.jsonl"), templates=str(tmp_path / "t.yaml"))


# --- a template is input ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "jinja",
    [
        "{{ ''.__class__ }} ||| x",
        "{{ ''.__class__.__mro__ }} ||| x",
        "{{ a['__class__'] }} ||| x",
        "{{ '{0.__class__}'.format(a) }} ||| x",
        "{{ zip.__new__ }} ||| x",
        "{{ (a | attr('__class__')) }} ||| x",
        "{{ words.pop() }} ||| x",
        "{{ deep.update({'k': 1}) }} ||| x",
        "{{ self.__init__.__globals__ }} ||| x",
    ],
)
def test_no_way_out_of_the_sandbox(tmp_path, jinja):
    with pytest.raises(
        UserError, match=r"template 'toy/small/evil' was stopped at .*rows\.jsonl, line 1: .*unsafe"
    ):
        list(reader(tmp_path, [{"a": "x", "words": ["w"], "deep": {}}], {"evil": jinja}))


ENDLESS = {
    "appends to what it reads": "{% for w in words %}{{ words.append(w) or '' }}{% endfor %} ||| x",
    "nested ranges": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %} ||| x",
    "filtered loops": "{% for i in range(99999) %}{% for j in range(99999) if j < 0 %}{% endfor %}{% endfor %} ||| x",
    "branching recursion": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }} ||| x",
    "recursive loop": "{% for w in [1, 2, 3] recursive %}{{ loop([1, 2, 3]) if loop.depth < 40 }}{% endfor %} ||| x",
    "long text": "{% for i in range(99999) %}{{ a * 500 }}{% endfor %} ||| x",
    "plain text": "{% for i in range(99999) %}" + "plain " * 500 + "{% endfor %} ||| x",
    "doubled by ~": "{% set ns = namespace(s=a) %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }} ||| x",
    "doubled by +": "{% set ns = namespace(s=a) %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}{{ ns.s }} ||| x",
    "doubled by a block": "{% set ns = namespace(s=a) %}{% for i in range(60) %}{% set t %}{{ ns.s }}{{ ns.s }}{% endset %}{% set ns.s = t %}{% endfor %} ||| x",
    "doubled by replace": "{% set ns = namespace(s=a) %}{% for i in range(60) %}{% set ns.s = ns.s.replace('x', 'xx') %}{% endfor %} ||| x",
    "doubled by join": "{% set ns = namespace(s=a) %}{% for i in range(60) %}{% set ns.s = [ns.s, ns.s] | join %}{% endfor %} ||| x",
    "doubled lists": "{% set ns = namespace(s=[a]) %}{% for i in range(60) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns.s }} ||| x",
    "doubled lists as text": "{% set ns = namespace(s=[a]) %}{% for i in range(60) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ (ns.s | string) | length }} ||| x",
    "repeated": "{{ (a * 10**12) | length }} ||| x",
    "repeated list": "{{ ([a] * 10**12) | length }} ||| x",
    "large power": "{{ 10 ** (10 ** 10) }} ||| x",
    "centred": "{{ a | center(10**12) }} ||| x",
    "justified": "{{ a.ljust(10**12) }} ||| x",
    "indented": "{{ a | indent(10**12, True) }} ||| x",
    "percent": "{{ '%1000000000d' % 1 }} ||| x",
    "percent filter": "{{ '%*d' | format(10**12, 1) }} ||| x",
    "format": "{{ '{:1000000000}'.format(a) }} ||| x",
    "format width": "{{ '{:{}}'.format(a, 10**12) }} ||| x",
    "in the choices": {"jinja": "{{answer_choices}} ||| x", "answer_choices": "{% for i in range(99999) %}{{ a * 500 }}{% endfor %}"},
}  # fmt: skip


@pytest.mark.parametrize("name", ENDLESS)
def test_a_template_without_end_is_stopped_and_named(tmp_path, name):
    started = time.process_time()
    source = reader(tmp_path, [{"a": "x", "words": ["w"]}], {"evil": ENDLESS[name]})
    with pytest.raises(UserError, match=r"template 'toy/small/evil' was stopped at .*line 1: .*\['!evil'\]"):
        list(source)
    assert time.process_time() - started < 5


def test_endless_recursion_is_a_bad_record(tmp_path):
    [reason] = shown(
        reader(tmp_path, [{"a": "x"}], {"evil": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }} ||| x"})
    )
    assert "RecursionError" in reason


def test_a_range_is_bounded(tmp_path):
    [reason] = shown(reader(tmp_path, [{"a": "x"}], {"evil": "{{ range(10**9) | list | length }} ||| x"}))
    assert "Range too big" in reason


def test_what_the_budget_does_not_see_ends_by_the_clock(tmp_path, monkeypatch):
    monkeypatch.setattr(promptsource_environment, "CPU_SECONDS", 0.2)
    hidden = "{% set ns = namespace(n=0) %}{% for i in range(9000) %}{% if a not in b %}{% set ns.n = 1 %}{% endif %}{% endfor %} ||| x"
    source = reader(tmp_path, [{"a": "ab" * 50_000 + "c", "b": "ab" * 200_000}], {"evil": hidden})
    with pytest.raises(UserError, match=r"stopped at .*it takes more than 0\.2 s"):
        list(source)


def test_the_budget_also_holds_in_a_thread(tmp_path):
    source = reader(tmp_path, [{"a": "x", "words": ["w"]}], {"evil": ENDLESS["appends to what it reads"]})
    errors = []

    def work():
        try:
            list(source)
        except UserError as error:
            errors.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()
    assert "loops too often" in errors[0]


def test_long_records_have_room(tmp_path):
    sentences = ["a sentence of some length"] * 5000
    jinja = "{% for s in sentences %}{{ loop.index }} {{ s.replace('a', 'the') | upper }}\n{% endfor %} ||| {{ sentences | join(' ') }}"
    [(_, prompt, output)] = shown(reader(tmp_path, [{"sentences": sentences}], {"t": jinja}))
    assert (len(prompt.splitlines()), len(output)) == (5000, 5000 * 26 - 1)


# --- through the rest of the system ----------------------------------------------------------------------------------


def test_a_dataset_of_the_hub_s_library(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list([{"a": "x", "label": 0}, {"a": "y", "label": 1}]).save_to_disk(
        str(tmp_path / "saved")
    )
    config = PromptsourceSource(
        kind="promptsource",
        path=str(tmp_path / "saved"),
        templates=template_yaml(tmp_path, t="{{a}} ||| {{label}}"),
    )
    source = open_source("p3", config)
    assert [t[1:] for t in shown(source)] == [("x", "0"), ("y", "1")]
    assert source.fingerprint() == open_source("p3", config).fingerprint()


def test_the_fingerprint_covers_templates_and_options_but_no_place(tmp_path):
    rows, base = [{"a": "x"}], {"t": "{{a}} ||| y"}
    (tmp_path / "b").mkdir()
    first = reader(tmp_path, rows, base).fingerprint()
    assert reader(tmp_path / "b", rows, base).fingerprint() == first
    changed = {
        reader(tmp_path, rows, {"t": "{{a}}! ||| y"}).fingerprint(),
        reader(tmp_path, [{"a": "z"}], base).fingerprint(),
        *(
            reader(tmp_path, rows, base, **o).fingerprint()
            for o in ({"seed": 1}, {"per_record": "one"}, {"truncate_chars": 9})
        ),
    }
    assert len(changed - {first}) == 5


def piqa_config(shared_data: Path, tmp_path: Path, holdout: dict) -> RunConfig:
    """100 records, 11 templates."""
    head = (shared_data / "raw-annotated/piqa.jsonl").read_text().splitlines(keepends=True)[:100]
    (tmp_path / "piqa.jsonl").write_text("".join(head))
    source = {
        "kind": "promptsource",
        "path": str(tmp_path / "piqa.jsonl"),
        "templates": str(shared_data / "promptsource/templates/piqa"),
    }
    return RunConfig.model_validate(
        {"name": "t", "data": {"sources": {"p3": source}, "holdout": holdout}, "model": {"path": "none"}}
    )


@pytest.mark.parametrize("holdout", [{"examples_per_task": 10}, {"number": 2, "max_eval_per_task": 10}])
def test_no_record_is_asked_in_training_and_in_evaluation(shared_data, tmp_path, holdout):
    config = piqa_config(shared_data, tmp_path, holdout)
    source = open_source("p3", config.data.sources["p3"])
    selected = select(config.data, {"p3": source}, tmp_path, lambda _: None, seed=config.seed)
    evaluated = [e for n in ("seen", "heldout") for e in read_jsonl(tmp_path / "eval" / f"{n}.jsonl")]
    records = {o for e in evaluated for o in e["origin"] if o.startswith("record:")}
    codes = selected.sources["p3"].codes
    trained = [e for e, code in zip(source, codes, strict=True) if code == TRAIN]
    # all templates ask about the same 10 records, so that 90 of 100 are left to each
    assert len(records) == 10
    assert not records & {o for e in trained for o in e.origin}
    tasks = Counter(e.task for e in trained)
    assert len(tasks) == (11 if "examples_per_task" in holdout else 9)
    assert min(tasks.values()) > 80, tasks


def test_a_template_is_held_out_and_so_is_a_whole_dataset(shared_data, tmp_path):
    name = "piqa/Correct the solution"
    config = piqa_config(shared_data, tmp_path, {"tasks": [name], "max_eval_per_task": 5})
    source = open_source("p3", config.data.sources["p3"])
    selected = select(config.data, {"p3": source}, tmp_path, lambda _: None, seed=config.seed)
    assert name not in selected.sources["p3"].tasks
    with pytest.raises(UserError, match="holds out all 11 tasks"):
        select(
            piqa_config(shared_data, tmp_path, {"datasets": ["piqa"]}).data,
            {"p3": source},
            tmp_path,
            lambda _: None,
            seed=config.seed,
        )


def test_rows_that_are_rendered_already(shared_data):
    config = AlpacaSource(
        kind="alpaca",
        path=str(shared_data / "p3-rendered"),
        instruction_field="prompt",
        input_field=None,
        output_field="completion",
        task="p3/{__file__}",
        dataset="{__file__}",
    )
    examples = list(open_source("p3", config))
    assert not [e for e in examples if isinstance(e, BadRecord)]
    files = sorted((shared_data / "p3-rendered").glob("*.jsonl"))
    rows = {f"p3/{f.stem}": len(f.read_text().splitlines()) for f in files}
    assert Counter(e.task for e in examples) == rows
    assert sum(rows.values()) == len(examples) > 3000
    assert examples[0].origin == ("dataset:adversarial_qa_dbert_answer_the_following_q",)


def test_the_reader_is_not_confused_by_yaml_of_other_loaders(tmp_path):
    path = template_yaml(tmp_path, t="{{a}} ||| y")
    with pytest.raises(yaml.YAMLError):
        yaml.safe_load(Path(path).read_text())  # our tags are ours alone


def test_unseen_templates_are_wordings_for_the_evaluation_and_metrics_follow_named_tasks(tmp_path):
    asked = {"metrics": ["Accuracy"], "original_task": True}
    templates = {
        "one": {"jinja": "Q {{q}} ||| {{a}}", "answer_choices": "y ||| n", "metadata": asked},
        "two": {"jinja": "Ask {{q}} ||| {{ {'y': 'yes', 'n': 'no'}[a] }}", "metadata": asked},
        "back": {"jinja": "A {{a}} ||| {{q}}", "metadata": {"metrics": ["ROUGE"], "original_task": False}},
    }
    rows = [{"q": "x", "a": "y"}]
    source = reader(tmp_path, rows, templates, unseen_templates=("two",), task="p3/{__template__}")
    found = {e.task: e.phrasings for e in source}
    assert found == {"p3/one": (("Ask x", "yes"),), "p3/back": ()}
    assert source.task_metrics() == {"p3/one": "choice", "p3/back": "rouge_l"}
    # one task of templates that name different metrics has none
    assert reader(tmp_path, rows, templates, task="p3").task_metrics() == {}
    plain = reader(tmp_path, rows, templates)
    assert all(not e.phrasings for e in plain)
    assert plain.fingerprint() != reader(tmp_path, rows, templates, unseen_templates=("two",)).fingerprint()
    with pytest.raises(UserError, match="names all templates that are chosen"):
        reader(tmp_path, rows, templates, unseen_templates=("*",))
    with pytest.raises(UserError, match="no chosen template is called 'too'.*Did you mean 'two'"):
        reader(tmp_path, rows, templates, unseen_templates=("too",))
