"""Run folder, overrides, a model -> what an evaluation does: the same for the command and for its ranks.

The command writes <out>/job.json and <out>/requests.jsonl; the ranks read nothing else of the run but its renderer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sft_dist.config import RunConfig
from sft_dist.config.load import config_from_json, load_run_config
from sft_dist.core.errors import UserError
from sft_dist.core.files import fingerprint, read_jsonl, read_object, write_checked, write_json, write_text
from sft_dist.core.records import Example, example_from_dict, example_to_dict
from sft_dist.core.runfolder import RunFolder
from sft_dist.evals.generate import part_folder
from sft_dist.evals.splits import KINDS, Kind
from sft_dist.pipelines.data.renderer import make_renderer
from sft_dist.render.renderer import Renderer

FREE = ("eval", "launch")
"""Sections that an evaluation may change; anything else would judge another model than the run's."""
PARTS_FORMAT = 2
"""Of the answers that are kept; raised when their fields change."""
JOB = "job.json"
CURRENT = "current.json"  # in <run>/eval: where the job lies that runs now
REQUESTS = "requests.jsonl"
JOB_FIELDS = {"config": dict, "overrides": list, "label": str, "model": str, "base": str}


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One evaluation.

    Attributes:
        run: The run folder.
        config: The run's config with the overrides.
        overrides: Dotted keys with values, as given.
        label: What is evaluated, for people: "the export", a checkpoint's name, a model folder.
        model: Folder or hub id of the model.
        base: Folder or hub id of the model that training started from.
        out: Folder of the results: <run>/eval, or <run>/eval/others/<name> with other settings or another model.
    """

    run: RunFolder
    config: RunConfig
    overrides: tuple[str, ...]
    label: str
    model: str
    base: str
    out: Path

    @property
    def parts(self) -> Path:
        """Where answers of the model are kept, to be continued."""
        return self.run.path / "eval" / "parts"

    @property
    def base_parts(self) -> Path:
        """Where the base model's answers are kept: outside the run, for every run and trial over this data."""
        return Path(self.config.data.dir) / "eval" / "answers"

    def renderer(self) -> Renderer:
        """Return the renderer of the run.

        Raises:
            UserError: When tokenizer or template changed since training.
        """
        stores = self.run.read_stores()
        renderer = make_renderer(
            self.config, Path(self.config.data.dir), _no_texts, clock=stores.get("clock")
        )
        if renderer.fingerprint != stores["render"]:
            raise UserError(
                f"tokenizer or template changed since {self.run.path} was trained, so prompts would differ from training; "
                "restore them, or train again"
            )
        return renderer

    def part(self, who: str, kind: Kind, renderer: str, examples: Sequence[Example]) -> Path:
        """Return the folder of one piece of work.

        Args:
            who: "model" or "base".
            kind: What the model is asked for.
            renderer: Fingerprint of the renderer.
            examples: What is asked.
        """
        limit = [self.config.eval.max_new_tokens] if kind == "generate" else []
        options = [PARTS_FORMAT, self.config.model.dtype, renderer, *limit, [e.id for e in examples]]
        if who == "model":
            return part_folder(self.parts, kind, self.model, *options)
        from sft_dist.model.weight_files import base_fingerprint  # torch

        known = base_fingerprint(self.base, self.config.model.revision)
        return self.base_parts / f"{kind}-{fingerprint([known, *options])[:12]}"

    def write(self, asked: Mapping[Kind, Sequence[Example]]) -> None:
        """Write what the ranks read: the examples of each kind of work."""
        lines = [{"kind": k, "example": example_to_dict(e)} for k, es in asked.items() for e in es]
        write_text(
            self.out / REQUESTS, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        )
        fields = {
            "label": self.label,
            "model": self.model,
            "base": self.base,
            "overrides": list(self.overrides),
        }
        write_checked(self.out / JOB, {**fields, "config": self.config.model_dump(mode="json")})
        write_json(self.run.path / "eval" / CURRENT, {"out": str(self.out.resolve())})

    @classmethod
    def read(cls, run: RunFolder) -> tuple[Job, dict[Kind, list[Example]]]:
        """Return the job that the command wrote last, and the examples of each kind of work."""
        remedy = "start the evaluation again"
        out = Path(read_object(run.path / "eval" / CURRENT, remedy, {"out": str})["out"])
        fields = read_object(out / JOB, remedy, JOB_FIELDS)
        job = cls(
            run=run,
            config=config_from_json(json.dumps(fields["config"])),
            overrides=tuple(fields["overrides"]),
            label=fields["label"],
            model=fields["model"],
            base=fields["base"],
            out=out,
        )
        found: dict[Kind, list[Example]] = {kind: [] for kind in KINDS}
        for line in read_jsonl(out / REQUESTS):
            found[line["kind"]].append(example_from_dict(line["example"]))
        return job, found


def make_job(
    folder: RunFolder, overrides: Sequence[str] = (), *, model: str | None = None, label: str = ""
) -> Job:
    """Return the evaluation of a run's export, or of another model under its settings.

    Args:
        folder: The run folder.
        overrides: Such as ("eval.max_new_tokens=64",).
        model: Folder or hub id; None: the run's export.
        label: How the model is called; None: its path.

    Raises:
        UserError: When an override is no key that an evaluation may change, or there is no model.
    """
    config = _overridden(load_run_config(folder.path), overrides)
    if model is None and not any(
        (folder.export / n).is_file() for n in ("config.json", "adapter_config.json")
    ):
        raise UserError(
            f"{folder.export} holds no model, so there is nothing to evaluate; run: sft-dist export {folder.path}"
        )
    out = folder.path / "eval"
    if model is not None or overrides:
        name = (label or Path(model or "export").name).replace("/", "-")
        changed = f"-{fingerprint(sorted(overrides))[:6]}" if overrides else ""
        out = out / "others" / f"{name}{changed}"
    return Job(
        run=folder,
        config=config,
        overrides=tuple(overrides),
        label=label or model or "the export",
        model=model or str(folder.export),
        base=str(folder.path / "init") if config.model.shape else str(config.model.path),
        out=out,
    )


def _overridden(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    import yaml

    if not overrides:
        return config
    values: dict[str, Any] = config.model_dump(mode="json")
    for text in overrides:
        key, given, raw = text.partition("=")
        section, _, rest = key.partition(".")
        if not given or section not in FREE or not rest:
            raise UserError(
                f"{text!r} cannot change for an evaluation, because it would judge another run than this one; "
                f"give KEY=VALUE with a key of {' or '.join(FREE)}, such as eval.max_new_tokens=64"
            )
        inner = values[section]
        *path, last = rest.split(".")
        for part in path:
            inner = inner.setdefault(part, {}) if isinstance(inner, dict) else {}
        inner[last] = yaml.safe_load(raw)
    return config_from_json(json.dumps(values))


def _no_texts() -> list[str]:
    raise UserError(
        "the trained tokenizer is gone from data.dir, so prompts cannot be rendered; run: sft-dist prepare"
    )
