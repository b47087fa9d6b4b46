"""A real model as the teacher: a tiny one of random weights behind `transformers serve`."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from sft_dist.config.load import load_config
from sft_dist.core.files import read_jsonl
from sft_dist.core.records import Example
from sft_dist.pipelines.data.construct import construct
from sft_dist.sources import open_source

START_S = 180
PROMPTS = [
    f"Say something about the {noun}." for noun in ("cat", "dog", "tree", "river", "stone", "lamp", "hat")
]


@pytest.fixture
def served(base_model: Path, tmp_path: Path) -> Iterator[tuple[Path, str, subprocess.Popen[bytes]]]:
    """The model's folder, the server's url, its process."""
    from transformers.utils.import_utils import is_serve_available

    if not is_serve_available():
        pytest.skip("transformers serve needs fastapi, uvicorn and openai (the dev extra has them)")
    model = shutil.copytree(base_model, tmp_path / "model")
    # Random weights end an answer by chance only: the end-of-turn token is made likelier, some seven tokens on the average.
    end = json.loads((model / "config.json").read_text())["eos_token_id"]
    sampling = {"do_sample": True, "eos_token_id": end, "pad_token_id": end, "sequence_bias": [[[end], 4.0]]}
    (model / "generation_config.json").write_text(json.dumps(sampling))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = "from transformers.cli.transformers import main; main()"
    arguments = ["serve", str(model), "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    log = tmp_path / "serve.log"
    with log.open("wb") as out:
        process = subprocess.Popen([sys.executable, "-c", command, *arguments], stdout=out, stderr=out)
    try:
        _wait(f"http://127.0.0.1:{port}/health", process, log)
        yield model, f"http://127.0.0.1:{port}/v1", process
    finally:
        process.kill()
        process.wait()


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end and process.poll() is None:
        try:
            if httpx.get(url, trust_env=False, timeout=5).status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            pass
        time.sleep(1)
    pytest.skip(f"transformers serve did not start: {log.read_text(errors='replace')[-500:]}")


@pytest.mark.slow
@pytest.mark.parametrize("endpoint", ["chat", "completions"])
def test_answers_of_a_served_model(served, tmp_path, endpoint):
    model, url, process = served
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    file = tmp_path / "x.yaml"
    file.write_text(
        f"""
model: {{path: {model}}}
data:
  dir: {tmp_path / "data"}
  sources:
    asked: {{kind: alpaca, path: {tmp_path / "prompts.txt"}, instruction_field: text, prompts: true, license: own}}
construct:
  teacher: {{model: "{model}", url: "{url}", endpoint: {endpoint}, concurrency: 2, timeout_s: 120}}
  sets:
    answered: {{method: answer, seeds: [asked], max_tokens: 48, attempts: 4}}
"""
    )
    config = load_config([], file)
    made = construct(config)["answered"]
    assert made.examples + sum(made.dropped.values()) == len(PROMPTS)
    assert made.examples >= 3
    [launch] = read_jsonl(tmp_path / "data" / "construct" / "launches.jsonl")
    assert launch["answered"] == launch["sent"] >= len(PROMPTS)
    assert launch["completion_tokens"] > 0
    written = made.path.read_bytes()

    process.kill()  # what was paid for needs no server any more
    process.wait()
    assert construct(config)["answered"] == made
    assert made.path.read_bytes() == written
    shutil.rmtree(made.path.parent)
    assert construct(config)["answered"] == made
    assert made.path.read_bytes() == written

    examples_file = tmp_path / "train.yaml"
    examples_file.write_text(
        f"model: {{path: {model}}}\ndata: {{sources: {{s: {{kind: examples, path: {made.path}}}}}}}\n"
    )
    examples = list(open_source("s", load_config([], examples_file).data.sources["s"]))
    assert all(isinstance(e, Example) and not e.is_prompt and e.output for e in examples)
    assert {e.instruction for e in examples} <= set(PROMPTS)
