"""The clock that a chat template reads is fixed by the first preparation of a folder."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

from sft_dist.config import RunConfig
from sft_dist.pipelines.data.renderer import CLOCK, make_renderer
from sft_dist.render.tokenizer import train_tokenizer

TEMPLATE = (
    "{{ strftime_now('%Y-%m-%d') }}\n{% for m in messages %}{{ m.role + ': ' + m.content + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


def test_the_clock_is_that_of_the_first_preparation(tmp_path: Path, monkeypatch) -> None:
    train_tokenizer(["x"], 300).save(tmp_path / "tokenizer", template_text=TEMPLATE)
    config = RunConfig.model_validate(
        {
            "name": "t",
            "model": {"path": None, "shape": {"hidden_size": 8, "layers": 1, "heads": 1, "intermediate_size": 8}, "tokenizer": str(tmp_path / "tokenizer")},
            "data": {"sources": {"t": {"kind": "chat", "path": "x.jsonl"}}},
        }
    )  # fmt: skip
    folder = tmp_path / "data"
    folder.mkdir()
    first = make_renderer(config, folder, list)
    assert (folder / CLOCK).is_file()
    assert [p.name for p in folder.iterdir()] == [CLOCK]

    class Later(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.now(tz) + timedelta(days=3)

    monkeypatch.setattr("sft_dist.render.renderer.datetime", Later)
    assert make_renderer(config, folder, list).fingerprint == first.fingerprint
    kept = first.clock.isoformat()
    assert make_renderer(config, tmp_path / "gone", list, clock=kept).fingerprint == first.fingerprint
    asked = config.model_copy(
        update={"render": config.render.model_copy(update={"clock": "2026-01-02T03:04"})}
    )
    other = make_renderer(asked, folder, list)
    assert other.clock == datetime.fromisoformat("2026-01-02T03:04")
    assert other.fingerprint != first.fingerprint
