"""docs/extend.md names what exists, and an entry that is added by a row alone works. docs/map.md names every package."""

from __future__ import annotations

import re
from pathlib import Path
from typing import ClassVar

import pytest

from sft_dist.config.train import OptimConfig
from sft_dist.core.records import Drop, Example, single_turn

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/extend.md").read_text()
ROWS = [
    [cell.strip() for cell in line.split("|")[1:-1]] for line in PAGE.splitlines() if line.startswith("| a")
]


def _path(word: str) -> Path:
    return (
        ROOT / word
        if word.split("/", maxsplit=1)[0] in ("docs", "tests", "conf", "launch", "slurm")
        else ROOT / "sft_dist" / word
    )


def _words(row: list[str]) -> list[str]:
    return re.findall(r"`([^`]+)`", " ".join(row))


def test_there_is_a_row_for_each_of_the_likeliest_changes() -> None:
    assert len(ROWS) >= 15


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0].split(" (")[0])
def test_every_file_table_and_class_of_a_row_exists(row: list[str]) -> None:
    files = [w for w in _words(row) if re.fullmatch(r"[\w/.]+/(\w+\.\w+)?|\w+\.py", w)]
    missing = [w for w in files if not _path(w).exists()]
    assert not missing
    text = "\n".join(_path(w).read_text() for w in files if _path(w).is_file())
    for name in (w for w in _words(row) if re.fullmatch(r"_?[A-Z]\w+|_?[a-z]+(_[a-z]+)+", w)):
        if name == "RunFiles":  # an argument's type
            continue
        assert re.search(rf"\b{name}\b", text), f"{name} is in none of {files}"


def test_a_filter_rule_by_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    from sft_dist.config.filters import FiltersConfig
    from sft_dist.filters import FILTERS, build_filters

    class Shouting:
        name = "shouting"
        reasons: ClassVar = {"shouting": "the answer shouts"}

        def __call__(self, example: Example) -> Drop | None:
            shouted = [m for m in example.messages if m.role == "assistant" and m.content.isupper()]
            return Drop("shouting", shouted[0].content) if shouted else None

    class WithShouting(FiltersConfig):
        shouting: bool = True

    monkeypatch.setitem(FILTERS, "shouting", Shouting)
    rule = build_filters(WithShouting())[-1]
    loud = single_turn(task="t", source="s", instruction="Hi", output="HO")
    assert rule(loud) == Drop("shouting", "HO")


def test_a_schedule_by_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    from sft_dist.train.schedule import SCHEDULES, lr_at

    monkeypatch.setitem(SCHEDULES, "square", lambda step, steps, _: (1 - step / steps) ** 2)
    optim = OptimConfig.model_construct(
        **{**OptimConfig(lr=1.0, warmup_share=0).model_dump(), "schedule": "square"}
    )
    assert lr_at(5, optim, total_steps=10, tokens_per_step=1) == 0.25


def test_a_probe_by_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    from sft_dist.evals.probe_material import Answers, Material, Probe
    from sft_dist.evals.probes import PROBES, asked_of, judge_probes

    e = single_turn(task="t", source="s", instruction="Do it", input="x", output="y")
    same = Probe(
        "Same", "The same again.", lambda _: {"same": {e.id: [e]}}, "loss", lambda *_: {"sentence": "Equal."}
    )
    monkeypatch.setitem(PROBES, "same", same)
    material = Material(sets={"seen": [e]})
    variants, asked = asked_of(["same"], material)
    assert asked == {"generate": [], "loss": [e], "continue": []}
    found = judge_probes(variants, material, Answers(generations={}, losses={}), None)
    assert found["same"]["sentence"] == "Equal."


def test_an_evaluation_metric_by_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    from sft_dist.evals.baselines import Baselines
    from sft_dist.evals.metrics import METRICS, Metric
    from sft_dist.evals.score import score_examples, scores
    from sft_dist.evals.splits import Generation

    monkeypatch.setitem(
        METRICS, "length", Metric("length", lambda said, _: min(1.0, len(said) / 4), "How long.")
    )
    e = single_turn(task="t", source="s", instruction="Do it", output="y")
    said = {e.id: Generation(id=e.id, prediction="ab", stopped=True, tokens=1)}
    out = scores(score_examples({"seen": [e]}, said, Baselines([]), metric="length"), asked="length")
    assert out["sets"]["seen"]["macro"]["score"]["model"]["mean"] == 0.5


def test_a_section_of_the_run_page_by_its_row(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from sft_dist.report import run

    extra = run.ReportSection("extra", "Extra", lambda files, _: f'<h2 id="extra">Extra of {files.name}</h2>')
    monkeypatch.setattr(run, "SECTIONS", (*run.SECTIONS, extra))
    (tmp_path / "config.json").write_text('{"name": "mine"}')
    page = run.write_report(tmp_path).read_text()
    assert '<a href="#extra">Extra</a>' in page
    assert "Extra of mine" in page


FLOW = re.compile(r"sources -> holdout -> construct.*?(?=\n```|\n\"\"\")", re.DOTALL)


def test_one_flow_is_shown_by_readme_map_and_package() -> None:
    flows = [
        "\n".join(line.strip() for line in FLOW.search((ROOT / f).read_text())[0].splitlines())  # type: ignore[index]
        for f in ("README.md", "docs/map.md", "sft_dist/__init__.py")
    ]
    assert flows[0] == flows[1] == flows[2]


def test_every_command_of_the_flow_exists() -> None:
    from sft_dist.cli import _parser

    known = _parser().format_help()
    shown = re.findall(r"sft-dist ([a-z, -]+)", FLOW.search((ROOT / "README.md").read_text())[0])  # type: ignore[index]
    for name in {word for text in shown for word in text.replace(",", " ").split()}:
        assert re.search(rf"^ +{name}\b", known, re.MULTILINE), name


def test_the_map_names_every_package_and_files_that_exist() -> None:
    text = (ROOT / "docs/map.md").read_text()
    named = set()
    for package, _, files in re.findall(r"^\| `([\w/]+)/` \| (.*) \| (.*) \|$", text, re.MULTILINE):
        named.add(package.split("/")[0])
        for file in re.findall(r"`([\w/]+\.py)`", files):
            assert (ROOT / "sft_dist" / package / file).is_file(), f"{package}/{file}"
    packages = {p.parent.name for p in (ROOT / "sft_dist").glob("*/__init__.py")}
    assert packages <= named
    tree = (ROOT / "README.md").read_text().split("sft_dist/\n")[1].split("```")[0]
    assert {p for p in packages if not re.search(rf"\b{p}\b", tree)} == set()


def test_headers_of_packages_name_modules_that_exist() -> None:
    """A line `name  what it does` in a package's docstring is about a module or folder of the package."""
    for file in (ROOT / "sft_dist").rglob("__init__.py"):
        text = file.read_text().split('"""')[1]
        for name in re.findall(r"^(\w+)  +\S", text, re.MULTILINE):
            assert (file.parent / f"{name}.py").exists() or (file.parent / name).is_dir(), f"{file}: {name}"
