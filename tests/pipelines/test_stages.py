"""Training in stages: the same template, what was trained on before is known; talking with a run; adapters from elsewhere."""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sft_dist.config.load import load_config
from sft_dist.config.model import LoraConfig
from sft_dist.core.errors import UserError
from sft_dist.core.files import read_json, write_json
from sft_dist.core.records import Example, Message
from sft_dist.core.runfolder import RunFolder
from sft_dist.pipelines.data.lineage import lineage_of, trained_before
from sft_dist.pipelines.evaluate.chat import Talk, open_talk
from sft_dist.pipelines.evaluate.merge import merge

Sft = Callable[..., tuple[int, str, str]]


@pytest.fixture
def first(project: Path, base_model: Path, sft: Sft) -> Path:
    """A run whose export is the base itself; nothing is trained."""
    assert sft("prepare", "my.yaml")[0] == 0
    assert sft("write-run", "my.yaml", "--run-dir", "runs/one")[0] == 0
    folder = project / "runs" / "one"
    shutil.copytree(base_model, folder / "export")
    sources = {"records": {"examples": 54}, "chats": {"examples": 20}}
    plan = {"world_size": 1, "steps": 9, "tasks": {"first": {}, "second": {}}, "sources": sources}
    write_json(folder / "plan.json", plan)
    RunFolder(folder).set_status("finished", step=9, steps=9)
    return folder


SECOND = ["model.path=null", "model.from_run=runs/one", "data.dir=two", "seed=5"]


def test_the_second_stage_knows_what_the_first_trained_on(first: Path, sft: Sft) -> None:
    code, _, err = sft("check", "my.yaml", *SECOND)
    assert code == 0, err
    assert "evaluation examples were trained on by an earlier stage" in err
    for words in (("prepare", "my.yaml"), ("write-run", "my.yaml"), ("card", "my.yaml")):
        end = ("--run-dir", "runs/next") if words[0] == "write-run" else ()
        assert sft(*words, *SECOND, *end)[0] == 0
    second = first.parent / "next"
    assert load_config(SECOND, Path("my.yaml")).model.path == "runs/one/export"
    assert read_json(second / "config.json")["model"]["path"] == str(first / "export")
    told = read_json(second / "lineage.json")
    assert (told["stages"][0]["run"], told["stages"][0]["steps"]) == (str(first), 9)
    assert 0 < len(trained_before(second)) <= told["evaluated"]
    assert "trained before" in Path("two/card/README.md").read_text()
    same = load_config([*SECOND[:2]], Path("my.yaml"))  # the same examples are held out
    evaluated = [Example(id=i, task="first", source="records", messages=()) for i in ("f" * 32,)]
    lineage = lineage_of(same, {"heldout": evaluated})
    assert lineage is not None
    assert (lineage.trained_ids, lineage.trained_tasks) == ((), ("first",))


def test_what_does_not_fit_the_first_stage_is_refused(first: Path, sft: Sft) -> None:
    for words, message in (
        (["render.template=plain"], "the model would have to unlearn them"),
        (["model.tokenizer=x"], "model.tokenizer is set as well"),
        (["model.path=x"], "model.path is set as well"),
        (["model.from_run=runs/none"], "is not a run folder"),
    ):
        code, _, err = sft("check", "my.yaml", *SECOND, *words)
        assert (code, message in err) == (2, True), err
    (first / "export" / "config.json").unlink()
    code, _, err = sft("check", "my.yaml", *SECOND)
    assert (code, "let it finish, or run: sft-dist export" in err) == (2, True)


def test_chat_asks_with_the_ids_of_training(first: Path, sft: Sft, monkeypatch: pytest.MonkeyPatch) -> None:
    talk = open_talk(RunFolder(first), max_new_tokens=3)
    said = talk.ask("Which word comes first?")
    turns = (*talk.turns, Message(role="user", content="Why?"), Message(role="assistant", content="So."))
    example = Example(id="0" * 32, task="t", source="s", messages=turns)
    (trained,) = talk._renderer.render([example])
    talk.turns = turns[:-1]
    prompt = talk.prompt()
    assert list(trained.ids[: len(prompt)]) == prompt  # type: ignore[union-attr]
    assert trained.spans[-1].start == len(prompt)  # type: ignore[union-attr]
    one = Message(role="user", content="one two three")
    talk.turns = (one,)
    left = 256 - len(talk.prompt())  # of the context
    long = Talk(talk._model, talk._renderer, max_new_tokens=left - 1)
    long.turns = (one, Message(role="assistant", content="four"), one)
    assert len(long.prompt()) == 256 - left
    assert long.turns == (one,)  # the first question had to go
    long.turns = (Message(role="user", content="one two three four"),)
    with pytest.raises(UserError, match="ask a shorter one"):
        long.prompt()
    monkeypatch.setattr(sys, "stdin", io.StringIO("Which word comes first?\n\n/quit\nnever\n"))
    code, out, _ = sft("chat", str(first), "--max-new-tokens", "3")
    assert code == 0
    assert out.strip() == said.strip()


def _adapter(base: Path, out: Path) -> Any:
    """Return a model with a peft adapter whose weights are all drawn, written to `out`."""
    from peft import LoraConfig as PeftConfig
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    settings = PeftConfig(r=2, lora_alpha=4, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), settings)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(out)
    return model.eval()


def test_an_adapter_from_elsewhere_goes_on_and_merges(base_model: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    from sft_dist.model import adapters

    theirs = _adapter(base_model, tmp_path / "adapter")
    ids = torch.arange(12)[None]
    logits = theirs(ids).logits
    values: dict[str, Any] = {"rank": 2, "alpha": 4.0, "target_modules": ("q_proj", "up_proj")}
    lora = LoraConfig(**values, adapter=str(tmp_path / "adapter"))
    ours = AutoModelForCausalLM.from_pretrained(base_model)
    adapters.add(ours, lora, seed=0)
    assert torch.equal(ours(ids).logits, logits)
    for changed, message in (
        ({"rank": 3}, "lora.rank=3, but the adapter .* use lora.rank=2"),
        ({"dora": True}, "use lora.dora=false"),
        ({"target_modules": ("q_proj",)}, "holds .*up_proj.*, which is not trained here"),
        ({"target_modules": ("q_proj", "up_proj", "k_proj")}, "lacks .*k_proj.*, which is trained here"),
    ):
        other = LoraConfig(**values | changed, adapter=lora.adapter)
        with pytest.raises(UserError, match=message):
            adapters.add(AutoModelForCausalLM.from_pretrained(base_model), other, seed=0)
    out = merge(tmp_path / "adapter", tmp_path / "merged")
    whole = AutoModelForCausalLM.from_pretrained(out).eval()
    torch.testing.assert_close(whole(ids).logits, logits, rtol=1e-4, atol=1e-5)
    assert (out / "tokenizer.json").is_file()
    with pytest.raises(UserError, match="exists and is not empty"):
        merge(tmp_path / "adapter", tmp_path / "merged")
    with pytest.raises(UserError, match="there is no adapter to merge"):
        merge(tmp_path, tmp_path / "x")
