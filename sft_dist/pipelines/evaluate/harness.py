"""Run folder, task files -> eval/harness.json: lm-evaluation-harness on the export and on the base, offline.

`python -m sft_dist.pipelines.evaluate.harness --job FILE` is the process that loads the harness and the models. It reads nothing
but the job. Each task file is read with its own folder as the current one, so that it can name its data beside it.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import chdir
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from sft_dist.core.errors import UserError
from sft_dist.core.files import expanded, write_checked, write_json, write_text
from sft_dist.core.runfolder import RunFolder
from sft_dist.evals.harness import FORMAT, Item, Total, harness_scores, read_output
from sft_dist.evals.score import BASE, MODEL, finite
from sft_dist.pipelines.evaluate.job import Job, make_job

KEY = "harness"
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1"}
BOOTSTRAPS = 1000  # of the harness, for standard errors of metrics that are no means
_NAME = re.compile(r"^(?:task|group)\s*:\s*[\"']?([\w.+/-]+)", re.MULTILINE)


def evaluate_harness(
    folder: RunFolder,
    asked: str,
    console: Console,
    overrides: Sequence[str] = (),
    *,
    model: str | None = None,
) -> dict[str, Any]:
    """Ask the export of a run, and the base beside it, the tasks of task files of lm-evaluation-harness; write eval/harness.json.

    Args:
        folder: The run folder.
        asked: Task files (YAML) or folders of them, separated by commas.
        console: Where progress is shown.
        overrides: Changes of `eval` and `launch`.
        model: A model folder that is asked instead of the export.

    Raises:
        UserError: When the harness is not installed, a task file is none, or the harness ends with an error.
    """
    job = make_job(folder, overrides, model=model)
    tasks = named_tasks(asked)
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError(
            "harness= needs lm-evaluation-harness, which is not installed, so nothing was asked; install the extra: pip install 'sft-dist[harness]'"
        )
    out = job.out / "harness"
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "job.json", {"tasks": tasks, **_models(job)})
    log = folder.path / "logs" / "harness.log"
    log.parent.mkdir(exist_ok=True)
    with console.status(f"lm-evaluation-harness: {asked}"), log.open("wb") as said:
        command = [
            sys.executable,
            "-m",
            "sft_dist.pipelines.evaluate.harness",
            "--job",
            str((out / "job.json").resolve()),
        ]
        done = subprocess.run(
            command, env={**os.environ, **OFFLINE}, stdout=said, stderr=subprocess.STDOUT, check=False
        )
    if done.returncode:
        said_last = [x for x in log.read_text(encoding="utf-8", errors="replace").splitlines() if x.strip()]
        raise UserError(
            f"lm-evaluation-harness ended with an error, so there are no scores of {asked}: {said_last[-1] if said_last else 'it said nothing'} ({log})"
        )
    answers = {
        who: json.loads((out / f"{who}.json").read_bytes())
        for who in (MODEL, BASE)
        if (out / f"{who}.json").is_file()
    }
    totals = {who: [Total(**_nan(t)) for t in a["totals"]] for who, a in answers.items()}
    items = {who: [Item(**i) for i in a["items"]] for who, a in answers.items()}
    result = {
        "format": FORMAT, "harness": answers[MODEL]["version"], "evaluated": job.label, "base": job.base if BASE in answers else None,
        "chat_template": answers[MODEL]["chat_template"], "tasks": harness_scores(totals, items, seed=job.config.seed),
    }  # fmt: skip
    lines = [{"who": who, **asdict(i)} for who, members in items.items() for i in members]
    write_text(job.out / "harness.jsonl", "".join(json.dumps(x, ensure_ascii=False) + "\n" for x in lines))
    write_checked(job.out / "harness.json", finite(result))
    return result


def named_tasks(asked: str) -> list[dict[str, Any]]:
    """Return the folders of task files with the tasks that are asked of each; null: all.

    Raises:
        UserError: When a path is no task file and no folder of them.
    """
    out: list[dict[str, Any]] = []
    for text in filter(None, (part.strip() for part in asked.strip("[]").split(","))):
        path = expanded(text)
        if path.is_dir() and any(path.rglob("*.yaml")):
            out.append({"folder": str(path.resolve()), "task": None})
        elif (
            path.is_file()
            and path.suffix in (".yaml", ".yml")
            and (name := _NAME.search(path.read_text("utf-8")))
        ):
            out.append({"folder": str(path.resolve().parent), "task": name[1]})
        else:
            raise UserError(
                f"harness={text} is neither a task file of lm-evaluation-harness (YAML with `task:`) nor a folder of them, so there is nothing "
                "to ask; name one, with its data beside it (docs/evaluation.md has an example)"
            )
    if not out:
        raise UserError(
            "harness= names no task file, so there is nothing to ask; give harness=FILE.yaml or harness=FOLDER"
        )
    return out


def _models(job: Job) -> dict[str, Any]:
    config = job.config
    adapter = Path(job.model, "adapter_config.json")
    arguments: dict[str, Any] = {"pretrained": job.model}
    if adapter.is_file():
        arguments = {
            "pretrained": json.loads(adapter.read_bytes())["base_model_name_or_path"],
            "peft": job.model,
        }
    models = {MODEL: arguments}
    if config.eval.base:
        models[BASE] = {"pretrained": job.base, "revision": config.model.revision or "main"}
    return {
        "models": models, "tokenizer": job.model, "dtype": config.model.dtype, "batch_size": config.eval.prompts_per_batch,
        "system": config.render.system, "template_kwargs": config.render.template_kwargs, "seed": config.seed,
    }  # fmt: skip


def _nan(total: Mapping[str, Any]) -> dict[str, Any]:
    return {k: float("nan") if v is None else v for k, v in total.items()}


def main() -> int:
    """Ask the models; write <who>.json beside the job."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--job", type=Path, required=True)
    path: Path = parser.parse_args().job
    job = json.loads(path.read_bytes())
    for who in (MODEL, BASE):
        (path.parent / f"{who}.json").unlink(missing_ok=True)
    for who, arguments in job["models"].items():
        write_json(path.parent / f"{who}.json", finite(_ask(job, arguments)))
    return 0


def _ask(job: Mapping[str, Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    import lm_eval
    import torch
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    # both are asked with the tokens and the template of the run, as everywhere
    model = HFLM(
        **arguments,
        tokenizer=job["tokenizer"],
        dtype=job["dtype"],
        batch_size=job["batch_size"],
        device="cuda" if torch.cuda.is_available() else "cpu",
        chat_template_args=job["template_kwargs"],
    )
    template = model.tokenizer.chat_template is not None
    totals, items = [], []
    for where in job["tasks"]:
        with chdir(where["folder"]):
            manager = TaskManager(include_path=where["folder"], include_defaults=False)
            found = lm_eval.simple_evaluate(
                model=model,
                tasks=[where["task"]] if where["task"] else list(manager.all_subtasks),
                task_manager=manager,
                apply_chat_template=template,
                system_instruction=job["system"],
                bootstrap_iters=BOOTSTRAPS,
                random_seed=job["seed"],
            )
        some, more = read_output(found)
        totals += [asdict(t) for t in some]
        items += [asdict(i) for i in more]
    return {"version": lm_eval.__version__, "chat_template": template, "totals": totals, "items": items}


if __name__ == "__main__":
    sys.exit(main())
