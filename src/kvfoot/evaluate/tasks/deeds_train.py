"""Training clauses around a verb: somebody does something with {k} and {v}, or {v} is what {t} is opened with.

Each clause comes with a question of its own, drawn apart. None has a mark at its end; wording_train.py adds it.
"""

from __future__ import annotations

from kvfoot.evaluate.tasks import phrases_train as phrases
from kvfoot.evaluate.tasks.draw import Draw


def _act(draw: Draw) -> tuple[str, str, str, str]:
    """Somebody, a verb, its past, and what it goes with."""
    base, past = draw.pick(phrases.ACT)
    if draw.chance(0.35):
        base = draw.verb()
        past = base if base.endswith("ed") else base + ("d" if base.endswith("e") else "ed")
    person = draw.pick(phrases.PERSON) if draw.chance(0.5) else f"{draw.pick(('the', 'a', 'our'))} {draw.noun()}"
    return person, base, past, draw.pick((*phrases.PREPOSITION[:14], "to", "to", "onto", "into", "after", "before"))


def deed(draw: Draw) -> str:
    """A clause with {k} and {v} in which somebody acts, or something is done."""
    person, _, past, preposition = _act(draw)
    thing = draw.pick(("{t}", "{t}", draw.noun()))
    article = draw.pick(("a", "the", "one", "another", "some"))
    carrier = draw.pick(phrases.CARRIER)
    text = draw.pick(
        (
            f"{person} {past} {{v}} {preposition} {{k}}",
            f"{person} {past} {{k}} {{v}}",
            f"{person} {past} {{k}} {article} {thing}, {{v}}",
            f"{person} {past} {article} {thing} {carrier} {{v}} {preposition} {{k}}",
            f"{article} {thing} {carrier} {{v}} was {past} {preposition} {{k}}",
            f"{article} {thing} {carrier} {{v}} came {preposition} {{k}}",
            f"{{v}} was {past} {preposition} {{k}} by {person}",
            f"{preposition} {{k}} {person} {past} {{v}}",
            f"as {person} came to {{k}}, {{v}} was {past}",
            f"while {person} had {{k}} before him, he {past} {{v}} {draw.pick(phrases.PREPOSITION)} {thing}",
            f"{{k}} got {article} {thing} from {person}: {{v}}",
        )
    )
    return text + draw.pick(phrases.MANNER)


def deed_ask(draw: Draw) -> str:
    """A whole question about {k} that asks what somebody did, or what was done."""
    person, base, past, preposition = _act(draw)
    thing = draw.pick(("{t}", "{t}", draw.noun()))
    return draw.pick(
        (
            f"what did {person} {base} {preposition} {{k}}",
            f"which {thing}s did {person} {base} {preposition} {{k}}",
            f"which {thing} was {past} {preposition} {{k}}",
            f"which {thing}s were {past} {preposition} {{k}}",
            f"what was {past} {preposition} {{k}} by {person}",
            f"what did {{k}} get from {person}",
            f"the {thing} that {person} {past} {preposition} {{k}}",
            f"{draw.pick(phrases.SAY)} {draw.pick(phrases.QUANTITY)}what {person} {past} {preposition} {{k}}",
            f"as {person} came to {{k}}, which {thing} was {past}",
            f"which {draw.pick(phrases.CARRIER)} {thing} did {{k}} get",
        )
    )


def purposes(draw: Draw, values: str = "number") -> tuple[str, str]:
    """A clause with {v} and a question without it, both around a verb: what {t} is opened, reached or woken with.

    values: kind of {v}, "number", "words" or "hex".
    """
    verb = draw.pick(phrases.PURPOSE)
    if draw.chance(0.25):
        word = draw.verb()
        verb = (word, f"{word}s")
    things = [draw.pick(("the {t}", "the {t}", "our {t}", "this {t}", "a {t}")) for _ in range(2)]
    marks = [
        {
            "w": verb[0], "ws": verb[1], "x": thing, "u": draw.pick(phrases.USE),
            "n": draw.pick(phrases.MADE_OF[values]), "v": "{v}",
        }
        for thing in things
    ]  # fmt: skip
    return (
        draw.pick(phrases.PURPOSES).format_map(marks[0]),
        draw.pick(phrases.PURPOSES_ASK).format_map(marks[1]),
    )
