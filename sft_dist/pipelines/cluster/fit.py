"""Config with `auto`, model and place -> the smallest ZeRO stage and the least recomputation that fit, by the estimate. No torch.

What is chosen changes memory and time, never the trajectory by more than rounding (tests/equivalence).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from sft_dist.cluster.estimate.estimate import needed, with_backward
from sft_dist.cluster.estimate.memory import Shape, estimate_memory
from sft_dist.cluster.estimate.speed import micro_step
from sft_dist.config import RunConfig
from sft_dist.config.auto import Choice, asked, decided
from sft_dist.core.errors import UserError
from sft_dist.pack.devices import Device
from sft_dist.pipelines.cluster.estimate_inputs import GIB, setup_of, shape_of
from sft_dist.pipelines.train.planning import cost_of

MARGIN = 0.95  # of the device's memory: the estimate errs by a few per cent (tests/cluster/test_estimate_memory.py)
AS_FAST = 1.03  # what is slower by less is taken if it is simpler
AGAIN: tuple[bool | int, ...] = (False, 4, 2, True)
ROWS = (1, 2, 4)


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a run trains.

    Attributes:
        ranks: Of the whole run.
        per_node: Of a node.
        device: The GPU; None on CPU, or where nothing is known of it.
        name: Of the device.
        memory_bytes: That a rank can have.
        can_compile: Whether torch.compile finds what it needs.
    """

    ranks: int
    per_node: int
    device: Device | None
    name: str
    memory_bytes: int
    can_compile: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class _Candidate:
    choice: Choice
    config: RunConfig
    peak: int
    seconds: float | None  # of a token, on a device that is known


def choose(
    config: RunConfig,
    text: Mapping[str, Any],
    place: Place,
    *,
    target_share: float = 1.0,
    squares: float | None = None,
) -> tuple[Choice, str]:
    """Return what stands in for every `auto` of the config, and why.

    Args:
        config: The run's config.
        text: The model's config.json (its text part).
        place: Where it trains.
        target_share: Tokens that carry loss over all.
        squares: Squared document lengths over tokens; None: documents as long as rows, the most that attention costs.

    Raises:
        UserError: When no choice is allowed by the rest of the config.
    """
    shape, cost = shape_of(config, text), cost_of(text)
    found = list(_candidates(config, shape, cost, place, target_share, squares))
    limit = round(MARGIN * place.memory_bytes)
    fitting = [c for c in found if c.peak <= limit]
    if not fitting:
        least = min(found, key=lambda c: c.peak)
        said = (
            f"nothing fits: the least that is needed is {least.peak / GIB:.1f} of {place.memory_bytes / GIB:.1f} GiB; "
            "`sft-dist estimate` says what would help"
        )
        return least.choice, f"{words(least.choice)}: {said}"
    if all(c.seconds is None for c in fitting):
        best = fitting[0]
        why = "nothing is known of this device's speed, so the first that fits"
    else:
        fastest = min(c.seconds for c in fitting if c.seconds is not None)
        best = next(c for c in fitting if c.seconds is not None and c.seconds <= AS_FAST * fastest)
        why = f"calculated {1 / best.seconds:,.0f} tokens/s a rank, the simplest within 3 % of the fastest that fits"  # type: ignore[operator]
    spare = f"needs {best.peak / GIB:.1f} of {place.memory_bytes / GIB:.1f} GiB"
    return best.choice, f"{words(best.choice)}: {spare}; {why}"


def _candidates(
    config: RunConfig,
    shape: Shape,
    cost: Any,
    place: Place,
    target_share: float,
    squares: float | None,
) -> Iterator[_Candidate]:
    """Yield what the config allows, the simplest first."""
    refused: ValidationError | None = None
    any_allowed = False
    rows_per_step = config.train.tokens_per_step // config.pack.seq_len
    for choice in _choices(config, place, rows_per_step):
        try:
            changed = decided(config, choice)
        except ValidationError as error:
            refused = refused or error
            continue
        any_allowed = True
        setup = setup_of(
            changed, target_share, place.ranks, "cuda" if place.device or place.name != "cpu" else "cpu"
        )
        peak = needed(estimate_memory(shape, setup).peak, setup.device)
        seconds = None
        if place.device is not None:
            tokens = float(setup.tokens)
            per_token = squares if squares is not None else float(config.pack.seq_len)
            taken = micro_step(
                shape, setup, with_backward(cost, shape), place.device, tokens=tokens, squares=tokens * per_token,
                targets=tokens * target_share, ranks_per_node=place.per_node,
            )  # fmt: skip
            micro_steps = max(1, rows_per_step * config.pack.seq_len // (setup.tokens * place.ranks))
            seconds = (taken.micro_step + taken.once / micro_steps) / tokens
        yield _Candidate(choice=choice_of(changed), config=changed, peak=peak, seconds=seconds)
    if not any_allowed and refused is not None:
        raise UserError(
            f"no ZeRO stage and no recomputation is allowed by the rest of the config ({refused.errors()[0]['msg']}); "
            "set deepspeed.stage and model.gradient_checkpointing yourself"
        )


def _choices(config: RunConfig, place: Place, rows_per_step: int) -> Iterator[Choice]:
    said = asked(config)

    def options(key: str, all_of_them: tuple[Any, ...]) -> tuple[Any, ...]:
        return all_of_them if said[key] == "auto" else (said[key],)

    groups = max(1, place.ranks // config.train.sequence_parallel)
    rows = tuple(n for n in ROWS if rows_per_step % (groups * n) == 0 and (n == 1 or place.device)) or (1,)
    for stage in options("stage", (1, 2, 3, 0)):
        for again in options("gradient_checkpointing", AGAIN):
            compiled = place.can_compile and again != "selective" and config.loss.router_balance is None
            for compile_it in options("compile", (compiled,)):
                for n in options("micro_rows", rows):
                    yield Choice(stage=stage, gradient_checkpointing=again, compile=compile_it, micro_rows=n)


def choice_of(config: RunConfig) -> Choice:
    """Return the four keys of a decided config."""
    return Choice(**asked(config))


def words(choice: Choice) -> str:
    """Return the choice as a reader wants it."""
    again = {
        False: "nothing recomputed",
        True: "every layer recomputed",
        "selective": "selective recomputation",
    }
    how = again.get(
        choice.gradient_checkpointing, f"every {choice.gradient_checkpointing}th layer recomputed"
    )
    if choice.gradient_checkpointing == 1 and choice.gradient_checkpointing is not True:
        how = again[True]
    compiled = "layers compiled" if choice.compile else "not compiled"
    side = f"{choice.micro_rows} row{'s' * (choice.micro_rows > 1)} a micro-step"
    return f"ZeRO stage {choice.stage}, {how}, {compiled}, {side}"
