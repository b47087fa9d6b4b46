"""Shipped experiments -> what each is for, the hardware that it needs, and what the estimate calculates for it, without the hub.

The header of a file in conf/experiment says all three; `python -m sft_dist.pipelines.cluster.recipes` writes the calculated
line anew, and a test holds the files to it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from sft_dist.config.load import group_choices, load_config
from sft_dist.core.process import resource
from sft_dist.pipelines.cluster.estimate import estimate
from sft_dist.pipelines.cluster.estimate_inputs import GIB
from sft_dist.pipelines.train.planning import Summary

TOKENS = 100_000_000  # of an epoch, for the hours: data sets differ
FILL, TARGETS = 0.97, 0.5  # usual for packed conversations
NEEDS = re.compile(r"^# needs: (\d+) x ([\w -]+), (\d+) nodes?$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """One shipped experiment. `needs` is (devices, their name, nodes), None where the file names no hardware."""

    name: str
    what: str
    command: str
    needs: tuple[int, str, int] | None
    calculated: str


def recipe_file(name: str) -> Path:
    """Return the file of an experiment."""
    return resource("conf") / "experiment" / f"{name}.yaml"


def recipes() -> list[Recipe]:
    """Return every shipped experiment, by name."""
    return [_read(name) for name in group_choices("experiment")]


def _read(name: str) -> Recipe:
    text = recipe_file(name).read_text(encoding="utf-8")
    lines = [
        line[1:].strip() for line in text.splitlines() if line.startswith("#") and "@package" not in line
    ]
    found = NEEDS.search(text)
    commands = [line.split("  ")[0] for line in lines if line.startswith("sft-dist ")]
    return Recipe(
        name=name,
        what=lines[0],
        command=commands[0] if commands else f"sft-dist train experiment={name}",
        needs=(int(found[1]), found[2], int(found[3])) if found else None,
        calculated=next((line[12:] for line in lines if line.startswith("calculated: ")), ""),
    )


def calculate(recipe: Recipe) -> tuple[str, bool]:
    """Return the line of figures that the estimate gives on the hardware named, and whether the run fits there.

    Args:
        recipe: One that names its hardware.
    """
    assert recipe.needs is not None
    ranks, device, _ = recipe.needs
    config = load_config([f"experiment={recipe.name}"])
    summary = Summary(
        examples=TOKENS // 500,
        tokens=TOKENS,
        target_tokens=round(TOKENS * TARGETS),
        fill=FILL,
        steps=max(1, round(TOKENS * config.train.epochs / FILL / config.train.tokens_per_step)),
        drops={},
        squares_per_token=min(1500.0, config.pack.seq_len / 2),
        exact=False,
    )
    got = estimate(config, summary, ranks=ranks, device=device)
    time = got["time"]
    speed = (
        f"{time['tokens_per_s']:,.0f} tokens/s, {time['hours']:.1f} h for {config.train.epochs:g} x 100 M tokens"
        if time
        else "time unknown"
    )
    memory = f"{got['needed_bytes'] / GIB:.0f} of {got['device_bytes'] / GIB:.0f} GiB a GPU"
    return f"{got['parameters'] / 1e9:.1f} B parameters, {memory}, {speed}", bool(got["fits"])


def main() -> None:
    """Write the calculated lines of all experiments anew."""
    for recipe in recipes():
        if recipe.needs is not None:
            file = recipe_file(recipe.name)
            line = f"# calculated: {calculate(recipe)[0]}"
            file.write_text(re.sub(r"^# calculated: .*$", line, file.read_text(), flags=re.MULTILINE))


if __name__ == "__main__":
    main()
