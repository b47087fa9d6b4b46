"""Values that look valid and are not, and YAML without end: one sentence each, in bounded time. Random ones: tests/fuzz."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sft_dist.config.load import compose, load_config, validate
from sft_dist.core.errors import UserError

INF, NAN = float("inf"), float("nan")
BAD: list[tuple[str, Any]] = [
    *[(f"optim.{key}", value) for key in ("lr", "weight_decay", "eps", "clip") for value in (INF, NAN)],
    ("optim.betas", [0.9, 1.0]),
    ("optim.betas", [-0.1, 0.95]),
    ("optim.betas", [0.9, NAN]),
    ("optim.lr", True),
    ("optim.lr", "fast"),
    ("optim.betas", [True, 0.9]),
    ("loss.z_loss", INF),
    ("loss.neftune_alpha", INF),
    ("train.epochs", True),
    ("train.max_steps", True),
    ("train.tokens_per_step", 10**30),
    ("data.processes", 9007199254740994.0),
    ("data.processes", "9007199254740994"),
    ("train.micro_rows", True),
    ("train.threads_per_rank", 100_000),
    ("train.spike_deviations", NAN),
    ("pack.seq_len", True),
    ("seed", True),
    ("seed", 10**40),
    ("mix.temperature", INF),
    ("mix.temperature", NAN),
    ("checkpoint.save_every_minutes", INF),
    ("checkpoint.keep_last", True),
    ("checkpoint.remote", "s3://key:secret@bucket/x"),
    ("deepspeed.timeout_minutes", 10**12),
    ("deepspeed.timeout_minutes", 1e12),
    ("deepspeed.stage", True),
    ("launch.port", 70_000),
    ("launch.port", 0),
    ("launch.port", True),
    ("launch.nproc", 10**6),
    ("launch.nodes", 10**9),
    ("name", "a" * 300),
    ("name", "a\nb"),
    ("name", ".."),
    ("run_root", "runs\n#SBATCH --uid=0"),
    ("run_root", "runs\x1b[2J"),
    ("run_root", "r" * 5000),
    ("data.dir", "data\x00"),
    ("data.sources", {"s" * 300: {"kind": "demo"}}),
    ("data.sources", {"demo": {"kind": "demo", "weight": INF}}),
    ("data.sources", {"demo": {"kind": "demo"}, "t": {"kind": "text", "path": "x.txt", "use": "seen"}}),
    ("data.sources", {"demo": {"kind": "demo"}, "t": {"kind": "tokens", "path": "x", "use": "heldout"}}),
    ("data.sources", {"demo": {"kind": "demo", "weight": NAN}}),
    ("data.sources", {"demo": {"kind": "demo", "take_share": True}}),
    ("data.sources", {"demo": {"kind": "demo", "take_examples": True}}),
    ("data.sources", {"demo": {"kind": "demo", "share": NAN}}),
    ("data.sources", {"demo": {"kind": "demo", "task": "a\x1b]0;b\x07"}}),
    ("model.shape.hidden_size", 10**12),
    ("model.shape.layers", 10_000_000),
    ("model.shape", {"hidden_size": 36, "heads": 4}),
    ("model.shape.initializer_range", INF),
    ("model.shape.rope_theta", INF),
    ("sweep.name", "s" * 300),
    ("submit.sbatch", ["--comment=a\n#SBATCH --uid=0"]),
    ("wandb.tags", ["a\x1b[31m"]),
]


def _set(values: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    inner = values
    *above, last = path.split(".")
    for key in above:
        inner = inner.setdefault(key, {})
    inner[last] = value
    return values


@pytest.fixture(scope="module")
def demo() -> str:
    return json.dumps(compose([], None))


@pytest.mark.parametrize(("path", "value"), BAD, ids=lambda v: str(v)[:30].encode("unicode_escape").decode())
def test_a_bad_value_is_one_sentence(demo: str, path: str, value: Any) -> None:
    with pytest.raises(UserError) as error:
        validate(_set(json.loads(demo), path, value))
    said = str(error.value)
    assert path.split(".", maxsplit=1)[0] in said
    assert "Input should be" not in said or "less than" in said or "greater than" in said, said


YAML = {
    "bomb": "a: &a [x,x,x,x,x,x,x,x,x]\n"
    + "".join(
        f"{b}: &{b} [{','.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    ),
    "alias of itself": "data: &d {sources: *d}\n",
    "brackets": "name: " + "[" * 3000 + "\n",
    "braces": "name: " + "{a: " * 3000 + "\n",
    "date that does not exist": "name: 2024-13-45\n",
    "twice": "name: a\nname: b\n",
    "control": "name: \x07\n",
    "python": "name: !!python/object/apply:os.system [ls]\n",
    "list": "- a\n",
    "tab": "name:\n\t- x\n",
}


@pytest.mark.parametrize("text", YAML.values(), ids=YAML)
def test_yaml_without_end_is_one_sentence(tmp_path: Path, text: str) -> None:
    file = tmp_path / "my.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=r"my\.yaml|mistake"):
        load_config([], file)


@pytest.mark.parametrize(
    "override",
    [
        "x=" + "[" * 3000,
        "x=" + "{a:" * 3000,
        "train.epochs=" + "9" * 30_000,
        "name='a\x07'",
        "=",
        "+",
        "~",
        "train.=1",
    ],
    ids=lambda text: text[:12].encode("unicode_escape").decode(),
)
def test_an_override_without_end_is_one_sentence(override: str) -> None:
    with pytest.raises(UserError):
        load_config([override])
