"""Word lists of the demo instruction set. A word stands in one list only, so every word has one kind."""

from __future__ import annotations


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NAMES = _words(
    "Anna Ben Carla David Emma Felix Grace Hugo Iris Jonas Karin Leo Maria Nora Oscar Paula Rosa Simon Tara Victor"
)
CITIES = _words(
    "Paris Oslo Rome Cairo Lima Delhi Tokyo Berlin Madrid Vienna Dublin Athens Lisbon Prague Warsaw Boston"
)
COLOURS = _words("red blue green yellow black white brown purple orange pink")
DAYS = _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
ANIMALS = _words("horse dog cat cow goat lion tiger bear rabbit fox wolf duck")
# Plurals in -s, -es and -ies.
OBJECTS = _words(
    "lamp cup chair table book key ring clock mirror spoon basket bottle candle window guitar pencil "
    "box glass brush watch dress bench torch dish diary lorry"
)

OPPOSITES = {
    "hot": "cold",
    "big": "small",
    "old": "new",
    "slow": "fast",
    "wet": "dry",
    "cheap": "expensive",
    "clean": "dirty",
    "empty": "full",
    "open": "closed",
    "quiet": "loud",
    "long": "short",
    "thick": "thin",
}
ADJECTIVES = tuple(OPPOSITES) + tuple(OPPOSITES.values())

# Base form to past tense: -ed, -d after e, -ied after a consonant and y.
VERBS = {
    "walk": "walked",
    "jump": "jumped",
    "talk": "talked",
    "wait": "waited",
    "look": "looked",
    "work": "worked",
    "dance": "danced",
    "smile": "smiled",
    "move": "moved",
    "hurry": "hurried",
    "cry": "cried",
    "study": "studied",
}
PLACES = _words("park market station school river beach museum garden bridge kitchen")

GOOD = _words("wonderful great lovely excellent perfect charming brilliant delightful superb pleasant")
BAD = _words("awful terrible horrible boring dreadful poor disappointing ugly annoying miserable")
REVIEWED = _words("film hotel meal concert novel trip show room service song")

TOPICS = {
    "sport": _words("goal team coach match referee stadium"),
    "food": _words("bread soup cheese recipe butter salad"),
    "weather": _words("storm rain snow wind cloud thunder"),
    "money": _words("bank loan price tax salary invoice"),
}

RHYMES = (
    _words("moon noon soon tune"),
    _words("cake lake snake wake"),
    _words("bell well shell smell"),
    _words("light night kite bite"),
    _words("tree sea knee tea"),
    _words("house mouse blouse spouse"),
    _words("coat boat note vote"),
    _words("sand hand land band"),
)
