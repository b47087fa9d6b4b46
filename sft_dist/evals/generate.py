"""Exported folder + examples -> answers, greedily, in batches, on any number of processes. Resumable.

Legend: B examples of a batch, T tokens of the longest prompt in it, G generated tokens.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from sft_dist.core.errors import UserError
from sft_dist.core.files import expanded, fingerprint, is_local, read_object
from sft_dist.core.process import logger
from sft_dist.core.records import Drop, Example, Tokens
from sft_dist.evals.resumable_work import collect, run_part
from sft_dist.evals.splits import Generation, up_to_answer

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

log = logger(__name__)

THINK_END = "</think>"

Item = TypeVar("Item")
Result = TypeVar("Result")


class PromptRenderer(Protocol):
    """The part of `render.chat.Renderer` that evaluation needs."""

    fingerprint: str
    stop_ids: tuple[int, ...]

    def prompt(self, example: Example) -> list[int]:
        """Return the token ids that stand before the last answer."""

    def render(self, examples: Sequence[Example]) -> list[Tokens | Drop]:
        """Return the whole conversations with the spans that carry loss."""


class Decoder(Protocol):
    """The part of `render.tokenizer.TextTokenizer` that evaluation needs."""

    pad_id: int | None

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """Return the text of token ids."""


def load_model(
    path: str,
    *,
    revision: str | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    adapter: Path | None = None,
) -> PreTrainedModel:
    """Load a causal language model for evaluation.

    Args:
        path: An exported folder or a hub id.
        revision: Of a hub id.
        device: Such as "cpu" or "cuda:0".
        dtype: "float32" or "bfloat16", best what the model was trained in (`model.dtype`): on a CPU that knows bfloat16 it is three
            times as fast as float32.
        adapter: An adapter that will be put on it, which must have been trained on this model.

    Raises:
        UserError: When there is no model at `path`.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    local = is_local(path)
    folder = expanded(path)
    kinds = ("config.json", "adapter_config.json")  # a whole model, or an adapter that names its base
    if local and not any((folder / name).is_file() for name in kinds):
        raise UserError(
            f"{path} holds no config.json, so it is not a Hugging Face model folder; "
            "run `sft-dist export` on the run first, or name a folder that has one"
        )
    if (folder / "adapter_config.json").is_file():
        _check_base(folder)
    if adapter is not None:
        _check_base(adapter, path)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            str(folder) if local else path,
            revision=revision,
            dtype=getattr(torch, dtype),
            use_safetensors=True,  # pytorch_model.bin is a pickle, which may run code
        )
    except torch.OutOfMemoryError:
        raise
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"the model {path} cannot be loaded ({reason}), so nothing can answer; its files are missing or torn, or are no safetensors: "
            "export it again, or download or copy it again"
        ) from error
    model.to(torch.device(device))  # type: ignore[arg-type]  # transformers wraps `to` without its signature
    model.eval()
    return model


def _check_base(adapter: Path, base: str | None = None) -> None:
    """Refuse an adapter on another base than the one that it was trained on: it would answer, and nothing would tell."""
    from sft_dist.model.adapter_folder import BASE, WEIGHTS
    from sft_dist.model.weight_files import base_fingerprint  # torch

    if not (adapter / WEIGHTS).is_file():  # peft would read a pickle instead
        raise UserError(
            f"{adapter} has no {WEIGHTS}, so there is no adapter to load; export or save it again, as safetensors"
        )
    remedy = "export the adapter again"
    settings = read_object(
        adapter / "adapter_config.json", remedy, {} if base else {"base_model_name_or_path": str}
    )
    record = adapter / BASE
    base, revision = base or settings["base_model_name_or_path"], settings.get("revision")
    known = read_object(record, remedy, {"fingerprint": str}) if record.is_file() else None
    if known and known["fingerprint"] != base_fingerprint(base, revision):
        raise UserError(
            f"the adapter {adapter} was trained on another model than {base} is now, so what is evaluated would be a mixture of the two; "
            "restore its base, or export again with lora.export=merged"
        )


def generate_part(
    model: PreTrainedModel,
    examples: Sequence[Example],
    renderer: PromptRenderer,
    tokenizer: Decoder,
    folder: Path,
    *,
    max_new_tokens: int,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    label: str = "generating",
) -> None:
    """Generate the answers of this process's slice into its part of `folder`; what is already there is kept.

    Args:
        model: From `load_model`.
        examples: All examples, equal on every process.
        renderer: Gives prompts and stop tokens.
        tokenizer: Decodes answers.
        folder: Of this piece of work: `part_folder`.
        max_new_tokens: Of an answer.
        batch_size: Prompts side by side; halved by itself where the device runs out of memory.
        rank: Of this process.
        world_size: Number of processes.
        label: Of the progress bar.
    """
    mine = examples[rank::world_size]
    prompts = _prompts(mine, renderer, room=room_for(model, max_new_tokens))
    pad_id = tokenizer.pad_id if tokenizer.pad_id is not None else renderer.stop_ids[0]
    stop_ids = stops_of(model, renderer)

    def work(batch: Sequence[Example]) -> Iterable[Mapping[str, Any]]:
        asked = [e.id for e in batch if prompts[e.id]]
        ids = generate_ids(
            model,
            [prompts[i] for i in asked],
            stop_ids=stop_ids,
            pad_id=pad_id,
            max_new_tokens=max_new_tokens,
        )
        answers = dict(zip(asked, ids, strict=True))
        for e in batch:
            answer = answers.get(e.id, [])
            stopped = bool(answer) and answer[-1] in stop_ids
            text = tokenizer.decode(answer[:-1] if stopped else answer, skip_special_tokens=True)
            yield {"id": e.id, "prediction": answer_of(text), "stopped": stopped, "tokens": len(answer)}

    run_part(
        folder,
        examples,
        work,
        rank=rank,
        world_size=world_size,
        batch_size=batch_size,
        length=lambda e: len(prompts[e.id]),
        label=label,
    )


def collect_generations(
    folder: Path, examples: Sequence[Example], *, world_size: int = 1, timeout_s: float = 3600.0
) -> dict[str, Generation]:
    """Wait for the parts of every process and return the answers by id of the example."""
    records = collect(folder, (e.id for e in examples), world_size=world_size, timeout_s=timeout_s)
    return {i: Generation(**r) for i, r in records.items()}


def part_folder(root: Path, kind: str, model_path: str, *parts: object) -> Path:
    """Return the folder of one piece of work under `root`: another model or option gives another folder.

    Args:
        root: Such as <run>/eval/parts.
        kind: Readable name of the work: "generate", "loss", "base".
        model_path: A model folder, known by the name, size and time of its files; or a hub id.
        parts: Whatever else the outcome depends on, JSON-ready: the renderer's fingerprint, max_new_tokens.
    """
    path = Path(model_path)
    # a model card is rewritten after each evaluation and changes no answer
    files = sorted(p for p in path.iterdir() if p.is_file() and p.suffix != ".md") if path.is_dir() else []
    content = [[p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in files]
    return root / f"{kind}-{fingerprint([model_path, content, *parts])[:12]}"


def generate_ids(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    stop_ids: Sequence[int],
    pad_id: int,
    max_new_tokens: int,
) -> list[list[int]]:
    """Return the greedy continuation of each prompt (none may be empty), up to and including its first stop token.

    A batch that does not fit into the memory of the device is split in two, down to single prompts.
    """
    import torch
    from transformers import GenerationConfig

    if not prompts:
        return []
    greedy = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=max_new_tokens,
        eos_token_id=list(stop_ids),
        pad_token_id=pad_id,
    )
    generate: Any = model.generate

    def run(batch: Sequence[Sequence[int]]) -> list[list[int]]:
        input_ids_BT, mask_BT = left_pad(batch, pad_id)
        with torch.inference_mode():
            out = generate(input_ids=input_ids_BT.to(model.device), attention_mask=mask_BT.to(model.device))
        answers_BG = out[:, input_ids_BT.shape[1] :].tolist()
        return [cut_at_stop(ids, stop_ids) for ids in answers_BG]

    # The model's own config may sample or penalise repetition, and `generate` merges it into one that is passed: ours
    # takes its place for the call. Its stop tokens are read again for the next call (`stops_of`), so it comes back.
    own, model.generation_config = model.generation_config, greedy
    try:
        return in_halves(run, prompts, "prompts")
    finally:
        model.generation_config = own


def in_halves(
    run: Callable[[Sequence[Item]], list[Result]], batch: Sequence[Item], what: str
) -> list[Result]:
    """Return `run(batch)`; a batch that does not fit into the memory of the device is split in two, down to single items.

    Raises:
        torch.OutOfMemoryError: When a single item does not fit.
    """
    import torch

    try:
        return run(batch)
    except torch.OutOfMemoryError:
        if len(batch) == 1:
            raise
    torch.cuda.empty_cache()  # here, because the error that was caught held what was allocated
    middle = len(batch) // 2
    log.warning("a batch of %d %s does not fit into device memory; running it in halves", len(batch), what)
    return in_halves(run, batch[:middle], what) + in_halves(run, batch[middle:], what)


def stops_of(model: PreTrainedModel, renderer: PromptRenderer) -> tuple[int, ...]:
    """Return the tokens at which a server of the model stops: those that end a turn, then those of its own config."""
    own = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    return tuple(
        dict.fromkeys([*renderer.stop_ids, *(own if isinstance(own, list) else [] if own is None else [own])])
    )


def cut_at_stop(ids: Sequence[int], stop_ids: Sequence[int]) -> list[int]:
    """Return the ids up to and including the first stop token; padding after it is lost."""
    for i, token in enumerate(ids):
        if token in stop_ids:
            return list(ids[: i + 1])
    return list(ids)


def answer_of(text: str) -> str:
    """Return the answer in a generated turn: what follows the reasoning, trimmed."""
    return text.rpartition(THINK_END)[2].strip()


def left_pad(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and attention mask, both int64 [B, T], every row ending at the right edge."""
    import torch

    width = max(len(r) for r in rows)
    ids_BT = torch.full((len(rows), width), pad_id, dtype=torch.long)
    mask_BT = torch.zeros((len(rows), width), dtype=torch.long)
    for i, row in enumerate(rows):
        ids_BT[i, width - len(row) :] = torch.tensor(row, dtype=torch.long)
        mask_BT[i, width - len(row) :] = 1
    return ids_BT, mask_BT


def accepts(model: PreTrainedModel, argument: str) -> bool:
    """Return whether the model's forward takes an argument of this name."""
    return argument in inspect.signature(model.forward).parameters


def _prompts(examples: Sequence[Example], renderer: PromptRenderer, *, room: int) -> dict[str, list[int]]:
    """Return the prompt of each example by id, at most `room` tokens; empty where the template cannot render it."""
    prompts: dict[str, list[int]] = {}
    reasons: list[str] = []
    cut = 0
    for e in examples:
        try:
            prompt = renderer.prompt(up_to_answer(e))
        except UserError as error:
            reasons.append(str(error))
            prompt = []
        cut += len(prompt) > room
        prompts[e.id] = prompt[-room:]
    if reasons:
        log.warning("%d examples cannot be asked and count as wrong; the first: %s", len(reasons), reasons[0])
    if cut:
        log.warning(
            "%d prompts leave no room for the answer in the model's context; their beginning is cut", cut
        )
    return prompts


def room_for(model: PreTrainedModel, max_new_tokens: int) -> int:
    """Return the longest prompt that leaves room for an answer."""
    context = int(getattr(model.config.get_text_config(), "max_position_embeddings", None) or 1 << 30)
    if max_new_tokens >= context:
        raise UserError(
            f"eval.max_new_tokens={max_new_tokens} leaves no room for a prompt in the model's context of {context} "
            "tokens; lower it"
        )
    return context - max_new_tokens
