"""An instruction -> its root verb and the noun of it, by rule, without a parser.

The root verb is the first word of the instruction that is a known imperative and begins
a sentence or clause, or follows a word such as "to", "and", "please" or "should"; its noun is the last word before the next preposition,
conjunction or punctuation mark, singular. "Given a text, write three short questions about it" gives (write, question).
"""

# ruff: noqa: SIM905  lists of words read best as text

from __future__ import annotations

import re
from collections.abc import Sequence

SCANNED_WORDS = 60  # of an instruction in which a root verb is looked for
OBJECT_WORDS = 6  # after the verb in which its noun is looked for

_TOKEN = re.compile(r"[A-Za-z][A-Za-z0-9'\u2019+#-]*|\d+|[^\w\s]|\n")

VERBS = frozenset(
    """
    add advise analyse analyze annotate answer arrange ask assess assign brainstorm break build calculate categorise
    categorize change characterise characterize check choose cite clarify classify collect come combine comment compare
    complete compose compress compute conclude conduct consider construct continue contrast convert copy correct count
    craft create criticize critique debate debug decide decode define delete demonstrate derive describe design detect
    determine develop devise differentiate diagnose discuss distinguish divide draft draw edit elaborate eliminate
    employ encode estimate evaluate examine exchange expand explain express extend extract factor fill find fix follow
    form format formulate gather generate give group guess help highlight identify illustrate imagine implement improve
    indicate infer insert interpret introduce invent judge justify label list locate look make map match measure mention
    merge modify name normalize offer order organise organize outline output paraphrase parse perform pick place plan
    play point predict prepare present print produce prompt pronounce proofread propose prove provide put quote rank rate
    read rearrange reason recall recite recognise recognize recommend record rectify reduce refer reformat reformulate
    remove reorder reorganise reorganize repeat rephrase replace reply report represent research resolve respond restate
    return reverse review revise reword rewrite rhyme round sample say score search segment select separate share
    shorten show simplify simulate sketch solve sort speculate spell split state structure substitute suggest summarise
    summarize supply suppose take talk teach tell test think transcribe transform translate turn type understand unscramble
    update use utilize validate verify visualize write
    """.split()
)
_VERB_AFTER = frozenset(
    "to and then please must should can could would will shall you not also or now never always first finally ll i'd".split()
)
_SKIPPED = frozenset(
    "me us him her them it you a an the this that these those my your his its our their all any some each".split()
)
_ENDS = frozenset(
    "of in on at by for from with without about into onto over under between among as to that which who whom whose what "
    "when where why how if whether and or but so because than then using based given while until after before within "
    "through during against per via is are was were be been has have had can could should would will must do does did not "
    "out up down off you i we they it please such like".split()
)


def verb_and_noun(instruction: str) -> tuple[str, str] | None:
    """Return the root verb of an instruction and its noun ("" when it has none), None without a known verb."""
    tokens = [t.lower() for t in _TOKEN.findall(instruction[: 16 * SCANNED_WORDS])[:SCANNED_WORDS]]
    for at, token in enumerate(tokens):
        before = tokens[at - 1] if at else "\n"
        if token in VERBS and (before in _VERB_AFTER or not before[-1].isalnum()):
            return token, _noun(tokens[at + 1 : at + 1 + OBJECT_WORDS])
    return None


def _noun(tokens: Sequence[str]) -> str:
    """Return the head of the noun phrase that the tokens begin with: its last word, singular."""
    head = ""
    for token in tokens:
        if token in _ENDS or not (token[0].isalpha() or token.isdigit()):
            if head or token not in ('"', "'"):
                break
            continue
        if token not in _SKIPPED and token[0].isalpha():
            head = token
    return singular(head)


def singular(word: str) -> str:
    """Return a noun without the ending of its plural: "stories" -> "story", "boxes" -> "box", "glass" stays."""
    for ending, instead in (("ies", "y"), ("sses", "ss"), ("xes", "x"), ("ches", "ch"), ("shes", "sh")):
        if word.endswith(ending) and len(word) > len(ending) + 1:
            return word[: -len(ending)] + instead
    if word.endswith("s") and not word.endswith(("ss", "us", "is", "'s")) and len(word) > 3:
        return word[:-1]
    return word
