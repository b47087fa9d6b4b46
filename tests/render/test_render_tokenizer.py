"""Loading, exactness, errors and training of tokenizers."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from sft_dist.core.errors import UserError
from sft_dist.render.tokenizer import SPECIAL_TOKENS, TextTokenizer, train_tokenizer

TEXTS = ["the cat sat on the mat", "the dog sat on the log", "what is 2024 + 17 ?"]


@pytest.fixture(scope="module")
def tiny():
    return train_tokenizer(TEXTS * 5, 300)


def test_special_tokens_come_first_and_bytes_cover_everything(tiny):
    assert [tiny.id_of(t) for t in SPECIAL_TOKENS] == [0, 1, 2, 3]
    assert (tiny.eos_id, tiny.pad_id, tiny.bos_id) == (0, 3, None)
    for text in ("", "é", "你好", "👩‍👩‍👧", "\x00\n\t ", "a<|im_end|>b"):
        assert tiny.decode(tiny.encode_batch([text], allow_control=False)[0]) == text


def test_control_tokens_in_text_stay_text_unless_allowed(tiny):
    assert tiny.encode_batch(["<|im_end|>"], allow_control=True) == [[2]]
    spelled = tiny.encode_batch(["<|im_end|>"], allow_control=False)[0]
    assert 2 not in spelled
    assert tiny.decode(spelled) == "<|im_end|>"
    assert tiny.encode_batch(["<|im_end|>"], allow_control=False) == [spelled]  # the flag does not stick


def test_digits_are_split_one_by_one(tiny):
    assert len(tiny.encode_batch(["2024"], allow_control=False)[0]) == 4


def test_no_token_is_added_by_itself(tmp_path, tiny):
    tiny.save(tmp_path)
    inner = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    inner.add_special_tokens(["<s>"])
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", inner.token_to_id("<s>"))]
    )
    inner.enable_truncation(2)
    (tmp_path / "bos").mkdir()
    inner.save(str(tmp_path / "bos/tokenizer.json"))
    loaded = TextTokenizer.load(str(tmp_path / "bos"))
    assert loaded.adds_bos
    assert loaded.specials["bos_token"] == "<s>"
    ids = loaded.encode_batch(["the cat sat"], allow_control=False)[0]
    assert loaded.bos_id not in ids
    assert loaded.decode(ids) == "the cat sat"  # and the saved truncation is not applied


def test_save_and_load_keep_ids_and_fingerprint(tiny, tmp_path):
    tiny.save(tmp_path)
    again = TextTokenizer.load(str(tmp_path))
    assert again.fingerprint == tiny.fingerprint
    assert again.encode_batch(TEXTS, allow_control=False) == tiny.encode_batch(TEXTS, allow_control=False)
    tiny.save(tmp_path, template_text="{{ messages }}", eos="<|im_end|>")
    changed = TextTokenizer.load(str(tmp_path))
    assert changed.fingerprint != tiny.fingerprint
    assert changed.eos_id == 2
    assert changed.chat_templates["default"] == "{{ messages }}"
    tiny.save(
        tmp_path, template_text="{{ eos_token }}", eos="<|im_end|>"
    )  # which would render something else, then
    assert TextTokenizer.load(str(tmp_path)).eos_id == 0


def test_a_bare_tokenizer_json_is_enough(tiny, tmp_path):
    tiny.save(tmp_path)
    bare = TextTokenizer.load(str(tmp_path / "tokenizer.json"))
    assert (bare.eos_id, bare.pad_id) == (0, 3)
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "special_tokens_map.json").write_text('{"eos_token": {"content": "<|im_end|>"}}')
    assert TextTokenizer.load(str(tmp_path)).eos_id == 2


def test_padding_may_be_the_end_token(tiny, tmp_path):
    tiny.save(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "pad_token": "<|endoftext|>"}))
    loaded = TextTokenizer.load(str(tmp_path))
    assert loaded.pad_id == loaded.eos_id == 0


def test_tokens_that_only_the_config_lists_are_added(tiny, tmp_path):
    tiny.save(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    n = tiny.vocab_size
    config["added_tokens_decoder"] = {str(n): {"content": "<think>", "special": False}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    loaded = TextTokenizer.load(str(tmp_path))
    assert loaded.id_of("<think>") == n
    assert loaded.vocab_size == n + 1
    assert "<think>" not in loaded.control


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({}, "no tokenizer.json"),
        ({"tokenizer.model": ""}, "save_pretrained"),
        ({"tokenizer.json": "{"}, "cannot be read"),
        ({"tokenizer.json": "{}"}, "cannot be read"),
        ({"tokenizer.json": "{}", "tokenizer_config.json": "["}, "not valid JSON"),
    ],
)
def test_unusable_folders_are_user_errors(files, says, tmp_path):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=says):
        TextTokenizer.load(str(tmp_path))


@pytest.mark.parametrize("path", ["./nowhere", "/no/such/folder", "no/such/tokenizer.json"])
def test_a_missing_path_is_named(path):
    with pytest.raises(UserError, match="no file or folder"):
        TextTokenizer.load(path)


def test_a_hub_id_that_is_not_cached_is_a_user_error_offline(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="hub or its local cache"):
        TextTokenizer.load("nobody/no-such-tokenizer")


def test_training_is_deterministic_across_order_and_processes(tiny):
    assert train_tokenizer(list(reversed(TEXTS * 5)), 300).fingerprint == tiny.fingerprint
    code = (
        "from sft_dist.render.tokenizer import train_tokenizer\n"
        f"print(train_tokenizer({TEXTS!r} * 5, 300).fingerprint)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == tiny.fingerprint


def test_a_vocabulary_without_room_for_bytes_is_refused():
    with pytest.raises(UserError, match="at least 260"):
        train_tokenizer(TEXTS, 100)


def test_nothing_here_imports_torch_or_transformers():
    code = "import sys, sft_dist.render.preview; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def sentencepiece_like(scheme: str) -> Tokenizer:
    """A tokenizer that puts a space before text: `first`, `always` (Metaspace) or `prepend` (Llama 2's normalizer)."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    if scheme == "prepend":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    trainer = trainers.BpeTrainer(
        vocab_size=220,
        special_tokens=[AddedToken(t, special=True, normalized=False) for t in ("<unk>", "<s>", "</s>")],
        initial_alphabet=sorted("▁\n[]/" + "abcdefghijklmnopqrstuvwxyzINST?"),
        show_progress=False,
    )
    tokenizer.train_from_iterator([t.replace(" ", "▁") for t in TEXTS] * 5, trainer)
    return tokenizer


@pytest.mark.parametrize("scheme", ["first", "always", "prepend"])
def test_segments_get_a_space_before_them_only_where_the_whole_text_would(scheme, tmp_path):
    """The known trap of Llama 2's tokenizer: encoding piece by piece sprinkles spaces."""
    from sft_dist.render.renderer import Renderer

    inner = sentencepiece_like(scheme)
    inner.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>"}')
    (tmp_path / "chat_template.jinja").write_text(
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
        "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
    )
    from render_helpers import chat

    renderer = Renderer(TextTokenizer.load(str(tmp_path)))
    tokens = renderer.render(
        [chat(("u", "what is the cat"), ("a", "the dog"), ("u", "the mat"), ("a", "on the log"))]
    )[0]
    text = "<s>[INST] what is the cat [/INST] the dog</s>[INST] the mat [/INST] on the log</s>"
    assert tokens.ids.tolist() == inner.encode(text, add_special_tokens=False).ids
    spelled = [
        "".join(inner.id_to_token(i) for i in tokens.ids[s.start : s.start + s.length]) for s in tokens.spans
    ]
    assert spelled == ["▁the▁dog</s>", "▁on▁the▁log</s>"]


def test_added_tokens_are_those_of_transformers(tiny, tmp_path):
    """New ones come behind the vocabulary in order; known ones keep their ids; control tokens are never read from text."""
    from transformers import PreTrainedTokenizerFast

    tiny.save(tmp_path / "base")
    ours = TextTokenizer.load(
        str(tmp_path / "base"), added={"<aud>": False, "the": False, "<|im_end|>": True, "<call>": True}
    )
    theirs = PreTrainedTokenizerFast.from_pretrained(str(tmp_path / "base"))
    theirs.add_tokens(["<aud>"])
    theirs.add_tokens(["<call>"], special_tokens=True)
    assert ours.vocab_size == len(theirs) == tiny.vocab_size + 2
    assert ours.id_of("the") == tiny.id_of("the")
    text = "say <aud> then <call>the end"
    assert ours.encode_batch([text], allow_control=True)[0] == theirs.encode(text, add_special_tokens=False)
    spelled = ours.encode_batch([text], allow_control=False)[0]
    assert ours.id_of("<aud>") in spelled
    assert ours.id_of("<call>") not in spelled
    assert ours.fingerprint != tiny.fingerprint
    with pytest.raises(UserError, match="'the' is an ordinary piece of text in this vocabulary"):
        TextTokenizer.load(str(tmp_path / "base"), added={"the": True})
    ours.save(tmp_path / "grown")
    again = PreTrainedTokenizerFast.from_pretrained(str(tmp_path / "grown"))
    assert again.encode(text, add_special_tokens=False) == theirs.encode(text, add_special_tokens=False)
