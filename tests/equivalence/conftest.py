"""A tiny base model and one torchrun launch a world size, shared by all numeric tests."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from case import Case
from ranks import on_ranks

HERE = Path(__file__).parent
Outcome = Callable[..., Any]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "cases(*cases, world=2): cases of a launch that a test looks at (see case.py)"
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The first test that looks at a launch waits for all of its cases, and for the launches that it builds on."""
    for item in items:
        if item.path.parent == HERE:
            item.add_marker(pytest.mark.timeout(2700))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with two layers, grouped key-value heads and tied embeddings."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=128,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        max_position_embeddings=128,
        bos_token_id=None,
        eos_token_id=2,
    )
    folder = tmp_path_factory.mktemp("tiny") / "model"
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all launches keep checkpoints and gradients."""
    return tmp_path_factory.mktemp("numerics")


def cases_of(item: pytest.Item) -> Iterator[tuple[int, Case]]:
    """Yield (world size, case) of all that a test looks at: its parameters that are cases, and its marks."""
    parameters = (
        item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
    )
    yield from (
        (parameters.get("world", 2), value) for value in parameters.values() if isinstance(value, Case)
    )
    for mark in item.iter_markers("cases"):
        yield from ((mark.kwargs.get("world", 2), case) for case in mark.args)


@pytest.fixture(scope="session")
def outcome(request: pytest.FixtureRequest, tiny_model: Path, scratch: Path) -> Outcome:
    """Return what a case gave on `world` ranks (2 by default).

    The cases of all tests of this session that share group, phase and world size run in one launch, when the first of
    them is asked for. Phase 1 continues, in new processes, what phase 0 wrote.
    """
    wanted: dict[tuple[str, int, int], list[Case]] = {}

    def add(world: int, case: Case) -> None:
        for needed in case.needs:
            add(*needed)
        together = wanted.setdefault((case.group, int(bool(case.needs)), world), [])
        if case not in together:
            together.append(case)

    for item in request.session.items:
        if item.path.parent == HERE:
            for world, case in cases_of(item):
                add(world, case)
    done: dict[tuple[str, int, int], dict[str, Any] | AssertionError] = {}

    def run(launch: tuple[str, int, int]) -> dict[str, Any]:
        if launch not in done:
            for group, phase, world in [k for k in wanted if k[0] == launch[0] and k[1] < launch[1]]:
                run((group, phase, world))
            name = "-".join(map(str, launch))
            out, cases = scratch / f"{name}.json", scratch / f"{name}.pickle"
            cases.write_bytes(pickle.dumps(wanted[launch]))
            try:
                on_ranks(
                    launch[2], HERE / "run_cases.py", str(out), str(tiny_model), str(scratch), str(cases)
                )
                done[launch] = json.loads(out.read_text())
            except AssertionError as failure:  # a launch that failed is not tried again by the next test
                done[launch] = failure
        if isinstance(seen := done[launch], AssertionError):
            raise seen
        return seen

    return lambda case, world=2: run((case.group, int(bool(case.needs)), world))[repr(case)]
