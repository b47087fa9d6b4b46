"""Data sets of another trainer -> sources of ours. Removes the keys that it took from the rest."""

from __future__ import annotations

import json
import re
from pathlib import PurePosixPath
from typing import Any

from sft_dist.config.convert.result import Conversion

FILES = (".json", ".jsonl", ".parquet", ".csv", ".gz", ".zst")
TURN_TYPES = {"chat_template", "sharegpt", "chat_template.default", "oasst"}
ALPACA = {"alpaca": ("instruction", "input", "output")}
# Axolotl's prompt styles that are another template over the same fields
STYLES = {
    "alpaca:chat": "chatml",
    "alpaca_chat": "chatml",
    "alpaca:phi": "plain",
    "alpaca_chat.load_qa": "chatml",
}
DATA_KEYS = {
    "datasets", "test_datasets", "dataset", "dataset_name", "dataset_config", "dataset_train_split", "dataset_test_split",
    "eval_dataset", "val_dataset", "max_samples", "pretraining_dataset", "dataset_dir",
}  # fmt: skip


def convert_data(out: Conversion, keys: dict[str, Any], infos: dict[str, Any]) -> dict[str, Any]:
    """Convert the data sets, named ones by their entry in dataset_info.json; return the keys that are left."""
    taken = {k: v for k, v in keys.items() if k in DATA_KEYS}
    _axolotl(out, taken.get("datasets"), "train")
    _streams(out, taken.get("pretraining_dataset"))
    _axolotl(out, taken.get("test_datasets"), "validation")
    names = taken.get("dataset") or taken.get("dataset_name") or []
    limit = taken.get("max_samples")
    for name in names.split(",") if isinstance(names, str) else names if isinstance(names, list) else []:
        _named(out, str(name).strip(), limit, infos)
    if limit is not None and names:
        out.mapped.append(
            ("max_samples", f"take_examples={limit} of every source", "drawn at random, not the first")
        )
    for key in ("eval_dataset", "val_dataset"):
        for name in _list(taken.get(key)):
            source = _plain_source(str(name).split("#", maxsplit=1)[0])
            _add(out, str(name), {**source, "use": "validation"}, key)
    if "dataset_train_split" in taken:
        for source in out.values.get("data", {}).get("sources", {}).values():
            source.setdefault("split", taken["dataset_train_split"])
        out.mapped.append(("dataset_train_split", f"split={taken['dataset_train_split']}", ""))
    return {k: v for k, v in keys.items() if k not in DATA_KEYS}


def _list(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]


def _axolotl(out: Conversion, datasets: Any, use: str) -> None:
    for number, entry in enumerate(_list(datasets)):
        key = f"datasets[{number}]" if use == "train" else f"test_datasets[{number}]"
        if not isinstance(entry, dict) or "path" not in entry:
            out.refuse(key, "names no path")
            continue
        source = _entry(out, key, dict(entry))
        if source is not None:
            _add(out, str(entry["path"]), source | ({"use": use} if use != "train" else {}), key)


def _streams(out: Conversion, datasets: Any) -> None:
    """Convert data sets of raw text that are streamed there: the whole split is read and tokenised here, before training."""
    for number, given in enumerate(_list(datasets)):
        entry = {"path": given} if isinstance(given, str) else dict(given)
        entry["type"] = "completion"
        if column := entry.pop("text_column", None):
            entry["field"] = column
        key = f"pretraining_dataset[{number}]"
        source = _entry(out, key, entry | {"path": entry.get("path", "")})
        if source is not None:
            _add(out, str(given if isinstance(given, str) else given["path"]), source, key)


def _entry(out: Conversion, key: str, entry: dict[str, Any]) -> dict[str, Any] | None:
    """Return the source of one entry of Axolotl's `datasets`; None where it cannot be had."""
    kind, path = entry.pop("type", None), str(entry.pop("path"))
    source = _plain_source(path)
    is_hub = source["kind"] == "hub"
    if is_hub and (files := entry.pop("data_files", None)) is not None:
        source["data_files"] = files
        out.mapped.append((f"{key}.data_files", "data_files of the source", ""))
    if isinstance(kind, dict):
        return _user_defined(out, key, kind, source)
    style = str(kind) if kind is not None else "alpaca"
    if style in STYLES or style == "alpaca":
        source = {**source, **({"format": "alpaca"} if is_hub else {"kind": "alpaca"})}
        template = STYLES.get(style, "alpaca")
        if out.get("render.template") in (None, template):
            out.map(f"{key}.type", "render.template", template, "the same fields in the same layout")
        else:
            out.refuse(
                f"{key}.type",
                f"{style} is another template than that of the other data sets; one run has one",
            )
    elif style in TURN_TYPES:
        source = {**source, **({"format": "messages"} if is_hub else {"kind": "chat"})}
        if out.get("render.template") is None:
            out.map(
                f"{key}.type",
                "render.template",
                "auto",
                "the tokenizer's own, unless chat_template says another",
            )
    elif style == "completion":
        column = str(entry.pop("field", None) or "text")
        source |= {"format": "text"} if is_hub else {"kind": "text"}
        if column != "text":
            source |= {"fields": {"text": column}} if is_hub else {"text_field": column}
        out.mapped.append((f"{key}.type", "raw text: every token carries loss", ""))
    else:
        out.refuse(f"{key}.type", f"{style} is not read; write the records as messages")
        return None
    for name, value in entry.items():
        _entry_key(out, f"{key}.{name}", name, value, source)
    return source


def _entry_key(out: Conversion, key: str, name: str, value: Any, source: dict[str, Any]) -> None:
    """Convert one key of an entry of `datasets` into its source."""
    if value in (None, "", [], {}):
        return
    if name == "split" and source["kind"] == "hub":
        source["split"] = str(value)
    elif name in ("name", "revision") and source["kind"] == "hub":
        source[name] = str(value)
    elif name == "field_messages":
        source["messages_field"] = str(value)
    elif name == "message_property_mappings" and isinstance(value, dict):
        for theirs, ours in (("role", "role_field"), ("content", "content_field")):
            if theirs in value:
                source[ours] = str(value[theirs])
    elif name in ("message_field_role", "message_field_content"):
        source["role_field" if name.endswith("role") else "content_field"] = str(value)
    elif name == "roles" and isinstance(value, dict):
        source["roles"] = {str(word): role for role, words in value.items() for word in _list(words)}
    elif name == "roles_to_train":
        source["train_roles"] = ["assistant" if r in ("gpt", "assistant") else str(r) for r in _list(value)]
    elif name == "train_on_eos":
        if value in ("none", None):
            source["train_end_of_turn"] = False
        elif value != "turn":
            out.refuse(key, f"{value}: ends of turns carry the loss of their turn here")
            return
    elif name in ("field", "field_thinking", "template_thinking_key"):
        if name == "field" or value not in ("reasoning_content", "thinking", "reasoning"):
            out.refuse(key, "another name of the field is not read")
            return
        out.drop(key, "the usual names of a turn's reasoning are known")
        return
    elif name == "conversation":
        out.drop(key, "the format of the turns is found from the records")
        return
    elif name == "chat_template":
        out.drop(key, "see chat_template")
        return
    else:
        out.refuse(key, "has no counterpart")
        return
    out.mapped.append((key, f"{name} of the source", ""))


def _user_defined(
    out: Conversion, key: str, kind: dict[str, Any], source: dict[str, Any]
) -> dict[str, Any] | None:
    """Write Axolotl's user-defined prompt as a Jinja template; its fields become those of an alpaca source."""
    form, bare = kind.get("format"), kind.get("no_input_format")
    if not isinstance(form, str) or kind.get("field") or source["kind"] == "hub":
        out.refuse(f"{key}.type", "this prompt of its own cannot be written as a template over a local file")
        return None
    system, ask = str(kind.get("system_prompt") or ""), bare or form.replace("{input}", "")
    text = "{{ message['content'] }}".join(re.split(r"\{instruction\}", str(ask), maxsplit=1))
    template = (
        "{%- for message in messages -%}{%- if message['role'] == 'user' -%}"
        + json.dumps(system)[1:-1].replace("\\n", "\n")
        + text
        + "{%- elif message['role'] == 'assistant' -%}{% generation %}{{ message['content'] }}{{ eos_token }}{% endgeneration %}"
        "{%- endif -%}{%- endfor -%}"
    )
    name = f"{out.name}.jinja"
    out.files[name] = template
    out.map(
        f"{key}.type", "render.template", name, "written beside the config; look at it with sft-dist preview"
    )
    fields = {
        "instruction_field": "field_instruction",
        "input_field": "field_input",
        "output_field": "field_output",
    }
    return {**source, "kind": "alpaca"} | {
        ours: kind[theirs] for ours, theirs in fields.items() if kind.get(theirs)
    }


def _named(out: Conversion, name: str, limit: Any, infos: dict[str, Any]) -> None:
    """Add a data set that is given by a name in `infos`, a path or `id#count` (ms-swift)."""
    if not name:
        return
    path, _, count = name.partition("#")
    path, _, subset = path.partition(":")
    source = _plain_source(path)
    if subset and source["kind"] == "hub" and subset != "default":
        source["name"] = subset
    if count.isdecimal() or limit is not None:
        source["take_examples"] = int(count) if count.isdecimal() else int(limit)
    if entry := infos.get(path):
        source = _by_info(path, entry, {k: v for k, v in source.items() if k == "take_examples"})
    elif "/" not in path and source["kind"] == "hub":
        out.refuse(
            f"dataset {path}", "is a name in dataset_info.json; give the file or hub id as path of the source"
        )
    _add(out, path, source, f"dataset {path}")


def _by_info(name: str, entry: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Return the source of an entry of LLaMA-Factory's dataset_info.json."""
    columns, tags = entry.get("columns") or {}, entry.get("tags") or {}
    turns = entry.get("formatting") == "sharegpt"
    file = entry.get("file_name")
    source: dict[str, Any] = {"kind": "hub", "path": str(entry.get("hf_hub_url") or name)}
    if file:
        source = {"kind": "chat" if turns else "alpaca", "path": f"data/{file}"}
    else:
        source["format"] = "messages" if turns else "alpaca"
        source |= {
            ours: entry[theirs]
            for theirs, ours in (("subset", "name"), ("split", "split"))
            if entry.get(theirs)
        }
    if turns:
        fields = {"messages_field": columns.get("messages"), "role_field": tags.get("role_tag")}
        source |= {k: v for k, v in fields.items() if v} | (
            {"content_field": tags["content_tag"]} if tags.get("content_tag") else {}
        )
    elif file:
        ours_of = {
            "prompt": "instruction_field",
            "query": "input_field",
            "response": "output_field",
            "system": "system_field",
            "history": "history_field",
        }
        source |= {
            ours: column
            for theirs, ours in ours_of.items()
            if isinstance(column := columns.get(theirs), str) and column
        }
    return source | more


def _plain_source(path: str) -> dict[str, Any]:
    local = path.startswith(("/", "./", "../", "~")) or path.endswith(FILES)
    return {"kind": "chat", "path": path} if local else {"kind": "hub", "path": path}


def _add(out: Conversion, path: str, source: dict[str, Any], key: str) -> None:
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", PurePosixPath(path).name.split(".")[0]).strip("-.")[:60] or "data"
    sources = out.values.setdefault("data", {}).setdefault("sources", {})
    free = next(n for n in (name, *(f"{name}-{i}" for i in range(2, 1000))) if n not in sources)
    sources[free] = source
    out.mapped.append((key, f"data.sources.{free}", str(source["kind"])))
