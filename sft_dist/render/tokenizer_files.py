"""Where a tokenizer's files lie and what they say: a folder, a bare tokenizer.json, or a hub id. No transformers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from sft_dist.core.errors import UserError
from sft_dist.core.files import expanded, is_local

FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
)
# What an end-of-text token is called where no config says it; the first that the vocabulary has is taken.
EOS_NAMES = ("<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>", "<|im_end|>")
PAD_NAMES = ("<|pad|>", "<pad>", "[PAD]", "<|padding|>", "<|finetune_right_pad_id|>")


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerFiles:
    """The content of a tokenizer's files.

    Attributes:
        tokenizer_json: Text of tokenizer.json.
        config: tokenizer_config.json over special_tokens_map.json; empty where neither exists.
        chat_templates: The Jinja texts that came with the tokenizer, by name; a single one is `default`.
        path: What the user named, for messages.
    """

    tokenizer_json: str
    config: dict[str, Any]
    chat_templates: dict[str, str]
    path: str

    def token(self, key: str) -> str | None:
        """Return the text of a named special token such as `eos_token`; None where the files name none."""
        value = self.config.get(key)
        if isinstance(value, dict):
            value = value.get("content")
        return value if isinstance(value, str) else None


def find_tokenizer(path: str, revision: str | None = None) -> TokenizerFiles:
    """Read the files of a tokenizer.

    Args:
        path: A folder, a tokenizer.json, or a hub id (`HF_HUB_OFFLINE=1` reads the local cache only).
        revision: Hub commit, tag or branch; meaningless for a local path.

    Raises:
        UserError: Nothing is there, or it is not a fast tokenizer.
    """
    local = expanded(path)
    if local.is_file():
        return _read(local.parent if local.name == "tokenizer.json" else None, local, path)
    if not local.is_dir():
        local = _download(path, revision)
    if not (local / "tokenizer.json").is_file():
        slow = [
            n
            for n in ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.json")
            if (local / n).is_file()
        ]
        if slow:
            raise UserError(
                f"{path} holds {slow[0]} but no tokenizer.json, so its exact token borders cannot be read; "
                'convert it once: python -c "from transformers import AutoTokenizer; '
                f"AutoTokenizer.from_pretrained('{path}').save_pretrained('{Path(path).name}-fast')\" and name that folder"
            )
        raise UserError(
            f"the folder {path} has no tokenizer.json, so text cannot be turned into tokens; name a folder that "
            "AutoTokenizer.save_pretrained wrote, a tokenizer.json, or a hub id in model.tokenizer"
        )
    return _read(local, local / "tokenizer.json", path)


def _download(path: str, revision: str | None) -> Path:
    """Fetch the tokenizer's files of a hub repository into the hub cache."""
    if is_local(path) or path.endswith((".json", ".model")):
        raise UserError(
            f"there is no file or folder {path}, so no tokenizer can be read; check model.tokenizer (a relative path "
            f"starts at {Path.cwd()})"
        )
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(
            huggingface_hub.snapshot_download(
                path, revision=revision, allow_patterns=[*FILES, "tokenizer.model"]
            )
        )
    except (OSError, ValueError, HFValidationError) as error:
        raise UserError(
            f"{path} is neither a local path nor a tokenizer that the hub or its local cache could give "
            f"({type(error).__name__}: {str(error).splitlines()[0]}); check the name, or download it where there is "
            "a network and name the folder"
        ) from error


def _read(folder: Path | None, tokenizer_json: Path, path: str) -> TokenizerFiles:
    config: dict[str, Any] = {}
    templates: dict[str, str] = {}
    if folder is not None:
        for name in ("special_tokens_map.json", "tokenizer_config.json"):
            if (folder / name).is_file():
                config.update(_json(folder / name))
        templates = _templates(folder, config.pop("chat_template", None))
    return TokenizerFiles(
        tokenizer_json=tokenizer_json.read_text(encoding="utf-8"),
        config=config,
        chat_templates=templates,
        path=path,
    )


def _templates(folder: Path, in_config: Any) -> dict[str, str]:
    """Return the chat templates by name; a file of its own wins over the config, as in transformers."""
    if (folder / "chat_template.json").is_file():
        in_config = _json(folder / "chat_template.json").get("chat_template")
    if isinstance(in_config, str):
        named = {"default": in_config}
    else:  # several named templates
        entries = in_config if isinstance(in_config, list) else []
        named = {
            t["name"]: t["template"]
            for t in entries
            if isinstance(t, dict) and {"name", "template"} <= t.keys()
        }
    files = {p.stem: p for p in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
    if (folder / "chat_template.jinja").is_file():
        files["default"] = folder / "chat_template.jinja"
    return named | {name: path.read_text(encoding="utf-8") for name, path in files.items()}


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path} is not valid JSON ({error}), so the tokenizer cannot be read; restore the file"
        ) from error
    if not isinstance(value, dict):
        raise UserError(
            f"{path} does not hold a JSON object, so the tokenizer cannot be read; restore the file"
        )
    return value


def add_missing(spec: dict[str, Any], config: dict[str, Any]) -> None:
    """Add tokens that only tokenizer_config.json lists, at the ids it gives them."""
    present = {t["content"] for t in spec.get("added_tokens") or []}
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    listed: dict[str, dict[str, Any]] = config.get("added_tokens_decoder") or {}
    for token_id, token in sorted(listed.items(), key=lambda item: int(item[0])):
        if token["content"] not in present:
            entry = {
                "id": int(token_id),
                "content": token["content"],
                **{f: bool(token.get(f)) for f in flags},
            }
            spec.setdefault("added_tokens", []).append(entry)


def add_new(spec: dict[str, Any], added: Mapping[str, bool]) -> None:
    """Add tokens behind the vocabulary; one that it has keeps its id, and becomes a control token where that is asked for.

    Args:
        spec: The content of tokenizer.json.
        added: Text of a token -> whether it is a control token.

    Raises:
        UserError: When a control token is an ordinary piece of text in this vocabulary.
    """
    ids: dict[str, int] = Tokenizer.from_str(json.dumps(spec)).get_vocab(with_added_tokens=True)
    entries = spec.setdefault("added_tokens", [])
    listed = {t["content"]: t for t in entries}
    for text, special in added.items():
        if text in listed:
            listed[text]["special"] = listed[text]["special"] or special
        elif text in ids and special:
            raise UserError(
                f"render.add_special_tokens: {text!r} is an ordinary piece of text in this vocabulary, so text of users would be read as "
                "the control token; choose another text, such as <|name|>"
            )
        elif text not in ids:
            token_id = ids.setdefault(text, 1 + max(ids.values()))
            flags = {"single_word": False, "lstrip": False, "rstrip": False}
            entries.append(
                {"id": token_id, "content": text, **flags, "normalized": not special, "special": special}
            )
    entries.sort(key=lambda t: t["id"])


def kinds(node: Any) -> set[str]:
    """Return the types of a pre-tokenizer and its parts."""
    if not isinstance(node, dict):
        return set()
    return {node.get("type", "")}.union(*(kinds(n) for n in node.get("pretokenizers", ())))


def drop_prefix(spec: dict[str, Any]) -> str | None:
    """Remove from a tokenizer.json the space it puts before text; return when it was put there.

    Only the two keys of `spec` are replaced; what they held stays as it was.
    """
    found: str | None = None

    def walk(node: Any) -> Any:
        nonlocal found
        if isinstance(node, list):
            return [w for n in node if (w := walk(n)) is not None]
        if not isinstance(node, dict):
            return node
        kind = node.get("type")
        if kind == "Prepend":
            found = "always"
            return None
        if kind == "Metaspace" and node.get("prepend_scheme", "always") != "never":
            found = "first" if node.get("prepend_scheme") == "first" else "always"
            return {**node, "prepend_scheme": "never"}
        if kind == "ByteLevel" and node.get("add_prefix_space"):
            found = "always"
            return {**node, "add_prefix_space": False}
        return {k: walk(v) if k in ("normalizers", "pretokenizers") else v for k, v in node.items()}

    for part in ("normalizer", "pre_tokenizer"):
        spec[part] = walk(spec.get(part))
    return found
