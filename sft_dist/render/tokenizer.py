"""Text <-> token ids, without torch and without transformers: a thin, exact wrapper of the `tokenizers` library.

Two promises that the renderer builds on: no special token is ever added behind one's back, and with
`allow_control=False` a user's `<|im_end|>` is spelled out as text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from sft_dist.core.errors import UserError
from sft_dist.core.files import fingerprint, write_json, write_text
from sft_dist.render.tokenizer_files import (
    EOS_NAMES,
    PAD_NAMES,
    TokenizerFiles,
    add_missing,
    add_new,
    drop_prefix,
    find_tokenizer,
    kinds,
)

CHUNK_TEXTS = 1000  # one huge list is slower: its encodings are all alive at once
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>")


class TextTokenizer:
    """A tokenizer and what its files say about it.

    Attributes:
        fingerprint: Of tokenizer.json and the named special tokens; equal content, equal fingerprint.
        vocab_size: Largest id + 1, the least number of embedding rows.
        bos_id: Id of the beginning-of-sequence token, if there is one.
        eos_id: Id of the end-of-sequence token, if there is one.
        pad_id: Id of the padding token, if there is one; may equal `eos_id` (no mask is ever derived from ids).
        adds_bos: Whether the tokenizer itself puts BOS before a text, that is: whether its model expects one.
        chat_templates: The Jinja texts that came with it, by name.
        specials: Text of the named special tokens by their key (`bos_token`, `eos_token`, ...).
        control: Text of every special token.
    """

    def __init__(self, files: TokenizerFiles, added: Mapping[str, bool] = MappingProxyType({})) -> None:
        self.path = files.path
        self.chat_templates = files.chat_templates
        self._config = files.config
        try:
            self._json: dict[str, Any] = json.loads(files.tokenizer_json)
            for key in ("truncation", "padding"):  # a saved length limit would cut documents silently
                self._json[key] = None
            add_missing(self._json, files.config)
            if added:
                add_new(self._json, added)
            self._tokenizer = Tokenizer.from_str(json.dumps(self._json))
            self._tokenizer.encode_special_tokens = True
        except UserError:
            raise
        except Exception as error:  # the Rust side raises a bare Exception
            raise UserError(
                f"{files.path}: tokenizer.json cannot be read ({error}); restore the file or update `tokenizers`"
            ) from error
        self.vocab_size = 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values())
        listed = self._tokenizer.get_added_tokens_decoder()
        self.added = {t.content: t for t in listed.values()}
        self.control = frozenset(t.content for t in listed.values() if t.special)
        self.specials = self._named(files)
        self.bos_id, self.eos_id, self.pad_id = (
            self.id_of(self.specials.get(f"{k}_token")) for k in ("bos", "eos", "pad")
        )
        start = self._tokenizer.encode("", add_special_tokens=True).ids[:1]
        self.adds_bos = bool(
            self.bos_id is not None and (start == [self.bos_id] or files.config.get("add_bos_token"))
        )
        self.fingerprint = fingerprint([self._json, self.specials])

    @classmethod
    def load(
        cls, path: str, revision: str | None = None, *, added: Mapping[str, bool] = MappingProxyType({})
    ) -> TextTokenizer:
        """Read a tokenizer from a folder, a tokenizer.json or a hub id (`revision` pins it).

        `added`: tokens that join its vocabulary -> whether they are control tokens.

        Raises:
            UserError: Nothing is there, or it is not a fast tokenizer.
        """
        return cls(find_tokenizer(path, revision), added)

    def _named(self, files: TokenizerFiles) -> dict[str, str]:
        keys = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
        named = {k: t for k in keys if (t := files.token(k)) is not None and self.id_of(t) is not None}
        for key, guesses in (("eos_token", EOS_NAMES), ("pad_token", PAD_NAMES)):
            if key not in named and key not in files.config:
                guess = next((n for n in guesses if n in self.added), None)
                named |= {key: guess} if guess else {}
        start = self._tokenizer.encode("", add_special_tokens=True).tokens[:1]
        if (
            "bos_token" not in named
            and "bos_token" not in files.config
            and start
            and start[0] in self.control
        ):
            named["bos_token"] = start[0]
        return {k: named[k] for k in keys if k in named}

    def id_of(self, token: str | None) -> int | None:
        """Return the id of a token's text; None where the vocabulary has no such token."""
        return None if token is None else self._tokenizer.token_to_id(token)

    def control_id(self, token: str) -> int:
        """Return the id of a token that is known to be in the vocabulary."""
        token_id = self.id_of(token)
        assert token_id is not None, token
        return token_id

    def text_of(self, token_id: int) -> str:
        """Return the vocabulary's spelling of an id."""
        return self._tokenizer.id_to_token(token_id) or ""

    def encode_batch(self, texts: Sequence[str], *, allow_control: bool) -> list[list[int]]:
        """Return the ids of every text, nothing added before or after.

        Args:
            texts: Any number of texts; encoded in Rust, in chunks, on as many cores as `tokenizers` may use.
            allow_control: Whether special tokens spelled in the text become special tokens.

        Raises:
            TypeError: A text holds a lone surrogate and therefore is not Unicode.
        """
        self._tokenizer.encode_special_tokens = not allow_control
        try:
            return encode_chunks(self._tokenizer, texts)
        finally:
            self._tokenizer.encode_special_tokens = True

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """Return the text of ids."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def decode_batch(self, batch: Sequence[Sequence[int]]) -> list[str]:
        """Return the text of every id list, special tokens included."""
        return self._tokenizer.decode_batch([list(ids) for ids in batch], skip_special_tokens=False)

    def variant(self, *, control: frozenset[str] = frozenset(), glued: bool = False) -> Tokenizer:
        """Return a tokenizer for text that never yields a control token.

        Args:
            control: Added tokens, beside the special ones, that count as control tokens (`<think>`).
            glued: The text continues other text, so the space that some tokenizers put before a text is left out.
        """
        if not glued and control <= self.control:
            return self._tokenizer
        spec = {**self._json}
        spec["added_tokens"] = [
            {**t, "special": t["special"] or t["content"] in control} for t in spec["added_tokens"]
        ]
        if glued:
            drop_prefix(spec)
        out = Tokenizer.from_str(json.dumps(spec))
        out.encode_special_tokens = True
        return out

    @cached_property
    def byte_widths(self) -> NDArray[np.int32] | None:
        """Bytes of text that each id stands for [vocab_size]; None unless every text is spelled byte by byte."""
        model, steps = self._json["model"], kinds(self._json.get("pre_tokenizer"))
        if (
            model.get("type") != "BPE"
            or self._json.get("normalizer") is not None
            or "ByteLevel" not in steps
            or self.prefix
        ):
            return None
        widths = np.zeros(self.vocab_size, dtype=np.int32)
        for token, token_id in self._tokenizer.get_vocab(with_added_tokens=False).items():
            widths[token_id] = len(token)  # byte-level BPE writes one character a byte
        for token_id, added in self._tokenizer.get_added_tokens_decoder().items():
            widths[token_id] = len(added.content.encode("utf-8"))
        return widths

    @cached_property
    def prefix(self) -> str | None:
        """When a space is put before text: None (never), `first` (start of a document) or `always` (also after a special token)."""
        return drop_prefix({k: self._json.get(k) for k in ("normalizer", "pre_tokenizer")})

    def save(self, folder: Path, *, template_text: str | None = None, eos: str | None = None) -> None:
        """Write the files that `transformers.AutoTokenizer` opens with the same ids.

        Args:
            folder: Made if missing; files of the same names are replaced.
            template_text: Chat template to carry; None carries the one that came with the tokenizer.
            eos: Text of the token that ends a turn, so that a server stops there; None keeps the tokenizer's own, as
                does a template that writes `eos_token` itself, for its renderings would change.
        """
        template = template_text if template_text is not None else self.chat_templates.get("default")
        specials = dict(self.specials)
        if eos is not None and "eos_token" not in (template or ""):
            specials["eos_token"] = eos
        if "pad_token" not in specials and self.eos_id is not None:
            specials["pad_token"] = self.specials["eos_token"]
        kept = (
            "model_max_length",
            "clean_up_tokenization_spaces",
            "padding_side",
            "add_bos_token",
            "add_eos_token",
            "model_input_names",
        )
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",  # opens tokenizer.json as it is
            "clean_up_tokenization_spaces": False,
            "model_input_names": ["input_ids", "attention_mask"],  # no causal LM takes token types
            **{k: self._config[k] for k in kept if k in self._config},
            **specials,
        }
        write_json(folder / "tokenizer.json", self._json)
        write_json(folder / "tokenizer_config.json", config)
        write_json(folder / "special_tokens_map.json", specials)
        if template is not None:
            write_text(folder / "chat_template.jinja", template)


def encode_chunks(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Return the ids of every text; no special token is added."""
    out: list[list[int]] = []
    for i in range(0, len(texts), CHUNK_TEXTS):
        batch = tokenizer.encode_batch_fast(list(texts[i : i + CHUNK_TEXTS]), add_special_tokens=False)
        out.extend(e.ids for e in batch)
    return out


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, special_tokens: Sequence[str] = SPECIAL_TOKENS
) -> TextTokenizer:
    """Train a byte-level BPE tokenizer; equal texts give an equal tokenizer, whatever their order.

    Digits are split one by one, so that numbers are spelled alike everywhere.

    Args:
        texts: Any iterable; read once.
        vocab_size: Upper limit; few texts give fewer merges.
        special_tokens: Take the ids 0, 1, ...

    Raises:
        UserError: `vocab_size` has no room for the 256 bytes and the special tokens.
    """
    least = 256 + len(special_tokens)
    if vocab_size < least:
        raise UserError(
            f"render.train_vocab_size={vocab_size} has no room for 256 bytes and {len(special_tokens)} special tokens, "
            f"so some text could not be encoded; use at least {least}"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(t, special=True, normalized=False) for t in special_tokens],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    names = {"eos_token": "<|endoftext|>", "pad_token": "<|pad|>"}
    config = {k: t for k, t in names.items() if t in special_tokens}
    return TextTokenizer(
        TokenizerFiles(
            tokenizer_json=tokenizer.to_str(), config=config, chat_templates={}, path="trained tokenizer"
        )
    )
