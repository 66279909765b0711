"""The training side's wording: every document gets a phrasing composed of phrases_train and of fragments of books.

With fixed templates a model learns the templates: held-out wording got worse while training went on, and most misses
of the first release were misreadings (docs/decisions/0020). So a list holds words and not sentences, a family has
thousands of forms, item and question are drawn apart, and often the key is all that they share.
"""

from __future__ import annotations

from kvfoot.evaluate.tasks import phrases_train as phrases
from kvfoot.evaluate.tasks import records_train as records
from kvfoot.evaluate.tasks.deeds_train import deed, deed_ask, purposes
from kvfoot.evaluate.tasks.draw import Draw
from kvfoot.evaluate.tasks.wording import Assignments, Listing, Lookup, Markup

WRAPS = ('"{k}"', "'{k}'", "[{k}]", "*{k}*", "<{k}>", "_{k}_", "({k})", "#{k}")


def maybe(draw: Draw, probability: float, text: str) -> str:
    return text if draw.chance(probability) else ""


def capital(text: str) -> str:
    """The first letter large; entities stay as they are."""
    return text[:1].upper() + text[1:] if text[:1].islower() else text


def sentence(draw: Draw, before: str, core: str, after: str) -> str:
    """`before core after`, with a capital where a sentence begins, now and then in another case."""
    text = f"{before} {core}" if before else core
    if draw.chance(0.85) and (not before or before[-1] in ".!?"):
        text = f"{before} {capital(core)}" if before else capital(core)
    return text + after


def opening(draw: Draw) -> str:
    """What stands before a statement: nothing, a word of introduction, a speaker, or a fragment of a book."""
    kind = draw.rng.random()
    if kind < 0.4:
        return ""
    if kind < 0.65:
        return draw.pick(phrases.OPENING)
    if kind < 0.8:
        return capital(f"{draw.pick(phrases.PERSON)} {draw.pick(phrases.SAID)}")
    return draw.fragment() + draw.pick(("", "", ",", ":", ".", ";"))


def closing(draw: Draw) -> str:
    if draw.chance(0.75):
        return draw.pick(phrases.CLOSING)
    return draw.pick((" ", ", ", ". ", "; ")) + draw.fragment() + draw.pick((".", ".", ""))


def _verb(draw: Draw, verbs: tuple[str, ...]) -> str:
    """One of the verbs, a word of the lists as a verb, or a fragment."""
    kind = draw.rng.random()
    if kind < 0.7:
        return draw.pick(verbs)
    return f"{draw.word()}s" if kind < 0.8 else draw.fragment(1, 4)


def _titled(draw: Draw, weight: float = 0.75) -> str:
    """`the {t} ` with another article, or nothing."""
    return maybe(
        draw, weight, draw.pick(("the ", "the ", "a ", "one ", "its ", "", "that ", "this ", "some ")) + "{t} "
    )


def statement(draw: Draw) -> str:
    """A clause with {k} and {v}, and mostly {t}. In about a third of them the value comes first."""
    if draw.chance(0.2):
        return deed(draw)
    kind = draw.rng.random()
    preposition = draw.pick(phrases.PREPOSITION)
    if kind < 0.24:
        return f"{_titled(draw, 0.9) or 'what stands '}{preposition} {{k}} {_verb(draw, phrases.IS)} {{v}}"
    if kind < 0.42:
        return f"{{k}} {_verb(draw, phrases.HAS)} {_titled(draw, 0.6)}{{v}}"
    if kind < 0.5:
        before = draw.pick(("for", "with", "at", "beside", "as for", "under"))
        return f"{before} {{k}}, {_titled(draw)}{_verb(draw, phrases.IS)} {{v}}"
    if kind < 0.6:
        return f"{{v}} {_verb(draw, phrases.IS)} {_titled(draw)}{preposition} {{k}}"
    if kind < 0.68:
        return f"{_titled(draw, 0.6)}{{v}} {_verb(draw, phrases.BELONGS)} {{k}}"
    if kind < 0.8:
        return draw.pick(phrases.SYMBOL)
    middle = draw.fragment(1, 5) + draw.pick(("", "", "", ":", ",", " is", " =", " has"))
    body = f"{{k}} {middle} {{v}}" if draw.chance(0.6) else f"{{v}} {middle} {{k}}"
    return draw.pick(("", "", "{t} ", "the {t} ", "{t} of ", "for ")) + body


def item(draw: Draw) -> str:
    """A statement between book sentences: ` Opening: the {t} of {k} is {v}.`"""
    return " " + sentence(draw, opening(draw), statement(draw), closing(draw))


def clause(draw: Draw, core: str) -> str:
    """A question or a request around a noun phrase, with its beginning and its end; it may also be cut from books.

    No entity begins it, so that each keeps its leading space.
    """
    kind = draw.rng.random()
    before = draw.pick(phrases.ASK_OPENING) if draw.chance(0.4) else ""
    if draw.chance(0.1):
        before = draw.fragment(2, 8) + draw.pick((".", ",", ":", "?"))
    if kind < 0.3:
        body = f"{draw.pick(phrases.WHAT)} {core}"
    elif kind < 0.6:
        body = f"{draw.pick(phrases.SAY)} {core}"
    elif kind < 0.75:
        body = core + draw.pick(("", "", " is", " was", " reads", " --"))
    else:
        body = draw.fragment() + " " + core + maybe(draw, 0.6, " " + draw.fragment())
    after = draw.pick(phrases.ASK_CLOSING)
    if draw.chance(0.12):
        after = " " + draw.fragment() + draw.pick(("?", ".", ":", ""))
    text = sentence(draw, before, body, after)
    return f"{draw.pick(('Now', 'And', 'Then', 'So', 'Here:'))} {text}" if text.startswith("{") else text


def question(draw: Draw, text: str) -> str:
    """A whole question with what may stand before it, and its mark."""
    before = draw.pick(phrases.ASK_OPENING) if draw.chance(0.4) else ""
    return sentence(draw, before, text, draw.pick(phrases.ASK_CLOSING))


def ask(draw: Draw, titled: float = 0.7) -> str:
    """A question about {k}."""
    if draw.chance(0.2):
        return question(draw, deed_ask(draw))
    kind = draw.rng.random()
    title = maybe(draw, titled, draw.pick(("the ", "the ", "", "that ")) + "{t}" + draw.pick(("", "", "", "s")))
    quantity = draw.pick(phrases.QUANTITY)
    preposition = draw.pick(phrases.PREPOSITION)
    if kind < 0.5:
        core = f"{quantity}{title} {preposition} {{k}}" if title else f"{quantity}what stands {preposition} {{k}}"
    elif kind < 0.65:
        core = f"which {quantity}{title.removeprefix('the ')} {draw.pick(phrases.HAVE_ASK)} {{k}}"
    elif kind < 0.75:
        core = f"{draw.pick(('for', 'about', 'take', 'under', 'as to', 'see', 'now'))} {{k}}, {quantity}{title}"
    elif kind < 0.85:
        core = f"{quantity}{title} {{k}}"
    else:
        core = f"{draw.fragment(1, 4)} {quantity}{{k}} {title}"
    return clause(draw, " ".join(core.split()))


class TrainWording:
    """See `Wording`. Half of the questions have the same title as the items; the others none, or another one."""

    def title(self, draw: Draw) -> str:
        kind = draw.rng.random()
        words = []
        if 0.3 <= kind < 0.65:
            words.append(draw.pick(phrases.TITLE_ADJECTIVE))
        if kind >= 0.55:
            words.append(draw.adjective())
        words.append(draw.pick(phrases.TITLE) if draw.chance(0.7) else draw.noun())
        return " ".join(words)

    def passkey_title(self, draw: Draw) -> str:
        first = draw.pick(phrases.TITLE_ADJECTIVE) if draw.chance(0.5) else draw.adjective()
        if draw.chance(0.15):
            first = draw.noun()
        return f"{first} {draw.pick(phrases.TITLE) if draw.chance(0.6) else draw.noun()}"

    def _other(self, draw: Draw, text: str) -> str:
        """Now and then the question calls the thing by another name: only the key decides."""
        return text.replace("{t}", draw.pick(phrases.TITLE)) if draw.chance(0.25) else text

    def needle(self, draw: Draw) -> Lookup:
        found = self.multi_query(draw)
        if draw.chance(0.15):
            wrap = draw.pick(WRAPS)
            found = Lookup(*(text.replace("{k}", wrap) for text in found))
        return found

    def passkey(self, draw: Draw, several: bool = False, values: str = "number") -> Lookup:
        """{t} names the thing. A single one (`several` false) may be asked for by another name, or by none."""
        name = draw.pick(("the {t}", "the {t}", "our {t}", "a {t}", "this {t}", "my {t}"))
        again = [f"{{v}} is {name}", f"{name} is {{v}}"]
        body = statement(draw).replace("{t}", draw.pick(phrases.TITLE)).replace("{k}", name)
        verbal, wanted = draw.chance(0.4), ""
        if verbal:
            body, wanted = purposes(draw, values)
            again = [body]
        elif draw.chance(0.5):
            body = draw.pick((f"{name} {_verb(draw, phrases.IS)} {{v}}", f"{{v}} {_verb(draw, phrases.IS)} {name}"))
        text = " " + sentence(draw, opening(draw), body, closing(draw))
        if draw.chance(0.35):  # said twice
            twice = draw.pick((*again, "Again: {v}", "It is {v}", "I repeat: {v}", "Yes, {v}"))
            text += " " + capital(twice) + draw.pick((".", ".", "!", ", mind you."))
        if not several and draw.chance(0.25 if verbal else 0.08):  # another verb: there is one number only
            wanted = purposes(draw, values)[1]
        if wanted and draw.chance(0.8):
            asked = question(draw, wanted)
        else:
            asked = ask(draw, 0.3).replace("{t}", draw.pick(phrases.TITLE))
            asked = asked.replace("{k}", "{t}" if draw.chance(0.4) else "the {t}")
        if not several and draw.chance(0.35):
            asked = asked.replace("{t}", draw.pick((self.passkey_title(draw), draw.pick(phrases.TITLE))))
        return Lookup(text, asked)

    def multi_value(self, draw: Draw) -> Lookup:
        return self.needle(draw)

    def multi_query(self, draw: Draw) -> Lookup:
        return Lookup(item(draw), self._other(draw, ask(draw)))

    def json(self, draw: Draw) -> Lookup:
        core = draw.pick(phrases.JSON_CORE).replace("{k}", '"{k}"')
        return Lookup(draw.pick(phrases.JSON_HEAD), clause(draw, core))

    def chain(self, draw: Draw) -> Listing:
        label = ""
        if draw.chance(0.75):
            words = [draw.word().capitalize() if draw.chance(0.6) else draw.word() for _ in range(draw.between(1, 3))]
            label = " ".join(words) + draw.pick((": ", " ", " = ", " is ", ", ", " - ", ":", " > "))
        core = draw.pick(phrases.CHAIN_CORE)
        if draw.chance(0.35):
            core = (
                f"{draw.pick(phrases.SAY)} {{n}} {draw.pick(('keys', 'pairs', 'items', 'entries'))} {draw.fragment()}."
            )
        core = sentence(draw, draw.pick(phrases.ASK_OPENING) if draw.chance(0.4) else "", core, "")
        start = draw.pick(phrases.CHAIN_START)
        if draw.chance(0.5):
            start = f'{draw.fragment()} "{{s}}" {draw.fragment(1, 3)}'
        parts = [core, start]
        # always: an end that only counting can find teaches to end anywhere
        parts.append(draw.pick(phrases.CHAIN_END) if draw.chance(0.5) else f'{draw.fragment(1, 4)} "{{e}}".')
        if draw.chance(0.2):
            parts = parts[1:]
        elif draw.chance(0.4):
            parts = [*parts[1:], parts[0]]
        return Listing(draw.pick(phrases.CHAIN_HEAD), label, " ".join(parts))

    def path(self, draw: Draw) -> Lookup:
        return Lookup(records.road(draw), clause(draw, records.trip(draw)))

    def variables(self, draw: Draw) -> Assignments:
        base, hop = records.assignment(draw)
        return Assignments(base, hop, clause(draw, records.holders(draw)))

    def labels(self, draw: Draw) -> str:
        return records.label(draw)

    def quote(self, draw: Draw) -> str:
        return draw.pick(phrases.QUOTE) if draw.chance(0.5) else clause(draw, draw.fragment(1, 3)).rstrip(".?") + ":"

    def markup(self, draw: Draw, columns: list[str]) -> Markup:
        return records.markup(draw, columns)

    def table(self, draw: Draw) -> str:
        return clause(draw, records.columns(draw))
