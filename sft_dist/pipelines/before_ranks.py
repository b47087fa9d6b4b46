"""Config -> every mistake, and every odd thing, that can be known on this machine before ranks start. Writes nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

from sft_dist.cluster.local_ranks import gpus, ranks_of
from sft_dist.cluster.slurm.site import load_site
from sft_dist.config import RunConfig
from sft_dist.config.model import targets
from sft_dist.core.errors import UserError, nearest
from sft_dist.core.files import expanded, is_local
from sft_dist.model import config_json
from sft_dist.model.adapter_folder import check_folder
from sft_dist.model.config_json import text_config
from sft_dist.model.rope import check_reach
from sft_dist.pack.architecture import mixers_of
from sft_dist.pipelines.cluster.estimate_inputs import model_config, shape_of
from sft_dist.pipelines.data.lineage import check_stage
from sft_dist.pipelines.train.planning import check_ranks
from sft_dist.render.tokenizer import TextTokenizer
from sft_dist.sources import open_source
from sft_dist.train.zero import check_extra

SHAPE_MODULES = (
    *(f"self_attn.{side}_proj" for side in "qkvo"),
    *(f"mlp.{side}_proj" for side in ("gate", "up", "down")),
)


def refuse_mistakes(config: RunConfig) -> None:
    """Look at everything that can be known before ranks start.

    Raises:
        UserError: With every mistake, a line each.
    """
    found: list[str] = []
    for look in LOOKS:
        try:
            found += look(config)
        except UserError as error:
            found.append(str(error))
    found = list(dict.fromkeys(found))
    if len(found) == 1:
        raise UserError(found[0])
    if found:
        raise UserError("{} mistakes:\n{}".format(len(found), "\n".join(f"  {line}" for line in found)))


def _settings(config: RunConfig) -> Iterator[str]:
    check_extra(config.deepspeed.extra)
    nproc = config.launch.nproc
    check_ranks(config, ranks=None if nproc == "auto" else nproc * config.launch.nodes)
    if config.train.tensorboard and find_spec("tensorboard") is None:
        yield (
            "train.tensorboard=true needs the package tensorboard, which is not installed, so there would be no event files; "
            "pip install 'sft-dist[tensorboard]', or set it to false"
        )


def _model(config: RunConfig) -> Iterator[str]:
    check_stage(config)
    path = config.model.path
    text = text_config(config.model)
    if path and not text and (is_local(path) or "/" not in path):
        place = expanded(path)
        if config_json.located(path) is None:
            state = "has no config.json" if place.exists() else "does not exist"
            beside = [p.name for p in place.parent.iterdir()] if place.parent.is_dir() else []
            raise UserError(
                f"model.path={path} {state}, so there is no base model to start from; check the path, or give a hub id whole (OWNER/NAME).{nearest(place.name, beside)}"
            )
    if text:
        check_reach(text, config.model.rope_scaling, config.pack.seq_len)
        if config.train.sequence_parallel > 1 and (keeping := mixers_of(text).keeping):
            raise UserError(
                f"train.sequence_parallel shares rows among ranks, and {keeping} layers of this {text.get('model_type')} model keep a state, so "
                "they need the whole row of a document on one rank; use train.sequence_parallel=1"
            )
    yield from ()


def _trained(config: RunConfig) -> Iterator[str]:
    """Look at what is trained, by the names of a local model's weights or those of a model of our shape."""
    path = config.model.path
    here = config.model.shape is not None or (path and is_local(path) and config_json.located(path))
    if not here or _names_are_missing(config):
        return
    lora = config.lora
    if lora is None:
        if config.model.freeze and not shape_of(config, model_config(config), count=False).trained:
            yield "model.trainable and model.freeze leave nothing to train, so every step would do nothing; narrow model.freeze"
        return
    if lora.adapter is not None:
        check_folder(lora)
    modules = _modules(config)
    last = {name.rpartition(".")[2] for name in modules}
    for name in lora.target_modules:
        if modules and not targets(name, modules):
            yield (
                f"lora.target_modules has {name!r}, which is no module of this model, so nothing would be adapted; "
                f"it has {', '.join(sorted(last))}.{nearest(name, last)}"
            )


def _names_are_missing(config: RunConfig) -> bool:
    """Whether the size of the vocabulary, which the shape needs, is not known because the tokenizer is not there."""
    return config.model.shape is not None and not (
        config.render.train_vocab_size or Path(config.model.tokenizer or "").exists()
    )


def _modules(config: RunConfig) -> set[str]:
    """Return the names of the layers' modules, such as layers.0.self_attn.q_proj; empty where they are not known."""
    if (shape := config.model.shape) is not None:
        return {f"layers.{i}.{part}" for i in range(shape.layers) for part in SHAPE_MODULES}
    folder = Path(config.model.path or "")
    index = folder / "model.safetensors.index.json"
    try:
        if index.is_file():
            names = list(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
        else:
            from safetensors import safe_open

            with safe_open(folder / "model.safetensors", framework="numpy") as file:
                names = list(file.keys())
    except Exception:  # noqa: BLE001  several kinds; the model's loader names what is wrong with its files
        return set()
    matrices = [n for n in names if ".layers." in n and n.endswith(".weight") and "norm" not in n]
    return {"layers." + n.removesuffix(".weight").partition(".layers.")[2] for n in matrices}


def _folders(config: RunConfig) -> Iterator[str]:
    for key, path in (("run_root", config.run_root), ("data.dir", config.data.dir)):
        place = expanded(path).absolute()
        there = next(p for p in (place, *place.parents) if p.exists())
        if not there.is_dir():
            yield f"{key}={path}: {there} is a file, so nothing can be written below it; name a folder"
        elif not os.access(there, os.W_OK | os.X_OK) or there.is_relative_to("/proc"):
            yield f"{key}={path}: {there} cannot be written, so nothing could be kept there; name another folder"


def _places(config: RunConfig) -> Iterator[str]:
    if config.cluster is not None:
        load_site(config.cluster)
    for key, url in (("data.remote", config.data.remote), ("checkpoint.remote", config.checkpoint.remote)):
        if url:
            import fsspec

            try:
                fsspec.get_filesystem_class(url.split("://")[0] if "://" in url else "file")
            except (ValueError, ImportError) as error:
                yield (
                    f"{key}={url} cannot be opened ({error}), so nothing would be copied; install the fsspec driver of this protocol, "
                    f"or set {key}=null"
                )


def _tokenizer(config: RunConfig) -> Iterator[str]:
    own, path = config.model.tokenizer is None, str(config.model.path)
    if own and is_local(path) and not expanded(path).exists():
        return  # said of the model
    if config.render.train_vocab_size is not None:
        return
    found = TextTokenizer.load(
        path if own else str(config.model.tokenizer), config.model.revision if own else None
    )
    new = [text for text in config.render.added if found.id_of(text) is None]
    if new and config.lora is not None and not config.lora.modules_to_save:
        yield (
            f"render.add_tokens and add_special_tokens bring {len(new)} new tokens (first: {new[0]!r}), and lora trains no row of the "
            "embedding, so the model could not tell them apart; use lora.modules_to_save=[embed_tokens,lm_head]"
        )


def _sources(config: RunConfig) -> Iterator[str]:
    for name, source in config.data.sources.items():
        try:
            open_source(name, source)
        except UserError as error:
            said = str(error)
            yield said if f"data.sources.{name}" in said else f"data.sources.{name}: {said}"


LOOKS: tuple[Callable[[RunConfig], Iterator[str]], ...] = (
    _settings,
    _model,
    _trained,
    _folders,
    _places,
    _tokenizer,
    _sources,
)


def machine_warnings(config: RunConfig) -> tuple[str, ...]:
    """Say what is allowed and hardly meant on this machine; nothing where the run is for a cluster."""
    if config.cluster is not None or config.launch.nodes > 1:
        return ()
    devices, ranks, cores = gpus(), ranks_of(config.launch.nproc), os.cpu_count() or 1
    found = []
    path = config.model.path
    if path and config_json.located(path, config.model.revision) is None:
        from huggingface_hub import constants

        if constants.HF_HUB_OFFLINE:
            found.append(
                f"model.path={path} is not in the hub's cache of this machine, and HF_HUB_OFFLINE is set, so training would find no model here; "
                f"run `hf download {path}` where there is internet, with the same HF_HOME"
            )
    if devices and ranks > devices:
        found.append(
            f"launch.nproc={ranks} starts more ranks than the {devices} GPUs of this machine, and two cannot share one; use launch.nproc=auto"
        )
    if devices:
        return tuple(found)
    if ranks > cores:
        found.append(
            f"launch.nproc={ranks} starts {ranks} ranks on {cores} CPU cores, for this machine has no GPU, so each step takes many "
            "times as long; use launch.nproc=1"
        )
    if config.model.dtype == "bfloat16":
        found.append(
            "model.dtype=bfloat16 on CPU, for this machine has no GPU: slower than float32 on most CPUs; use model.dtype=float32"
        )
    if config.model.attention in ("flash", "flex"):
        found.append(
            f"model.attention={config.model.attention} needs a GPU, and this machine has none, so ranks would refuse it here; use auto"
        )
    return tuple(found)
