"""Export -> does plain transformers open it, does it give what training gave, does it ask as training asked, does it end by itself.

A folder that opens and answers can still be another model: adapters left out, a head untied, a template that asks otherwise.
Nothing of this package is used to reload it. `train.verify_export=false` leaves the check out.
"""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sft_dist.batch import sequence_shard
from sft_dist.config import RunConfig
from sft_dist.core.collectives import gather
from sft_dist.core.errors import UserError
from sft_dist.core.files import write_checked
from sft_dist.core.process import logger
from sft_dist.core.records import Batch, single_turn
from sft_dist.core.runfolder import RunFolder
from sft_dist.core.sets import JUDGES, VALIDATION
from sft_dist.evals.splits import has_sets, load_eval_sets, up_to_answer
from sft_dist.model.adapters import switched_off
from sft_dist.model.isolation_check import HEAD_TOLERANCE
from sft_dist.model.load import DTYPES
from sft_dist.model.packed import to_inputs
from sft_dist.model.weight_files import BaseFiles, match
from sft_dist.pipelines.cluster.estimate_inputs import host_memory
from sft_dist.pipelines.data.renderer import make_renderer
from sft_dist.pipelines.train.engine import TrainingSetup
from sft_dist.render.renderer import Renderer
from sft_dist.report.model_card import CHECK

log = logger(__name__)

GROSS = 5  # times rounding: no merged adapter is rounded to that
HALF = 0.5  # of what adapters do: nearer to the trained model than to its base
TOKENS = 48  # of the text that both models are asked for
PROMPTS = 4  # whose answers are generated
ANSWER_TOKENS = 64
ROOM = 1.3  # memory that loading takes, over the bytes of the weights


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportCheck:
    """What was found of an export.

    Attributes:
        loss_difference: Mean absolute difference of the loss of a token, reloaded model less training engine, in nats; None
            where it was not compared.
        not_compared: Why not.
        template: Whether the folder asks a question with the tokens that training used; None where it was not compared.
        prompts: Evaluated prompts that were answered.
        stopped: Answers that ended by themselves, with the folder's own generation config.
    """

    loss_difference: float | None
    not_compared: str
    template: bool | None
    prompts: int
    stopped: int


def comparable(config: RunConfig) -> str:
    """Return why the weights of an export are not those of the engine; empty where they are."""
    if config.train.export_ema:
        return "the averaged weights are exported, and the engine trains others"
    if config.train.export_best:
        return "the best checkpoint is exported, and the engine holds the last weights"
    if config.lora is not None and config.lora.quantize_base is not None:
        return "adapters were trained on a 4-bit base and are exported on the whole one"
    return ""


class EngineLosses(NamedTuple):
    """Losses of the tokens of a fixed text under the model that was trained.

    Attributes:
        trained: As it was trained.
        without: With its adapters switched off; None where they are not merged into a base of 16 bits.
    """

    trained: Sequence[float]
    without: Sequence[float] | None = None


def doubt(own: Sequence[float], engine: EngineLosses, dtype: torch.dtype) -> tuple[str, bool]:
    """Say how an export differs from the model that was trained, and whether it cannot be that model; empty: rounding.

    A product of a merged weight and those of base and adapters are rounded apart: in bfloat16 that alone moves a token of this text
    by 0.08 to 0.12 nats at 135 M parameters, and leaving the adapters out no more than by 0.08 to 0.18 where they are small
    (`bench/merged_adapters.py`). So beyond the bound it is asked how much of what the adapters do the export does, as far as they
    do more than rounding.
    """
    given, trained = np.asarray(own), np.asarray(engine.trained)
    difference, limit = float(np.mean(np.abs(given - trained))), HEAD_TOLERANCE[dtype]
    if difference <= limit:
        return "", False
    said = f"by {difference:.3g} nats a token, {limit:g} is rounding"
    if engine.without is None or not difference <= GROSS * limit:  # NaN must not pass
        return said, True
    without = np.asarray(engine.without)
    effect = trained - without
    share = float(np.dot(given - without, effect) / max(np.dot(effect, effect), 1e-12))
    if np.sqrt(np.mean(effect**2)) < 2 * limit:
        return f"{said}; the adapters do too little to tell whether they are in it", False
    return f"{said}; it does {share:.0%} of what the adapters do", share < HALF


def _text(vocab_size: int) -> Batch:
    """Return one document of arbitrary tokens, each but the first a target."""
    ids = np.random.default_rng(0).integers(1, max(2, vocab_size), TOKENS)
    return Batch.of_documents(ids, [TOKENS], np.arange(1, TOKENS), doc_ids=("check",))


@torch.no_grad()
def losses_of_engine(config: RunConfig, parts: TrainingSetup, vocab_size: int) -> EngineLosses:
    """Return the losses of a fixed text under the model that was trained. Collective."""
    engine, sequence = parts.engine, parts.sequence
    mine = sequence_shard(_text(vocab_size), sequence.place, sequence.size)

    def losses() -> list[float]:
        found = engine(*to_inputs(mine, engine.device))[1].float().tolist()
        return [x for part in gather(found)[: sequence.size] for x in part]  # neighbours share the rows

    engine.eval()
    trained, without = losses(), None
    if config.lora is not None and config.lora.export == "merged" and config.model.dtype != "float32":
        with switched_off(engine.module):
            without = losses()
    engine.train()
    return EngineLosses(trained, without)


def verify_export(
    config: RunConfig, folder: RunFolder, export: Path, *, vocab_size: int, expected: EngineLosses | None
) -> ExportCheck | None:
    """Reload an export and compare it with training; write what was found into it. One that fails is moved aside.

    Args:
        config: Of the run.
        folder: Of the run.
        export: The exported folder.
        vocab_size: Of the tokenizer.
        expected: From `losses_of_engine`; None where there is no engine.

    Returns:
        What was found; None where memory for a second copy of the model is short.

    Raises:
        UserError: The export is not the model that was trained.
    """
    try:
        return _examined(config, folder, export, vocab_size=vocab_size, expected=expected)
    except UserError as error:
        refused = export.with_name(f"{export.name}.refused")
        shutil.rmtree(refused, ignore_errors=True)
        export.rename(refused)
        raise UserError(
            f"{error}; the folder is {refused} now, so that nothing takes it for the model"
        ) from None


def _examined(
    config: RunConfig, folder: RunFolder, export: Path, *, vocab_size: int, expected: EngineLosses | None
) -> ExportCheck | None:
    need = ROOM * sum(p.stat().st_size for p in export.glob("*.safetensors"))
    if need > (room := host_memory("MemAvailable")):
        log.warning(
            "the export is not verified, because reloading it takes %.0f GiB and %.0f GiB are free; load it elsewhere before you rely on it",
            need / 2**30,
            room / 2**30,
        )
        return None
    model = _reload(config, export)
    if expected is not None and _take_padding(model, export):
        log.warning(
            "transformers sets the embedding of the padding token to zero whenever it opens a %s, and training has moved it; the export "
            "holds what was trained, and was compared with that",
            type(model).__name__,
        )
    own = _losses(model, vocab_size)
    difference = None
    if expected is not None:
        difference = float(np.mean(np.abs(np.subtract(own, expected.trained))))
        said, other = doubt(own, expected, DTYPES[config.model.dtype])
        if other:
            raise UserError(
                f"the model in {export} gives other losses than the one that was trained ({said}), so it is not that model; the checkpoint "
                "is whole: export again, and report this if it stays"
            )
        if said:
            log.warning(
                "the losses of the export are not quite those of the model that was trained (%s)", said
            )
    renderer = _renderer(config, folder)
    template, prompts, stopped = None, 0, 0
    if renderer is not None:
        template = _asks_alike(config, export, renderer)
        prompts, stopped = _ends(config, folder, renderer, model)
    if template is False:
        raise UserError(
            f"the chat template in {export} asks with other tokens than training did, so answers would be worse than measured; "
            "report this with the template's name"
        )
    if prompts and not stopped:
        log.warning(
            "none of %d answers of the export ended by itself, so a server would write on until its limit; train longer, or raise eval.max_new_tokens where answers are long",
            prompts,
        )
    why = "" if expected is not None else comparable(config) or "no engine, only a checkpoint"
    found = ExportCheck(
        loss_difference=difference, not_compared=why, template=template, prompts=prompts, stopped=stopped
    )
    write_checked(export / CHECK, asdict(found))
    del model
    gc.collect()
    return found


def _reload(config: RunConfig, export: Path) -> Any:
    """Open an export as any user would."""
    import transformers

    trust = config.model.trust_remote_code
    whole = export / "config.json"
    name = json.loads(whole.read_text())["architectures"][0] if whole.is_file() else ""
    kind: Any = getattr(transformers, name, transformers.AutoModelForCausalLM)
    try:
        model, info = kind.from_pretrained(
            export, dtype=DTYPES[config.model.dtype], output_loading_info=True, trust_remote_code=trust
        )
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"plain transformers does not open {export} ({str(error).strip().splitlines()[0]}), so nobody could use it; the checkpoint is "
            "whole: report this with the model's name"
        ) from error
    wrong = {k: sorted(map(str, v))[:3] for k, v in info.items() if v and k.endswith("_keys")}
    if wrong:
        raise UserError(
            f"plain transformers does not open {export} whole ({wrong}), so parts of the model would be random; report this with "
            "the model's name"
        )
    return model.eval()


@torch.no_grad()
def _take_padding(model: Any, export: Path) -> bool:
    """Put the row of the padding token as the files hold it into the embedding, where opening them has lost it (Youtu); say whether."""
    embedding, files = model.get_input_embeddings(), BaseFiles.find(str(export), None)
    row = getattr(embedding, "padding_idx", None)
    if row is None or files is None or embedding.weight[row].any():
        return False
    name = next(n for n, p in model.named_parameters() if p is embedding.weight)
    key = match(model, files).key_of.get(name)
    if key is None or not (held := files.slice(key)[row]).any():
        return False
    embedding.weight[row] = held.to(embedding.weight.dtype)
    return True


@torch.no_grad()
def _losses(model: Any, vocab_size: int) -> list[float]:
    ids = torch.from_numpy(_text(vocab_size).input_ids)
    logits: Tensor = model(input_ids=ids[None], use_cache=False).logits[0, :-1].float()
    return torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none").tolist()


def _renderer(config: RunConfig, folder: RunFolder) -> Renderer | None:
    """Return the renderer of the run; None where its tokenizer or template is no longer what training used."""
    stores = folder.read_stores()
    renderer = make_renderer(config, Path(config.data.dir), lambda: (), clock=stores.get("clock"))
    return renderer if renderer.fingerprint == stores.get("render") else None


def _asks_alike(config: RunConfig, export: Path, renderer: Renderer) -> bool | None:
    """Return whether the folder's own template gives the tokens of a question that training would."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(export)
    if tokenizer.chat_template is None or renderer.clock is not None:
        return None
    asked = single_turn(task="check", source="check", instruction="Name a colour.", output="Blue.")
    system = [{"role": "system", "content": config.render.system}] if config.render.system else []
    try:
        wanted = renderer.prompt(asked)
    except UserError:  # the template takes no plain question
        return None
    given = tokenizer.apply_chat_template(
        [*system, {"role": "user", "content": "Name a colour."}],
        add_generation_prompt=True,
        return_dict=True,
        **config.render.template_kwargs,
    )
    return list(given["input_ids"]) == list(wanted)


@torch.no_grad()
def _ends(config: RunConfig, folder: RunFolder, renderer: Renderer, model: Any) -> tuple[int, int]:
    """Return how many evaluated prompts were answered, and how many answers ended by themselves."""
    if not has_sets(folder.path, (VALIDATION, *JUDGES)):
        return 0, 0
    sets = load_eval_sets(folder.path, (VALIDATION, *JUDGES), max_per_task=1, seed=config.seed)
    prompts: list[list[int]] = []
    for example in next(iter(sets.values())):
        if len(prompts) == PROMPTS:
            break
        try:
            prompts.append(renderer.prompt(up_to_answer(example)))
        except UserError:
            continue
    ends = model.generation_config.eos_token_id
    ends = set(ends if isinstance(ends, list) else [ends])
    stopped = 0
    for prompt in prompts:
        ids = torch.tensor([prompt])
        limit = min(config.eval.max_new_tokens, ANSWER_TOKENS)
        try:
            said = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=limit, do_sample=False
            )
        except (RuntimeError, ValueError, TypeError, AttributeError, IndexError) as error:
            log.warning(
                "transformers cannot generate with the export (%s), so whether its answers end is not known; its losses are those of "
                "the model that was trained",
                str(error).strip().splitlines()[0],
            )
            return 0, 0
        stopped += int(said[0, -1]) in ends
    return len(prompts), stopped
