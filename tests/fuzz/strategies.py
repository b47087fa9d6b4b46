"""What the fuzzers draw: config values, YAML, overrides, records, templates, model files, command words, and damage to files."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any, get_args

from hypothesis import strategies as st

from sft_dist.config.root import RunConfig

INF, NAN = float("inf"), float("nan")
MARKUP = st.sampled_from(
    ["\x1b[2J", "\x1b]0;x\x07", "\x9b1m", "\u202e", "<script>alert(1)</script>", "<img src=x onerror=y>", "![x](http://y)", "[link](javascript:x)", "\r"]
)  # fmt: skip
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([1 << 63, 10**30, 0.5, -1.0, 1e300]),
    st.text(max_size=12),
    st.sampled_from(
        [
            "user",
            "assistant",
            "system",
            "tool",
            "human",
            "gpt",
            "",
            "\x00",
            "\ud800",
            "{}",
            "[1]",
            "<|im_end|>",
        ]
    ),
    MARKUP,
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=5,
)

# --- config: values by the path of their key

TYPES: dict[str, Any] = {
    f"{section}.{key}": inner.annotation
    for section, field in RunConfig.model_fields.items()
    if hasattr(field.annotation, "model_fields")
    for key, inner in field.annotation.model_fields.items()  # type: ignore[union-attr]
} | {name: RunConfig.model_fields[name].annotation for name in ("name", "run_root", "seed", "cluster")}


def _holds(annotation: Any, *kinds: type) -> bool:
    return annotation in kinds or any(_holds(part, *kinds) for part in get_args(annotation))


NUMBERS = st.one_of(
    st.sampled_from([INF, -INF, NAN, True, 0, -1, 1.0, -0.1, 36, 70_000, 100_000, 1e12, 10**40]),
    st.integers(),
    st.floats(),
)
TEXTS = st.one_of(
    st.sampled_from(
        ["\n", "runs\n#SBATCH --uid=0", "\x1b[2J", "../..", "$(ls)", "${oc.env:HOME}", "~nobody-here/x", "a" * 300, "nan", "1e400", "-0", "yes", "\x00"]
    ),
    st.text(max_size=40),
)  # fmt: skip
CONFIG_SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)
SOURCES = st.dictionaries(
    st.sampled_from(["s", "s" * 300, "a/b", "..", "a\nb"]),
    st.fixed_dictionaries(
        {"kind": st.sampled_from(["demo", "demo", "chat", "nothing"])},
        optional=dict.fromkeys(("weight", "take_share", "take_examples", "share", "epochs", "task", "path"), CONFIG_SCALARS),
    ),
    min_size=1,
    max_size=2,
)  # fmt: skip
SHAPES = st.fixed_dictionaries(
    {"hidden_size": st.sampled_from([36, 64, 0, -1, 10**12]), "heads": st.sampled_from([4, 3, 0, 64])},
    optional=dict.fromkeys(
        ("layers", "initializer_range", "rope_theta", "intermediate_size"), CONFIG_SCALARS
    ),
)
# Of keys whose values have a form of their own, one in that form.
FORMED: dict[str, st.SearchStrategy[Any]] = {
    "data.sources": SOURCES,
    "model.shape": SHAPES,
    "optim.betas": st.lists(NUMBERS | st.sampled_from([0.9, 0.95]), min_size=2, max_size=2),
    "deepspeed.extra": st.dictionaries(
        st.sampled_from(["train_batch_size", "zero_optimization", "x", "aio"]), CONFIG_SCALARS | st.dictionaries(st.text(max_size=4), CONFIG_SCALARS, max_size=2),
        min_size=1, max_size=2,
    ),
    "submit.sbatch": st.lists(st.sampled_from(["--comment=a\n#SBATCH --uid=0", "--time=1", "x"]), max_size=2),
}  # fmt: skip
CONFIG_VALUES = st.recursive(
    CONFIG_SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def value_of(path: str) -> st.SearchStrategy[Any]:
    """Return what is drawn for a key: mostly what looks like its type, and is wrong for it in some way."""
    if path in FORMED:
        return st.one_of(FORMED[path], FORMED[path], CONFIG_VALUES)
    like = (
        NUMBERS if _holds(TYPES[path], int, float) else TEXTS if _holds(TYPES[path], str) else CONFIG_SCALARS
    )
    return st.one_of(like, like, CONFIG_VALUES)


@st.composite
def configs(draw: st.DrawFn) -> dict[str, Any]:
    """Return what is changed in a config: path -> value."""
    paths = draw(st.lists(st.sampled_from(sorted({*TYPES, *FORMED})), min_size=1, max_size=3, unique=True))
    return {path: draw(value_of(path)) for path in paths}


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
YAML_PIECES = st.sampled_from(
    ["name", "data", "train", ": ", ":\n  ", "- ", "[", "]", "{", "}", "&a ", "*a", "<<: *a", "\n", "\t", "!!int ", "|\n", "1e5", "no", "'", '"', "${", "?",
     "data: &d {sources: *d}\n", "[" * 3000, "{a: " * 3000, BOMB, "name: 2024-13-45\n", "!!python/object/apply:os.system [ls]\n"]
)  # fmt: skip
YAML = st.lists(YAML_PIECES | st.text(max_size=5), max_size=20).map("".join)
OVERRIDES = st.lists(
    st.lists(
        st.sampled_from(
            ["train.epochs", "name", "x", "=", "~", "+", "++", ".", "[" * 3000, "{a:" * 3000, "9" * 30_000, "'", '"', ",", "\x07", "a=1", "${x}", "null", "1"]
        )
        | st.text(max_size=4),
        max_size=5,
    ).map("".join),
    min_size=1,
    max_size=2,
)  # fmt: skip

# --- records

RECORD_KEYS = st.sampled_from(
    ["messages", "conversations", "tools", "functions", "instruction", "input", "output", "history", "weight", "system", "text", "id", "task",
     "prompt", "completion", "segments", "input_ids", "labels", "loss", "train"]
)  # fmt: skip
TURN_KEYS = st.sampled_from(
    ["role", "from", "content", "value", "tool_calls", "function_call", "weight", "train", "reasoning_content", "name", "tool_call_id", "loss"]
)  # fmt: skip
TURN = st.dictionaries(TURN_KEYS, JSON, max_size=4) | st.fixed_dictionaries(
    {
        "role": st.sampled_from(["user", "assistant", "system", "tool"]),
        "content": st.text(max_size=8) | MARKUP | JSON,
    },
    optional={"weight": JSON, "tool_calls": JSON, "train": JSON, "reasoning_content": JSON},
)
RECORD = st.dictionaries(RECORD_KEYS, JSON | st.lists(TURN, max_size=4), max_size=4) | st.fixed_dictionaries(
    {"messages": st.lists(TURN, max_size=4)}, optional={"tools": JSON, "weight": JSON}
)
RECORDS = st.lists(RECORD, min_size=1, max_size=8)

# --- templates

TEMPLATE_PIECES = st.sampled_from(
    ["{% for m in messages %}", "{% endfor %}", "{{ m.role }}", "{{ m.content }}", "{{ m['content'] | trim }}", "<|im_start|>", "<|im_end|>", "\n",
     "{% if add_generation_prompt %}", "{% endif %}", "{% if m.role == 'user' %}", "{% else %}", "{{ raise_exception('no') }}", "{{ bos_token }}",
     "{{ 'x' * 10000000000 }}", "{{ 2 ** 2 ** 40 }}", "{{ messages[0].__class__ }}", "{{ range(10 ** 9) | list }}", "{% set ns = namespace(a=1) %}",
     "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", "{{ tools | tojson }}", "{% generation %}", "{% endgeneration %}", "{{ m }}", "{{", "%}",
     "{{ messages | map(attribute='content') | join }}", "{{ strftime_now('%Y') }}", "{{ m.content.split('a')[9] }}"]
)  # fmt: skip
WHOLE_TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
TEMPLATES = st.builds(
    lambda pieces, at, whole: (
        WHOLE_TEMPLATE[:at] + "".join(pieces[:2]) + WHOLE_TEMPLATE[at:] if whole else "".join(pieces)
    ),
    st.lists(TEMPLATE_PIECES, max_size=8),
    st.integers(0, len(WHOLE_TEMPLATE)),
    st.booleans(),
)

# --- files of models

SIZES = (
    "hidden_size",
    "num_attention_heads",
    "num_hidden_layers",
    "vocab_size",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
)
MODEL_CONFIG = {
    "model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 100, "intermediate_size": 128,
}  # fmt: skip
MODEL_CONFIGS = (
    st.dictionaries(
        st.sampled_from([*SIZES, "model_type", "text_config", "layer_types", "num_experts"]),
        st.sampled_from([0, -64, 10_000_000, 10**30, 1e3, 64.5, True, "64", None, [], {}]) | JSON,
        max_size=3,
    ).map(lambda changes: {**MODEL_CONFIG, **changes})
    | JSON
)
WEIGHT_INDEX = {"metadata": {"total_size": 8}, "weight_map": {"w": "a.safetensors", "v": "b.safetensors"}}

# --- words of a command line: a folder that is no run, names that are no names

PLACES = st.sampled_from(
    [
        ".",
        "sub",
        "notes.txt",
        "nothing",
        "a" * 300,
        "a\nb",
        "\x1b[2J",
        "~nobody-here",
        "",
        "-",
        "sub/../sub",
        "\ud800",
    ]
)
COMMANDS = st.one_of(
    st.tuples(st.sampled_from(["report", "watch", "evaluate", "export", "query"]), PLACES).map(list),
    st.tuples(st.just("compare"), PLACES, PLACES).map(list),
    st.tuples(st.just("export"), PLACES, st.just("--checkpoint"), st.sampled_from(["../", "x", "step-1", "step-00000001/../.."])).map(list),
    st.tuples(st.just("write-run"), st.just("--run-dir"), PLACES, st.sampled_from(["name=a/b", "name=..", f"name={'n' * 300}", "name='a b'", "seed=x"])).map(list),
)  # fmt: skip

# --- damage to what is read back


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value inside a value of JSON."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, below in inner:
        yield from places(below, (*path, key))


@st.composite
def changed(draw: st.DrawFn, whole: Any) -> Any:
    """Return a copy with one or two values replaced or taken away."""
    value = copy.deepcopy(whole)
    for _ in range(draw(st.integers(1, 2))):
        path = draw(st.sampled_from(list(places(value))))
        if not path:
            return draw(JSON)
        inner = value
        for key in path[:-1]:
            inner = inner[key]
        if draw(st.booleans()) and isinstance(inner, dict):
            del inner[path[-1]]
        else:
            inner[path[-1]] = draw(JSON)
    return value


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Return the bytes of a file as a full disk, a bad one, a kill or a hand leaves them."""
    kind = draw(st.sampled_from(["torn", "digit", "byte", "hole", "twice", "other", "lines"]))
    at = draw(st.integers(0, max(0, len(content) - 1)))
    if kind == "torn":
        return content[:at]
    if kind == "digit" and (digits := [i for i, byte in enumerate(content) if 48 <= byte < 58]):
        at = draw(st.sampled_from(digits))
        return (
            content[:at] + bytes([48 + (content[at] - 48 + draw(st.integers(1, 9))) % 10]) + content[at + 1 :]
        )
    if kind == "hole":
        return content[:at] + bytes(len(content) - at)
    if kind == "twice":
        return content + content[at:]
    if kind == "other":
        return draw(
            st.sampled_from(
                [b"", b"[1, 2]\n", b"null", b"3", b"[" * 200_000, b"\xff\xfe", b"{}", b'{"checksum": 1}']
            )
        )
    if kind == "lines":
        lines = content.split(b"\n")
        return b"\n".join(draw(st.permutations(lines[:6])) + lines[6:])
    return content[:at] + draw(st.binary(min_size=1, max_size=3)) + content[at + 1 :]


@st.composite
def files_with_one_odd(draw: st.DrawFn, files: dict[str, Any]) -> dict[str, bytes]:
    """Return files of JSON and JSON lines (lists), one of them changed in a value or in its bytes."""
    odd = draw(st.sampled_from(sorted(files)))
    out = {}
    for name, value in files.items():
        written = draw(changed(value)) if name == odd and draw(st.booleans()) else value
        lines = written if name.endswith(".jsonl") and isinstance(written, list) else [written]
        out[name] = "".join(json.dumps(line) + "\n" for line in lines).encode("utf-8", "surrogatepass")
        if name == odd and draw(st.booleans()):
            out[name] = draw(damaged(out[name]))
    return out
