"""Why training ended before its time, in the words of status.json and events.jsonl: cause, consequence, remedy."""

from __future__ import annotations

from sft_dist.core.records import Position


def stopped(step: int, cause: str, loss: float, saved_at: Position | None) -> str:
    """Say that a policy ended the run before the update of `step`; `cause` is spike or nonfinite."""
    what, key = (
        (f"the loss of step {step} ({loss:.4g}) is a spike", "train.on_spike")
        if cause == "spike"
        else (f"the loss or gradient of step {step} is not finite", "train.on_nonfinite")
    )
    return (
        f"{what} and {key}=stop, so training ended before its update; events.jsonl names the examples, "
        f"{_last(saved_at)}: continue with {key}=skip, or without these examples under another name"
    )


def skipped(count: int, step: int, saved_at: Position | None) -> str:
    """Say that `train.max_skipped_steps` steps in a row, up to `step`, were not applied."""
    return (
        f"{count} steps in a row were skipped (loss or gradient not finite, or a spike), so training ended at step "
        f"{step}; events.jsonl names the examples, {_last(saved_at)}: lower optim.lr, or leave "
        "these examples out under another name"
    )


def unsaved(step: int, saved_at: Position | None) -> str:
    """Say that the state of the last step is lost."""
    lost = f"the steps after {saved_at.step}, the last good checkpoint," if saved_at else "all steps"
    return (
        f"the checkpoint of step {step} could not be written (events.jsonl says why), so {lost} are lost; make room and "
        "run the same command"
    )


def _last(position: Position | None) -> str:
    return (
        f"the last good checkpoint is that of step {position.step}"
        if position
        else "no checkpoint was written yet"
    )
