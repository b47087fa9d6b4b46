"""Each rule: what it drops, what it keeps, what it says."""

from __future__ import annotations

import random
import time

import pytest

from sft_dist.core.errors import UserError
from sft_dist.core.records import Drop, Message, ToolCall, make_example, single_turn
from sft_dist.filters.language import Language
from sft_dist.filters.rules import (
    AnswerRepeatsPrompt,
    BrokenText,
    ControlCharacters,
    Format,
    Length,
    Placeholder,
    Refusal,
    Repetition,
    Script,
    TruncatedAnswer,
    longest_common,
)


def single(instruction="Do this, please.", output="Done.", given=""):
    return single_turn(task="t", source="s", instruction=instruction, input=given, output=output)


def chat(*turns, roles=("user", "assistant")):
    return make_example(
        task="t",
        source="s",
        messages=tuple(
            m if isinstance(m, Message) else Message(role=roles[i % 2], content=m)
            for i, m in enumerate(turns)
        ),
    )


def test_length():
    rule = Length(min_prompt_chars=5, min_answer_chars=2, max_chars=30)
    assert rule(single("12345", "ok")) is None
    assert rule(single("1234 ", "ok")) == Drop("prompt_too_short", "4 characters < 5")
    assert rule(single("12345", " o ")) == Drop("answer_too_short", "1 characters < 2")
    assert rule(single("12345", "x" * 26)) == Drop("too_many_chars", "31 characters > 30")
    assert rule(single("12345", "x" * 25)) is None
    assert Length(min_prompt_chars=0, min_answer_chars=0)(single("", "")) is None


def test_length_judges_every_trained_answer():
    rule = Length()
    assert rule(chat("a", "", "b", "c")).reason == "answer_too_short"
    assert rule(chat("a", Message(role="assistant", content="", weight=0.0), "b", "c")) is None
    call = Message(role="assistant", content="", tool_calls=(ToolCall(name="f", arguments="{}"),))
    assert rule(chat("a", call)) is None


def test_control_characters():
    rule = ControlCharacters()
    assert rule(single(output="tab\t line\r\n next\u0085 é 中")) is None
    assert rule(single(output="a\x00")) == Drop("control_characters", "U+0000 at character 2 of turn 2")
    for char in "\x07\x0b\x0c\x1b\x7f\x9d":
        assert rule(single(f"ab{char}")) == Drop(
            "control_characters", f"U+{ord(char):04X} at character 3 of turn 1"
        )


def test_broken_text():
    rule = BrokenText()
    for text in ("déjà vu", "Ã la carte", "50 € “quoted” – it’s", "São João"):
        assert rule(single(text)) is None
    for text in ("it’s", "“hi”", "déjà", "naïve"):
        broken = text.encode().decode("cp1252", errors="replace")
        assert rule(single(broken)).reason == "broken_text"
    assert rule(single(output="x\ufffd")) == Drop("broken_text", "'\ufffd' at character 2 of turn 2")


@pytest.mark.parametrize(
    "answer",
    [
        "nan",
        " NULL ",
        "...",
        "https://example.org/a?b",
        "Lorem ipsum dolor sit amet",
        "a <noinput> b",
        "Dear [insert name here],",
        "x<|im_end|>",
        "TODO",
    ],
)
def test_placeholder(answer):
    drop = Placeholder()(single(output=answer))
    assert drop.reason == "placeholder"
    assert answer.strip()[:5] in drop.detail


@pytest.mark.parametrize(
    "answer",
    ["None", "See https://example.org for more.", "[1, 2]", "N/A", "5", "Nan went home.", "-", "[Your Name]"],
)
def test_no_placeholder(answer):
    assert Placeholder()(single(output=answer)) is None


@pytest.mark.parametrize(
    "prompt, answer, reason",
    [
        ("Add.", "4\n\n### Instruction:\nSubtract.", "next_turn"),
        ("Add.", "4\n<|user|>\nAnd now?", "next_turn"),
        ("Write about dialogue.", "Human: hello\nUser: I say hello.", None),
        ("Explain Markdown.", "### Instructions for use\nNone.", None),
        ("Answer in JSON.", '{"a": 1', "broken_json"),
        ("Give me valid JSON.", "```json\n{'a': 1}\n```", "broken_json"),
        ("Answer in JSON.", "```json\n[1, 2]\n```", None),
        ("Answer in JSON.", "Here it is: {a}", None),
        ("Sort the list.", "['a', 'b']", None),
    ],
)
def test_format(prompt, answer, reason):
    drop = Format()(single(instruction=prompt, output=answer))
    assert (drop and drop.reason) == reason


def test_format_says_where():
    assert Format()(single(output="4\n\n### Input: 5")).detail == "'### Input:' at character 4"
    assert "line 1 column 8" in Format()(single(instruction="Answer as JSON.", output='{"a": 1')).detail


@pytest.mark.parametrize(
    "answer",
    [
        "As an AI language model, I do not have feelings.",
        "As an AI, I can't.",
        "I'm sorry, but I can't assist with that.",
        "I’m sorry, but as an AI, I don’t have the capability to order pizza.",
        "I am sorry but I cannot help you with this.",
        "Sorry, I'm not able to open links.",
        "Unfortunately I cannot provide medical advice.",
        "I must decline.",
        "作为一个人工智能语言模型，我没有感情。",
        "抱歉，我无法回答这个问题。",
    ],
)
def test_refusal(answer):
    assert Refusal()(single(output=answer)).reason == "refusal"


@pytest.mark.parametrize(
    "answer",
    [
        "She said she was sorry to hear it.",
        "As an AI researcher, she wrote many papers.",
        "I'm sorry, but to check the price I need the name of the shop.",
        "As an airline, we care.",
        "I can help you with that.",
        "The letter says: I cannot believe it!",
        "x" * 300 + " I'm sorry, but I can't assist with that.",
    ],
)
def test_no_refusal(answer):
    assert Refusal()(single(output=answer)) is None


def test_refusal_in_any_trained_turn():
    no = "I'm sorry, but I can't assist with that."
    assert Refusal()(chat("a", no, "b", "c")).reason == "refusal"
    assert Refusal()(chat("a", Message(role="assistant", content=no, weight=0.0), "b", "c")) is None


LONG = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"


@pytest.mark.parametrize(
    "answer, detail",
    [
        (LONG + ",", "ends in ','"),
        (LONG + " (", "ends in '('"),
        (LONG + " and the", "ends in the word 'the'"),
        ("```python\nprint(1)", "a code block is not closed"),
        ("小号的快速吐音等。音色非常重要，萨克斯、小号、", "ends in '、'"),
    ],
)
def test_truncated_answer(answer, detail):
    assert TruncatedAnswer()(single(output=answer)) == Drop("truncated_answer", detail)


@pytest.mark.parametrize(
    "answer", [LONG, LONG + " A", LONG + " it was for", "the", "a, b,", "```\nx\n```", "", LONG + ":"]
)
def test_whole_answers(answer):
    assert TruncatedAnswer()(single(output=answer)) is None


def test_script():
    rule = Script(allow=("Latin",), min_share=0.6, min_letters=10)
    assert rule(single("naïve café", "Übergrößenträger")) is None
    assert rule(single("Hello", "你好世界你好世界你好世界")) == Drop(
        "script", "5 of 17 letters are Latin: 0.29 < 0.6"
    )
    assert rule(single("Привет", "мир")) is None  # nine letters are too few to judge
    assert rule(single("12345", "67890 !!! ... ???")) is None
    assert Script(allow=("Latin", "Han"))(single("Hello", "你好世界你好世界你好世界你好世界")) is None
    assert Script(allow=("Cyrillic",))(single("Hello there", "my good friend")).reason == "script"
    samples = {
        "Cyrillic": "Съешь же ещё этих мягких французских булок",
        "Greek": "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία",
        "Arabic": "نص حكيم له سر قاطع وذو شأن عظيم",
        "Hebrew": "דג סקרן שט בים מאוכזב ולפתע מצא",
        "Devanagari": "ऋषियों को सताने वाले दुष्ट राक्षसों के राजा",
        "Thai": "เป็นมนุษย์สุดประเสริฐเลิศคุณค่า",
        "Hangul": "키스의 고유조건은 입술끼리 만나야 하고",
        "Kana": "いろはにほへとちりぬるをわかよたれそ",
        "Bengali": "আমার সোনার বাংলা আমি তোমায় ভালোবাসি",
        "Tamil": "தமிழ்த்தாய் வாழ்த்து நீராரும் கடலுடுத்த",
    }
    for script, text in samples.items():
        assert Script(allow=(script,), min_share=0.9)(single(text, text)) is None, script
        assert Script(allow=("Latin",))(single(text, text)).reason == "script", script


def test_repetition():
    rule = Repetition(ngram=2, max_share=0.5, min_words=8)
    assert rule(single(output="a b c d e f g h")) is None
    # nine 2-grams, of which "a b" and "b a" are distinct: seven repeat
    assert rule(single(output="a b a b a b a b a b")) == Drop(
        "repetition", "0.778 of 9 2-grams are repeats > 0.5"
    )
    assert rule(single(output="a b a b a b")) is None  # too short to judge
    assert rule(single(output="哈哈哈哈哈哈哈哈哈哈")).reason == "repetition"
    assert Repetition(ngram=4, max_share=0.5, min_words=1)(single(output="a b")) is None


def test_answer_repeats_prompt():
    rule = AnswerRepeatsPrompt(max_overlap=0.8, min_answer_chars=10)
    assert rule(single("Copy: the quick brown fox", "The quick\nbrown fox")) == Drop(
        "answer_repeats_prompt", "overlap 1.000 > 0.8"
    )
    assert rule(single("Copy: the quick brown fox", "the quick brown fox!!!")) == Drop(
        "answer_repeats_prompt", "overlap 0.864 > 0.8"
    )
    assert rule(single("Copy: the quick brown fox", "the quick red fox runs")) is None
    assert rule(single("yes or no", "yes")) is None
    whole = AnswerRepeatsPrompt(max_overlap=1.0, min_answer_chars=5)
    assert whole(single("say banana", "banana")).reason == "answer_repeats_prompt"
    assert whole(single("say banana", "bananas")) is None


def slow_longest_common(a, b):
    return max((n for i in range(len(a)) for n in range(1, len(a) - i + 1) if a[i : i + n] in b), default=0)


def test_longest_common_equals_the_obvious_search():
    rng = random.Random(0)
    for _ in range(300):
        a, b = ("".join(rng.choices("ab", k=rng.randint(1, 12))) for _ in range(2))
        expected = slow_longest_common(a, b)
        for more_than in (0.0, 1.5, 3.0, 0.9 * len(a)):
            assert longest_common(a, b, more_than=more_than) == (
                expected if expected > more_than or expected == len(a) else 0
            )


@pytest.mark.parametrize("overlap", [0.3, 0.95])
def test_answers_of_a_megabyte_take_seconds(overlap):
    """A search for each piece of such an answer took more than a minute."""
    rule = AnswerRepeatsPrompt(max_overlap=overlap)
    start = time.process_time()
    half = single("ab" * 250_000 + "ba" * 250_000, "ab" * 490_000)  # 0.51 of it
    assert bool(rule(half)) is (overlap == 0.3)
    assert rule(single("a" * 1_000_000, "a" * 999_000 + "b")).detail == f"overlap 1.000 > {overlap}"
    assert time.process_time() - start < 20


def test_control_characters_are_looked_for_in_everything_that_is_rendered():
    rule = ControlCharacters()
    thought = Message(role="assistant", content="4", reasoning_content="2+2\x00")
    call = Message(role="assistant", content="", tool_calls=(ToolCall(name="f", arguments='"a\x1bb"'),))
    assert rule(chat("q", thought)).detail == "U+0000 at character 4 of the reasoning of turn 2"
    assert rule(chat("q", call)).detail == "U+001B at character 3 of a call of turn 2"
    assert (
        BrokenText()(chat("q", Message(role="assistant", content="4", reasoning_content="\ufffd")))
        is not None
    )


GERMAN = "Die Hauptstadt von Frankreich ist Paris, und die Stadt liegt an der Seine im Norden des Landes."
ENGLISH = "The capital of France is Paris, and the city lies on the river Seine in the north of the country."


def test_language():
    rule = Language(allow=("en",))
    assert rule(single(ENGLISH, ENGLISH)) is None
    drop = rule(single(ENGLISH, GERMAN))
    assert drop.reason == "language"
    assert drop.detail.startswith("none of en with probability ")
    assert "(de " in drop.detail
    assert rule(single(GERMAN, ENGLISH)).reason == "language"
    assert Language(allow=("en", "de"))(single(GERMAN, ENGLISH)) is None
    assert rule(single(ENGLISH, "Guten Morgen!")) is None  # too short to tell
    assert (
        Language(allow=("en",), min_letters=5)(single(ENGLISH, "Das ist aber nicht gut!")).reason
        == "language"
    )
    code = "def add(x, y):\n    return [a + b for a, b in zip(x, y, strict=True)]"
    assert rule(single(ENGLISH, code)) is None  # in no language for sure


@pytest.mark.parametrize(
    "text",
    [
        "Ovo je kratki tekst na hrvatskom jeziku koji govori o vremenu i moru u Dalmaciji.",
        "Ini adalah kalimat dalam bahasa Indonesia tentang cuaca dan makanan di kota besar.",
        "Dette er en norsk setning om v\u00e6ret og maten i en stor by ved havet.",
        "\u82f9\u679c\u662f\u4e00\u79cd\u7ea2\u8272\u6c34\u679c\u3002",  # nine Chinese words, which zh and wuu share
    ],
)
def test_close_languages_share_a_text_and_none_of_them_is_allowed(text):
    assert Language(allow=("en",))(single(ENGLISH, text)).reason == "language"
    assert (
        Language(allow=("en", "hr", "bs", "sr", "id", "ms", "no", "da", "zh", "wuu", "yue"))(
            single(ENGLISH, text)
        )
        is None
    )


def test_a_language_that_cannot_be_told_is_refused():
    with pytest.raises(UserError, match="'english', which is no language that can be told apart"):
        Language(allow=("english",))
