"""Every field of how it trains reaches the part that it is for: the planner, the loop, the saver, the tracker."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from sft_dist.config.load import load_config
from sft_dist.core.files import read_jsonl
from sft_dist.core.records import Position, StepMetrics, StepPlan
from sft_dist.core.runfolder import RunFolder
from sft_dist.mix import Mixture
from sft_dist.model.ulysses import SequenceGroup
from sft_dist.pack import CostModel
from sft_dist.pipelines.evaluate import command as evaluation
from sft_dist.pipelines.evaluate.job import make_job
from sft_dist.pipelines.train import planning, worker
from sft_dist.pipelines.train.resume import Resumed, remaining
from sft_dist.shards.verify import StoreCheck
from sft_dist.train.evaluate import set_losses
from sft_dist.train.run_log import RunLogger

Sft = Callable[..., tuple[int, str, str]]
COST = CostModel(linear_flops_per_token=10.0, attention_flops_per_pair=2.0, head_flops_per_target=100.0)


class Called(Exception):
    """Stands in for what would follow."""


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_pack_and_mix_reach_the_planner(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def planned(*overrides: str) -> dict[str, Any]:
        monkeypatch.setattr(planning, "Planner", lambda corpus, **options: {"corpus": corpus, **options})
        corpus: Any = SimpleNamespace(source_names=[])
        config = load_config(overrides, project / "my.yaml")
        made: Any = planning.make_planner(config, corpus, world_size=2, cost=COST)
        return {k: v for k, v in made.items() if k not in ("corpus", "cost")}

    changed = planned(
        "pack.seq_len=64", "pack.too_long=drop", "pack.window=7", "pack.packing=false", "pack.balance_window=3",
        "pack.short_first_steps=2", "train.tokens_per_step=640", "train.micro_rows=5", "seed=9", "mix.cap=11", "mix.preset=null",
        "mix.task_min=1", "mix.task_max=12", "mix.epoch_examples=13", "mix.drop_duplicates=false",
        "model.gradient_checkpointing=true",
    )  # fmt: skip
    assert changed == {
        "mixture": Mixture(sources={}, cap=11, preset=None, task_min=1, task_max=12, epoch_examples=13, drop_duplicates=False),
        "shared": None, "seq_len": 64, "too_long": "drop", "window": 7, "packing": False, "rows_per_step": 10, "micro_rows": 5, "world_size": 2,
        "balance_window": 3, "short_first_steps": 2, "seed": 9, "micro_cost": COST.on_device(recomputed=True),
    }  # fmt: skip
    assert planned()["micro_cost"] == COST.on_device(recomputed=False)


def test_optim_train_and_checkpoint_reach_loop_saver_and_tracker(
    project: Path, group: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def catch(name: str, result: Any) -> Callable[..., Any]:
        def called(*arguments: Any, **options: Any) -> Any:
            seen[name] = (arguments, options)
            return result

        return called

    monkeypatch.setattr(
        worker.loop, "run", catch("run", (Position(step=0, epoch=0, epoch_step=0), "stopped", ""))
    )
    monkeypatch.setattr(worker, "Saver", catch("saver", SimpleNamespace(best=3)))
    monkeypatch.setattr(worker.Tracker, "start", catch("tracker", nullcontext()))
    monkeypatch.setattr(worker, "with_backward", lambda cost, _hf: cost)
    monkeypatch.setattr(worker, "Profiler", catch("profiler", SimpleNamespace(close=lambda: None)))
    config = load_config(
        [
            "optim.lr=1.0", "optim.schedule=wsd", "optim.decay_steps=2", "optim.min_lr_share=0.5", "optim.warmup_steps=2", "optim.clip=0.3",
            "train.eval_every_steps=7", "train.max_skipped_steps=3", "train.profile=[2,3]", "seed=9", "checkpoint.save_every_steps=4",
            "checkpoint.save_every_minutes=5", "checkpoint.keep_last=6", "checkpoint.keep_best=1", "data.validation.share=0.1", "checkpoint.optimizer_keep_last=2",
            "wandb.mode=offline", "wandb.project=p", "wandb.entity=e", "wandb.group=g", "wandb.tags=[t]",
        ],
        project / "my.yaml",
    )  # fmt: skip
    engine = SimpleNamespace(device=torch.device("cpu"), module=SimpleNamespace(hf=None))
    parts: Any = SimpleNamespace(engine=engine, ema=None, sequence=None, base="b1")
    corpus = SimpleNamespace(task_names=["t"], source_names=["s"])
    made: Any = SimpleNamespace(corpus=corpus, planner=None, hash=5, steps=10, epoch_steps=6, cost=COST)
    beat: Any = SimpleNamespace(progress=None)
    start = Resumed(position=Position(), validation_losses={3: 2.5})
    ended = worker._loop(config, RunFolder(project), parts, made, start, StoreCheck(None), beat, None, {})
    assert ended == (Position(), "stopped", "", 3)
    assert seen["saver"][1]["losses"] == {3: 2.5}
    (_, _, steps), options = seen["run"]
    assert [steps.lr_of(step) for step in (0, 1, 2, 8, 9, 10)] == [0.5, 1.0, 1.0, 1.0, 0.75, 0.5]
    assert (options["seed"], options["clip"], steps.in_epoch, steps.total) == (9, 0.3, 6, 10)
    assert (options["train"], options["checkpoint"]) == (config.train, config.checkpoint)
    assert options["flops"].useful(4, 1, 16) == 3 * (40 + 16 + 100)
    assert seen["saver"][1]["keep"] == config.checkpoint
    assert seen["saver"][1]["facts"] == {"plan_hash": 5, "base": "b1"}
    assert seen["profiler"][0][0] == (2, 3)
    tracked = {k: seen["tracker"][1][k] for k in ("mode", "name", "project", "entity", "group", "tags")}
    assert tracked == {
        "mode": "offline", "name": "mine", "project": "p", "entity": "e", "group": "g", "tags": ("t",),
    }  # fmt: skip


def test_threads_of_a_rank(project: Path, group: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(_: Any) -> None:
        raise Called

    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    monkeypatch.setattr(RunFolder, "read_stores", stop)
    heartbeat: Any = None
    for words in (["train.threads_per_rank=3"], []):
        with pytest.raises(Called):
            worker.train(load_config(words, project / "my.yaml"), RunFolder(project), heartbeat)
    assert asked == [3]


def test_the_tracker_gets_every_nth_step_and_the_file_all(tmp_path: Path) -> None:
    tracked: list[dict[str, Any]] = []
    tracker: Any = SimpleNamespace(log=tracked.append)
    folder = RunFolder(tmp_path)
    record = RunLogger(folder, tracker, is_main=True, steps=5, log_every=2, remote=None)
    other = RunLogger(folder, tracker, is_main=False, steps=5, log_every=1, remote=None)
    for step in range(1, 6):
        for each in (record, other):
            each.step(metrics(step))
    record.evaluation(5, {"loss": 1.0})
    lines = read_jsonl(folder.metrics)
    assert [(m["kind"], m["step"]) for m in lines] == [*(("train", s) for s in range(1, 6)), ("eval", 5)]
    assert [(m["kind"], m["step"]) for m in tracked] == [("train", 2), ("train", 4), ("eval", 5)]
    assert lines[0]["grad_norm"] is None  # NaN is no JSON
    assert folder.status()["step"] == 5


def test_short_steps_do_not_wait_for_the_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("sft_dist.train.run_log.time.monotonic", lambda: now)
    folder = RunFolder(tmp_path)
    record = RunLogger(folder, SimpleNamespace(log=print), is_main=True, steps=9, log_every=99, remote=None)  # type: ignore[arg-type]
    told = []
    for step in range(1, 10):
        record.step(metrics(step))
        told.append(folder.status()["step"])
        now += 0.4
    assert told == [1, 1, 1, 4, 4, 4, 7, 7, 9]  # at once, every second, and the last


def metrics(step: int) -> StepMetrics:
    return StepMetrics(
        step=step, epoch=0, loss=1.0, grad_norm=float("nan"), lr=0.1, tokens=1, target_tokens=1, tokens_per_s=1.0, mfu=None, fill=1.0,
        imbalance=1.0, step_s=1.0, data_wait_s=0.0, memory_bytes=1, skipped=False, task_loss={}, source_loss={},
        target_tokens_per_s=1.0,
    )  # fmt: skip


def test_the_validation_loss_looks_at_as_many_tokens_as_it_may(sft: Sft, project: Path, group: None) -> None:
    assert sft("prepare", "my.yaml")[0] == 0

    def passes(eval_tokens: int) -> int:
        calls, moves = [], []

        class Engine:
            device = torch.device("cpu")
            train = eval = staticmethod(lambda: None)

            def __call__(self, *inputs: Any) -> tuple[torch.Tensor, torch.Tensor]:
                calls.append(inputs[0].shape)
                return torch.zeros(()), torch.ones(len(inputs[4]))

        words = [f"train.eval_tokens={eval_tokens}", "pack.seq_len=64", "train.micro_rows=1"]
        config = load_config(words, project / "my.yaml")
        sequence = SequenceGroup(size=1, place=0, data_rank=0, data_ranks=1, group=None)
        evaluate = set_losses(
            config,
            Engine(),
            {"validation": "data/eval/stores/seen"},
            COST,
            sequence,
            moved=lambda: moves.append(1),
        )
        assert evaluate()["loss"] == pytest.approx(1.0)
        assert len(moves) == len(calls)  # a long evaluation is not taken for a hang
        return len(calls)

    assert (passes(1), passes(64), passes(130)) == (1, 1, 2)
    assert passes(1_000_000) > 2  # all there is


def test_each_set_has_a_curve_and_validation_alone_chooses(sft: Sft, project: Path, group: None) -> None:
    words = [
        "data.sources.records.share=null",
        "data.holdout.tasks=[chats]",
        "data.holdout.examples_per_task=3",
        "data.validation.share=0.2",
    ]
    code, out, _ = sft("check", "my.yaml", *words)
    assert code == 0
    assert "passes an epoch: records 1" in out
    assert "held out, far (1): chats" in out
    assert sft("prepare", "my.yaml", *words)[0] == 0
    stores = {c: f"data/eval/stores/{c}" for c in ("validation", "seen", "heldout_far")}
    assert sorted(p.name for p in Path("data/eval/stores").iterdir()) == sorted(stores)

    class Engine:
        device = torch.device("cpu")
        train = eval = staticmethod(lambda: None)
        passes = 0

        def __call__(self, *inputs: Any) -> tuple[torch.Tensor, torch.Tensor]:
            self.passes += 1
            return torch.zeros(()), torch.full((len(inputs[4]),), float(self.passes))

    config = load_config(["pack.seq_len=512", "train.micro_rows=8", *words], project / "my.yaml")
    sequence = SequenceGroup(size=1, place=0, data_rank=0, data_ranks=1, group=None)
    found = set_losses(config, Engine(), stores, COST, sequence, moved=lambda: None)()
    assert found["set_loss"] == {"validation": 1.0, "seen": 2.0, "heldout_far": 3.0}  # a pass each
    assert found["loss"] == 1.0
    assert found["task_loss"] == {"first": 2.0, "second": 2.0, "chats": 3.0}


def test_evaluation_takes_so_many_examples_of_a_task(sft: Sft, project: Path) -> None:
    assert sft("prepare", "my.yaml")[0] == 0
    for most in (1, 2):
        run = project / "runs" / f"most-{most}"
        assert (
            sft("write-run", "my.yaml", f"eval.max_examples_per_task={most}", "--run-dir", str(run))[0] == 0
        )
        (run / "export").mkdir()
        (run / "export" / "config.json").write_text("{}")
        sets = evaluation._sets(make_job(RunFolder(run)))
        assert set(Counter(e.task for members in sets.values() for e in members).values()) == {most}


def test_no_epoch_is_planned_beyond_the_last_step() -> None:
    asked: list[int] = []

    class Counting:
        def steps(self, state: Position, epochs: int) -> Iterator[Any]:
            for i in range(state.step, 9):
                asked.append(i)
                yield (
                    StepPlan(epoch=0, step=i, micro_rows=(), target_weight=1.0, imbalance=1.0, fill=1.0),
                    Position(step=i + 1, epoch_step=i + 1),
                )

    config = SimpleNamespace(train=SimpleNamespace(smoke=False, epochs=3))
    start = Position(step=2, epoch=0, epoch_step=2)
    alone = SequenceGroup(size=1, place=0, data_rank=0, data_ranks=1)
    left = [at.step for at, _, _ in remaining(config, Counting(), None, start=start, steps=5, sequence=alone)]
    assert left == [3, 4, 5]
    assert asked == [2, 3, 4]
    assert not list(remaining(config, Counting(), None, start=start, steps=2, sequence=alone))
