"""Word lists of the demo instruction set. A word stands in one list only, so every word has one kind."""

from __future__ import annotations

NAMES = tuple(
    "Anna Ben Carla David Emma Felix Grace Hugo Iris Jonas Karin Leo Maria Nora Oscar Paula Rosa Simon Tara Victor".split()
)
CITIES = tuple(
    "Paris Oslo Rome Cairo Lima Delhi Tokyo Berlin Madrid Vienna Dublin Athens Lisbon Prague Warsaw Boston".split()
)
COLOURS = tuple("red blue green yellow black white brown purple orange pink".split())
DAYS = tuple("Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split())
ANIMALS = tuple("horse dog cat cow goat lion tiger bear rabbit fox wolf duck".split())
# Plurals in -s, -es and -ies.
OBJECTS = tuple(
    "lamp cup chair table book key ring clock mirror spoon basket bottle candle window guitar pencil "
    "box glass brush watch dress bench torch dish diary lorry".split()
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
PLACES = tuple("park market station school river beach museum garden bridge kitchen".split())

GOOD = tuple("wonderful great lovely excellent perfect charming brilliant delightful superb pleasant".split())
BAD = tuple("awful terrible horrible boring dreadful poor disappointing ugly annoying miserable".split())
REVIEWED = tuple("film hotel meal concert novel trip show room service song".split())

TOPICS = {
    "sport": tuple("goal team coach match referee stadium".split()),
    "food": tuple("bread soup cheese recipe butter salad".split()),
    "weather": tuple("storm rain snow wind cloud thunder".split()),
    "money": tuple("bank loan price tax salary invoice".split()),
}

RHYMES = (
    tuple("moon noon soon tune".split()),
    tuple("cake lake snake wake".split()),
    tuple("bell well shell smell".split()),
    tuple("light night kite bite".split()),
    tuple("tree sea knee tea".split()),
    tuple("house mouse blouse spouse".split()),
    tuple("coat boat note vote".split()),
    tuple("sand hand land band".split()),
)
