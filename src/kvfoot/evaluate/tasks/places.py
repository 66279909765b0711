"""Made-up town names, one maker a side, from syllables that no other side uses as a whole name."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import NamedTuple

from kvfoot.evaluate.tasks.split import Side


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


TRAIN_HEADS = _words(
    "Al Ar Bar Bel Ber Bran Bre Cal Car Cor Dal Dar Del Dor El Fal Fen Gar Gil Gran Hal Har Hol Il Jor Kal Kel "
    "Kin Lan Lor Mal Mar Mel Mor Nor Or Pel Pen Quar Ral Ren Ros Sal Sel Stan Tal Tar Ten Tor Ul Val Ver Vin Wal "
    "Wel Wil Yar Zan Ash Brook Cliff Dun Ever Fox Glen Hart Iron Kings Long Moor Oak Raven Stone Thorn Wood"
)
TRAIN_JOINTS = _words("a an ar e en er i in ing is o on or u un um")
TRAIN_TAILS = _words(
    "bach berg bourne burg bury by cester dale den don field ford gate ham haven heim holm hurst land ley lin "
    "loch mar mere mont more mouth nau ney nitz port quay ridge ros sand set shire ster stow tal ton vale ville "
    "wald wick worth zell"
)
TRAIN_BEFORE = _words("North South East West New Old Upper Lower Saint Port Fort Great Little Mount Lake Castle")
TRAIN_AFTER = _words(
    "Springs Falls City Bay Hills Park Heights Beach Rapids Junction Point Harbour Grove Vale Cross Mills Bridge Wells"
)
TRAIN_LINKS = _words("in on upon of le de sur under am di")

DEV_HEADS = _words("Aal Bjor Dro Eske Fred Gis Hjel Horn Kal Kris Lil Nak Od Ring Sil Skan Sor Svend Tro Vej Vord Aars")
DEV_TAILS = _words(
    "bro borg by dal ense ev foss fjord gard havn ik ing lev lund nes rup skog sted strand sund tved vig"
)
DEV2_HEADS = _words(
    "Ace Bra Civi Cre Fi Fossa Ga Gros La Livo Mate Mode Orvi Pado Pesa Ra Rieti So Tera Tri Ur Vare Ve"
)
DEV2_TAILS = _words(
    "dello fara gnano lana lerno lucca miglia mona nara nezza nova pavia rento sano sesto taro vena zzola"
)
DEV3_HEADS = _words(
    "Aga Bako Chi Dze Epo Gwe Imba Kago Kwa Lusi Mba Ngo Nyu Oga Rusa Sefi Tembo Uda Wiki Yao Zuma Itza Quetz Xala"
)
DEV3_TAILS = _words(
    "banga bweni dalla desi fwe gali huru kasu kondo langa lulu masi mbezi nkwe rani sekou tuka vembe wela zimu"
)
TEST_HEADS = _words(
    "Ametza Berro Caldu Denea Egui Fraxe Gorri Huesca Iturra Jauri Kemena Llora Mendi Nava Oiar Penya Quinta Ribera "
    "Segui Txaba Urkia Vilo Wamba Xerta Yebra Zumai"
)
TEST_TAILS = _words(
    "alde bide cerro dorra erreka fria gain harri illo jona koa larra mira nuela oste puig querol roca solana tegui "
    "ubide vella xe zabal"
)
TEST_BEFORE = _words("Santa Monte Torre Casa Playa")


class Grammar(NamedTuple):
    """A name is a head and one or two tails; where there is a `before`, one name in seven has a second word."""

    heads: tuple[str, ...]
    tails: tuple[str, ...]
    before: tuple[str, ...] = ()


HELD_OUT: dict[Side, Grammar] = {
    "dev": Grammar(DEV_HEADS, DEV_TAILS),
    "dev2": Grammar(DEV2_HEADS, DEV2_TAILS),
    "dev3": Grammar(DEV3_HEADS, DEV3_TAILS),
    "test": Grammar(TEST_HEADS, TEST_TAILS, TEST_BEFORE),
}

_FROM_TRAIN = re.compile(f"(?:{'|'.join(TRAIN_HEADS)})(?:{'|'.join(TRAIN_JOINTS)})?(?:{'|'.join(TRAIN_TAILS)})")
_HELD_OUT = re.compile(
    "|".join(
        "|".join((f"(?:{'|'.join(side.heads)})(?:{'|'.join(side.tails)}){{1,2}}", *side.before))
        for side in HELD_OUT.values()
    )
)
_CONSONANTS = _words("b c d f g h j k l m n p r s t v w z br ch cr dr fl gr kl pr sh sk st th tr")
_VOWELS = _words("a e i o u ai au ea ie oa ou")


_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def syllables(rng: random.Random) -> str:
    """Two to four syllables of no language: keeps training from learning the two fixed grammars by heart.

    Two in five begin with any of the 26 letters, every other one of them followed by any letter again: a beginning is
    then to be copied and not to be guessed.
    """
    count = rng.randint(2, 4)
    text = "".join(rng.choice(_CONSONANTS) + rng.choice(_VOWELS) for _ in range(count))
    kind = rng.random()
    if kind < 0.4:
        text = rng.choice(_LETTERS) + (rng.choice(_LETTERS) if kind < 0.2 else "") + text.lstrip("bcdfghjklmnprstvwz")
    return (text + (rng.choice("lmnrst") if rng.random() < 0.5 else "")).capitalize()


Maker = Callable[[random.Random], str]


def alike(rng: random.Random) -> Maker:
    """A maker of training towns that share beginnings and ends: the goal of a route is told by its whole name only."""
    heads = [rng.choice((rng.choice(TRAIN_HEADS), syllables(rng)[:5])) for _ in range(rng.randint(7, 24))]
    tails = [rng.choice((*TRAIN_TAILS, *(word.lower() for word in TRAIN_HEADS))) for _ in range(rng.randint(7, 24))]

    def make(rng: random.Random) -> str:
        middle = rng.choice(tails) if rng.random() < 0.35 else ""
        name = rng.choice(heads) + middle + rng.choice(tails)
        if rng.random() < 0.1:
            name = f"{rng.choice(TRAIN_BEFORE)} {name}" if rng.random() < 0.5 else f"{name} {rng.choice(TRAIN_AFTER)}"
        return make(rng) if any(_HELD_OUT.fullmatch(word) for word in name.split()) else name

    return make


def twin(rng: random.Random, name: str) -> str:
    """A training town that shares its beginning or its end with `name`: what a route must not take for its goal."""
    for _ in range(20):
        word, *rest = name.split(" ")
        kind = rng.random()
        if kind < 0.3 and rest:
            made = rng.choice((word, " ".join(rest), f"{word} {rng.choice(TRAIN_AFTER)}"))
        elif kind < 0.45:
            made = f"{name} {rng.choice(TRAIN_AFTER)}"
        elif kind < 0.6:
            made = f"{rng.choice(TRAIN_BEFORE)} {name}"
        elif kind < 0.8:  # the same beginning
            made = " ".join([word[: max(2, len(word) // 2)] + rng.choice(TRAIN_TAILS), *rest])
        else:  # the same end
            end = word[len(word) // 2 :]
            made = " ".join([rng.choice((rng.choice(TRAIN_HEADS), syllables(rng)[:4])) + end, *rest])
        if made != name and made[0].isupper() and not any(_HELD_OUT.fullmatch(part) for part in made.split()):
            return made
    return f"{rng.choice(TRAIN_BEFORE)} {name}"


def _train(rng: random.Random) -> str:
    if rng.random() < 0.3:
        base = syllables(rng)
    else:
        joint = rng.choice(TRAIN_JOINTS) if rng.random() < 0.6 else ""
        base = rng.choice(TRAIN_HEADS) + joint + rng.choice(TRAIN_TAILS)
    kind = rng.random()
    if kind < 0.15:
        return f"{rng.choice(TRAIN_BEFORE)} {base}"
    if kind < 0.30:
        return f"{base} {rng.choice(TRAIN_AFTER)}"
    if kind < 0.36:
        return f"{base} {rng.choice(TRAIN_LINKS)} {_train(rng)}"
    return base


def trainable(name: str) -> bool:
    """Whether the training side's syllables could spell a word of `name`."""
    return any(_FROM_TRAIN.fullmatch(word) for word in name.split())


def made_up(rng: random.Random, side: Side) -> str:
    """A town name of `side`."""
    if side == "train":
        name = _train(rng)
        return made_up(rng, side) if any(_HELD_OUT.fullmatch(word) for word in name.split()) else name
    heads, tails, before = HELD_OUT[side]
    middle = rng.choice(tails) if rng.random() < 0.3 else ""
    name = rng.choice(heads) + middle + rng.choice(tails)
    if before and rng.random() < 1 / 7:
        name = f"{rng.choice(before)} {name}"
    return made_up(rng, side) if trainable(name) else name
