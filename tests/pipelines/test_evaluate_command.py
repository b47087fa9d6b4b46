"""Evaluation from a run folder to the page, its rank in this process: sets, base, baselines, probes, other settings."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from sft_dist.cli import main
from sft_dist.core.errors import UserError
from sft_dist.core.files import read_json, read_jsonl, write_json
from sft_dist.core.runfolder import RunFolder
from sft_dist.evals.probes import PROBES, RANKS
from sft_dist.pipelines.evaluate import command
from sft_dist.pipelines.evaluate.job import make_job
from sft_dist.pipelines.evaluate.training_set import drawn_ids

SMALL = (
    "data.sources.demo.examples_per_task=12", "data.holdout.examples_per_task=2", "data.holdout.max_eval_per_task=2",
    "data.validation.examples_per_task=1", "render.train_vocab_size=400", "eval.max_new_tokens=3", "eval.probe_examples_per_task=1",
    "model.shape.hidden_size=32", "model.shape.intermediate_size=48", "model.shape.layers=1", "model.shape.heads=2", "launch.nproc=1",
    "data.processes=1", "train.max_steps=2",
)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run folder as after training, with random weights: stores, evaluation sets, plan, export and first weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from sft_dist.config.load import load_run_config
    from sft_dist.render.tokenizer import TextTokenizer

    root = tmp_path_factory.mktemp("evaluate")
    path = root / "runs" / "demo"
    arguments = [f"data.dir={root / 'data'}", f"run_root={root / 'runs'}", *SMALL]
    assert main(["prepare", "experiment=demo", *arguments]) == 0
    assert main(["write-run", "experiment=demo", *arguments, "--run-dir", str(path)]) == 0
    folder = RunFolder(path)
    shape = load_run_config(path).model.shape
    assert shape is not None
    tokenizer = TextTokenizer.load(read_json(folder.stores)["tokenizer"])
    config = LlamaConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=512, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder.export)
    shutil.copytree(folder.export, path / "init")
    write_json(path / "plan.json", {"world_size": 1, "tasks": {}})
    folder.set_status("finished", step=2, steps=2)
    return folder


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the rank in this process, which spares starting torch again."""

    def run_ranks(folder: RunFolder, module: str, **_: object) -> int:
        monkeypatch.setattr("sys.argv", ["rank", "--run-dir", str(folder.path)])
        return command.main()

    monkeypatch.setattr(command, "run_ranks", run_ranks)


def test_sets_base_baselines_and_probes_from_one_command(run: RunFolder) -> None:
    result = command.evaluate(run, Console(quiet=True))
    assert {n: s["macro"]["tasks"] for n, s in result["sets"].items()} == {
        "seen": 27,
        "heldout_near": 12,
        "heldout_far": 10,
    }
    for name, found in result["sets"].items():
        assert set(found["contrasts"]) == {"base", "nearest", "majority", "format_guess", "input_only"}, name
        assert found["contrasts"]["base"]["difference"] == 0.0  # the same weights
    assert set(result["probes"]) == set(PROBES)
    shift = result["probes"]["shift"]["sets"]["seen"]
    assert [shift[k]["mean"] for k in RANKS] == [1.0, 0.0, 0.0]  # the same weights
    assert result["probes"]["contrast"]["model"]["tasks"]["first_colour"]["sibling"] == "last_colour"
    assert read_json(run.path / "eval" / "scores.json")["sets"]["seen"]["macro"]["n"] == 54
    assert main(["report", str(run.path)]) == 0


def test_baselines_see_what_the_steps_drew_and_no_more(run: RunFolder) -> None:
    from sft_dist.config.load import load_run_config

    config = load_run_config(run.path)
    two = drawn_ids(config, run)
    run.set_status("finished", step=1, steps=1)
    one = drawn_ids(config, run)
    run.set_status("finished", step=2, steps=2)
    assert one < two
    counted = read_json(run.path / "eval" / "scores.json")["sets"]["seen"]["tasks"]
    assert sum(t["training_examples"] for t in counted.values()) == len(two)


def test_other_settings_stand_beside_and_the_base_is_not_asked_twice(run: RunFolder) -> None:
    answers = sorted((run.path.parents[1] / "data" / "eval" / "answers").glob("*/part-*"))
    written = [p.stat().st_mtime_ns for p in answers]
    assert answers
    command.evaluate(run, Console(quiet=True), ["eval.metric=auto"])
    assert [p.stat().st_mtime_ns for p in answers] == written
    (other,) = (run.path / "eval" / "others").iterdir()
    assert read_json(other / "scores.json")["overrides"] == ["eval.metric=auto"]
    assert {g["metric"] for g in read_jsonl(other / "generations.jsonl")} >= {"numeric", "rouge_l"}
    assert read_json(run.path / "eval" / "scores.json")["metric"] == "exact_match"
    from sft_dist.report.run import write_report

    assert "eval.metric=auto" in write_report(run.path).read_text()


def test_another_model_is_judged_on_the_same_examples(run: RunFolder, tmp_path: Path) -> None:
    shutil.copytree(run.export, tmp_path / "other")
    result = command.evaluate(run, Console(quiet=True), ["eval.probes=[]"], model=str(tmp_path / "other"))
    assert result["probes"] == {}
    assert result["evaluated"] == str(tmp_path / "other")


def test_what_would_judge_another_run_is_refused(run: RunFolder) -> None:
    with pytest.raises(UserError, match=r"'optim.lr=1' cannot change for an evaluation"):
        make_job(run, ["optim.lr=1"])


TASK = """task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: items.json
test_split: test
output_type: {kind}
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
{more}
metric_list:
  - metric: {metric}
    aggregation: mean
    higher_is_better: true
"""


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two local tasks of lm-evaluation-harness, their items beside them."""
    folder = tmp_path_factory.mktemp("tasks")
    items = [{"question": f"Is {i} even?", "answer": ("yes", "no")[i % 2]} for i in range(12)]
    (folder / "items.json").write_text(json.dumps(items))
    pick = {
        "name": "toy_pick",
        "kind": "multiple_choice",
        "metric": "acc",
        "more": 'doc_to_choice: ["yes", "no"]',
    }
    say = {
        "name": "toy_say",
        "kind": "generate_until",
        "metric": "exact_match",
        "more": "generation_kwargs: {max_gen_toks: 3, until: ['.']}",
    }
    for task in (pick, say):
        (folder / f"{task['name']}.yaml").write_text(TASK.format(**task))
    return folder


def test_the_harness_asks_local_task_files_offline(
    run: RunFolder, benchmark: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lm_eval", reason="the extra `harness` is not installed")
    from sft_dist.core.files import read_object
    from sft_dist.render.tokenizer import TextTokenizer
    from sft_dist.report.run import summary_table, write_report

    TextTokenizer.load(read_json(run.stores)["tokenizer"]).save(run.export)
    monkeypatch.chdir(benchmark.parent)
    assert main(["evaluate", str(run.path), f"harness={benchmark.name}"]) == 0
    result = read_object(run.path / "eval" / "harness.json", "")
    assert {t: (f["n"], f["metrics"][0]["metric"]) for t, f in result["tasks"].items()} == {
        "toy_pick": (12, "acc"),
        "toy_say": (12, "exact_match"),
    }
    acc = result["tasks"]["toy_pick"]["metrics"][0]
    said = [
        x
        for x in read_jsonl(run.path / "eval" / "harness.jsonl")
        if (x["task"], x["who"]) == ("toy_pick", "model")
    ]
    assert acc["score"]["model"]["mean"] == sum(x["scores"]["acc"] for x in said) / 12
    assert acc["difference"]["difference"] == 0.0  # the base has the same weights
    page = write_report(run.path).read_text()
    assert "95 % over items" in page
    assert "benchmark toy_pick (the export), acc:" in str(summary_table(run.path).caption)


def test_without_the_extra_one_sentence_names_it(
    run: RunFolder, benchmark: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None)
    assert main(["evaluate", str(run.path), f"harness={benchmark}"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "install the extra: pip install 'sft-dist[harness]'" in said
    assert "Traceback" not in said


def test_a_task_file_that_the_harness_refuses_is_one_sentence(
    run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("lm_eval", reason="the extra `harness` is not installed")
    (tmp_path / "bad.yaml").write_text(
        "task: bad\ndataset_path: json\noutput_type: generate_until\ntest_split: test\n"
    )
    assert main(["evaluate", str(run.path), f"harness={tmp_path / 'bad.yaml'}"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "lm-evaluation-harness ended with an error" in said
    assert "Traceback" not in said


def test_checkpoints_have_no_place_beside_the_harness(
    run: RunFolder, benchmark: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(run.path), f"harness={benchmark}", "--checkpoint", "step-00000001"]) == 2
    assert "harness= asks one model" in " ".join(capsys.readouterr().err.split())
