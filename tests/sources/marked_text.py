"""What of an example would be trained, as text: `[[...]]` around what carries loss, `*0.5` behind odd weights."""

from __future__ import annotations

import functools

from sft_dist.core.records import Example
from sft_dist.render.renderer import Renderer
from sft_dist.render.tokenizer import train_tokenizer


@functools.cache
def renderer(template: str = "chatml") -> Renderer:
    return Renderer(train_tokenizer(["user assistant"] * 4, 300), template=template)


def marked(example: Example, template: str = "chatml") -> str:
    """The rendered example. Turn borders are short: `<role>` for a header, `<end>` for its end."""
    text, odd = "", ""
    for s in renderer(template).explain(example):
        if odd and odd != f"*{s.weight:g}":
            text, odd = text + odd, ""
        text += f"[[{s.text}]]" if s.weight else s.text
        odd = f"*{s.weight:g}" if s.weight not in (0.0, 1.0) else ""
    text = (text + odd).replace("]][[", "").replace("<|im_end|>", "<end>").strip()
    for role in ("system", "user", "assistant"):
        text = text.replace(f"<end>\n<|im_start|>{role}\n", f"<end><{role}>")
        text = text.replace(f"<end>]]\n<|im_start|>{role}\n", f"<end>]]<{role}>")
        text = text.replace(f"\n<|im_start|>{role}\n", f"<{role}>").replace(
            f"<|im_start|>{role}\n", f"<{role}>"
        )
    return text
