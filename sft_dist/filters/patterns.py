"""What the rules look for: phrases, words and character ranges, as compiled patterns."""

from __future__ import annotations

import re

SHORT_TEXT_CHARS = 160  # of an answer: where a refusal stands, and how much of it a reason quotes

CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f]")  # U+0085 is a line end

# UTF-8 bytes read as Windows-1252 (an apostrophe becomes three characters, an accented letter two).
MOJIBAKE = re.compile(
    "\ufffd|\u00e2\u20ac[\u2122\u0153\u009d\u201c\u201d\u00a6\u00a2]|\u00c3[\u0080-\u00bf]|\u00ef\u00bf\u00bd"
)

LETTER = re.compile(r"[^\W\d_]")
IDEOGRAPH = re.compile("[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003134f]")
SCRIPTS = {
    "Latin": re.compile(
        "[A-Za-z\u00aa\u00ba\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u02b8\u1e00-\u1eff\uff21-\uff3a\uff41-\uff5a]"
    ),
    "Cyrillic": re.compile("[\u0400-\u052f\u1c80-\u1c8f]"),
    "Greek": re.compile("[\u0370-\u03ff\u1f00-\u1fff]"),
    "Arabic": re.compile("[\u0620-\u064a\u066e-\u06d3\u0750-\u077f\u08a0-\u08b4]"),
    "Hebrew": re.compile("[\u05d0-\u05ea]"),
    "Devanagari": re.compile("[\u0904-\u0939\u0958-\u0961]"),
    "Bengali": re.compile("[\u0985-\u09b9\u09dc-\u09e1]"),
    "Tamil": re.compile("[\u0b83-\u0bb9]"),
    "Thai": re.compile("[\u0e01-\u0e30\u0e32\u0e33\u0e40-\u0e46]"),
    "Han": re.compile("[\u3005\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f]"),
    "Kana": re.compile("[\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\uff66-\uff9f]"),
    "Hangul": re.compile("[\u1100-\u11ff\u3131-\u318e\uac00-\ud7a3]"),
}

# Words that end no English sentence. Case counts: an answer may well end in the label "A" or "OR".
DANGLING_WORDS = frozenset(
    (
        "a",
        "an",
        "and",
        "because",
        "but",
        "if",
        "into",
        "its",
        "my",
        "nor",
        "or",
        "our",
        "than",
        "the",
        "their",
        "whose",
        "your",
    )
)

PLACEHOLDER = re.compile(
    r"""
    \A\s*(?: nan | null | undefined | todo | tbd | lorem\ ipsum\b.* | \.{2,} | [-_]{2,} )\s*\Z  # nothing else but this
    | \A\s*<?https?://\S+>?\s*\Z                                                                  # a bare link
    | </?no(?:in|out)put>                                                                         # left by a generator
    | \[(?:insert|your|enter|add)\ [^\]\n]{1,40}\ here\]
    | <\|(?:endoftext|im_start|im_end|eot_id|start_header_id|end_header_id)\|>                    # control tokens
    """,
    re.IGNORECASE | re.VERBOSE | re.DOTALL,
)

# The head of another turn, as prompt templates of several families write it: the answer was not cut where it ended.
NEXT_TURN = re.compile(
    r"^[ \t]*(?:#{2,3} ?(?:instruction|input|response|human|user|assistant):|<\|(?:user|human|assistant|system)\|>)",
    re.IGNORECASE | re.MULTILINE,
)
ASKS_FOR_JSON = re.compile(
    r"\b(?:in|as|valid|return|output|respond\ with)\s+(?:an?\ )?(?:valid\ )?json\b", re.IGNORECASE
)
FENCE = re.compile(r"\A```(?:json)?\n(.*?)\n?```\Z", re.DOTALL)

_CANNOT = r"(?:can't|cannot|can\ not|won't|will\ not|am\ unable\ to|am\ not\ able\ to|'m\ unable\ to|'m\ not\ able\ to)"
REFUSAL = re.compile(
    rf"""
    \bas\ an?\ (?:ai|artificial\ intelligence)(?:\ (?:language\ )?(?:model|assistant|system|chatbot))?(?=[,.;:]|\ i\b)
    | \bas\ an?\ (?:large\ |ai\ )?language\ model\b
    | \bi(?:'m|\ am)\ (?:just|only|merely)\ an?\ (?:ai|(?:large\ )?language)\ (?:language\ )?(?:model|assistant)\b
    | \b(?:sorry|afraid|apologi[sz]e|apologies),?\ (?:but\ )?(?:that\ )?i\ ?(?:{_CANNOT}|don't\ have\ (?:the\ )?(?:ability|capability|access))
    | \bi(?:'m|\ am)\ unable\ to\b
    | \bi(?:\ must|'ll\ have\ to|\ have\ to)\ (?:decline|refuse)\b
    | \bi\ ?{_CANNOT}\ (?:assist|help|provide|comply|fulfill?|do\ that|answer\ th|engage|generate|create|write)
    | \u4f5c\u4e3a(?:\u4e00\u4e2a|\u4e00\u540d)?(?:AI|\u4eba\u5de5\u667a\u80fd|(?:\u5927\u578b)?\u8bed\u8a00\u6a21\u578b)  # as an AI, as a language model
    | (?:\u62b1\u6b49|\u5bf9\u4e0d\u8d77)[\uff0c,]?\s*(?:\u4f46)?\u6211(?:\u65e0\u6cd5|\u4e0d\u80fd)                  # sorry, (but) I cannot
    """,
    re.IGNORECASE | re.VERBOSE,
)
