"""Answers of a made-up teacher: a function of the request alone, so that every launch hears the same."""

from __future__ import annotations

import hashlib
import json
import random
from typing import Any

from scripted_server import prompt_of

VERBS = [
    "describe", "compare", "sort", "translate", "explain", "summarise", "rewrite", "count", "list", "invent", "criticise", "plan", "name", "predict",
]  # fmt: skip
NOUNS = [
    "river", "bridge", "poem", "recipe", "letter", "engine", "planet", "lawyer", "garden", "violin", "contract", "winter", "harbour", "proverb", "tunnel",
]  # fmt: skip
ADJECTIVES = [
    "old", "quiet", "famous", "broken", "golden", "distant", "foreign", "careful", "narrow", "sudden", "bitter", "modest", "hollow", "early",
]  # fmt: skip


def rng_of(body: dict[str, Any]) -> random.Random:
    return random.Random(hashlib.sha256(json.dumps(body, sort_keys=True).encode()).digest())


def phrase(rng: random.Random) -> str:
    return f"{rng.choice(VERBS).capitalize()} the {rng.choice(ADJECTIVES)} {rng.choice(NOUNS)} of {rng.choice(ADJECTIVES)} {rng.choice(NOUNS)}s"


def teach(body: dict[str, Any]) -> str | tuple[str, str]:
    prompt, rng = prompt_of(body), rng_of(body)
    if (
        "list of tasks" in prompt
        or "list of many different tasks" in prompt
        or "sent these requests" in prompt
    ):
        tasks = [phrase(rng) for _ in range(5)] + ["Draw a map of the town", "too short"]
        if rng.random() < 0.1:
            return " ".join(tasks), "length"
        return "\n".join(f"{i}. {t}" for i, t in enumerate(tasks, 9))
    if "Yes or No" in prompt:
        return "Yes" if rng.random() < 0.3 else "No, it is not."
    if "Name its classes" in prompt:
        return f"Class label: good\nthe {phrase(rng)}\nClass label: bad\nthe {phrase(rng)}"
    if "different examples of each task" in prompt:
        if rng.random() < 0.1:
            return "I cannot think of one."
        return f"Example 1\nInput: {phrase(rng)}\nOutput: {phrase(rng)}\n\nExample 2\nInput: {phrase(rng)}\nOutput: {phrase(rng)}"
    if prompt.endswith("Result:\n"):
        original = prompt.split("Instruction:\n")[1].split("\n\nResult:")[0]
        return original if rng.random() < 0.1 else f"{original}, and then {phrase(rng).lower()}"
    if prompt.endswith("Answer:"):
        return "Equal." if rng.random() < 0.1 else "Different"
    return "I am sorry." if rng.random() < 0.1 else f"Here is the answer: {phrase(rng)}."
