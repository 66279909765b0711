"""The training side's wording: templates combined from phrases_train, or *carriers* cut from books.

With fixed templates a model learns the templates: held-out questions got worse while training went on (docs/recall.md).
In a carrier the key is the only thing that an item and its question share, so that is what the model must use.
"""

from __future__ import annotations

from kvfoot.evaluate.tasks import phrases_train as phrases
from kvfoot.evaluate.tasks.draw import Draw
from kvfoot.evaluate.tasks.wording import Assignments, Listing, Lookup, Markup

TRAVEL = {"go": "go", "travel": "travel", "get": "get", "ride": "ride"}
TAGS = ["td", "li", "span", "p", "div", "i", "em", "h3", "a", "dd", "dt", "section"]


def _maybe(draw: Draw, probability: float, text: str) -> str:
    return text if draw.chance(probability) else ""


def _capital(core: str, before: str) -> str:
    starts = not before or before.endswith(". ")
    return core[0].upper() + core[1:] if starts and core[0] != "{" else core


def question(draw: Draw, cores: tuple[str, ...]) -> str:
    """A beginning, a core and an ending."""
    core, before = draw.pick(cores), draw.pick(phrases.ASK_BEFORE)
    closed = core[-1] in ".?:=>" or core.endswith(("value", "is", "holds", "by"))
    return before + _capital(core, before) + ("" if closed else draw.pick(phrases.ASK_AFTER))


def carrier_ask(draw: Draw, key: str) -> str:
    """A question of book fragments around `key`."""
    before = _maybe(draw, 0.7, draw.fragment() + " ")
    noun = draw.pick(("the {t} ", "{t} ", "{t}s ", "", ""))
    link = draw.pick(("for ", "of ", "", "", "with "))
    after = _maybe(draw, 0.6, " " + draw.fragment())
    return before + noun + link + key + after + draw.pick(("?", "?", ".", ":", "", " is"))


def carrier(draw: Draw) -> Lookup:
    """An item and a question of book fragments; one in five states the value before the key."""
    middle = draw.pick((":", " is", " is:", " =", " has", ","))
    if draw.chance(0.8):
        middle = " " + draw.fragment(1, 5) + draw.pick(("", "", ":", ",", " is", " is:", " ="))
    before = _maybe(draw, 0.6, draw.fragment() + " ")
    start = " " + before + draw.pick(("{t} ", "{t}s ", "", "")) + draw.pick(("for ", "of ", "", "", "with "))
    body = "{k}" + middle + " {v}" if draw.chance(0.7) else "{v}" + middle + " {k}"
    after = _maybe(draw, 0.4, " " + draw.fragment()) + draw.pick((".", ".", ".", "!", ";", ""))
    return Lookup(start + body + after, carrier_ask(draw, "{k}"))


class TrainWording:
    """See `Wording`. Roughly half of the lookups use carriers."""

    def title(self, draw: Draw) -> str:
        kind = draw.rng.random()
        adjectives: list[str] = []
        if 0.3 <= kind < 0.65 or kind >= 0.85:
            adjectives.append(draw.pick(phrases.TITLE_ADJECTIVE))
        if kind >= 0.65:
            adjectives.append(draw.adjective())
        return " ".join([*adjectives, draw.pick(phrases.TITLE)])

    def passkey_title(self, draw: Draw) -> str:
        first = draw.pick(phrases.TITLE_ADJECTIVE) if draw.chance(0.5) else draw.adjective()
        return f"{first} {draw.pick(phrases.TITLE) if draw.chance(0.7) else draw.noun()}"

    def needle(self, draw: Draw) -> Lookup:
        if draw.chance(0.55):
            return carrier(draw)
        core, before = draw.pick(phrases.ITEM_CORE), draw.pick(phrases.ITEM_BEFORE)
        item = " " + before + _capital(core, before) + draw.pick(phrases.ITEM_AFTER)
        return Lookup(item, question(draw, phrases.ASK_CORE))

    def passkey(self, draw: Draw) -> Lookup:
        if draw.chance(0.65):
            item, ask = carrier(draw)
            return Lookup(item.replace("{t} ", "").replace("{k}", "the {t}"), ask.replace("{k}", "the {t}"))
        return Lookup(draw.pick(phrases.PASSKEY_ITEM), draw.pick(phrases.PASSKEY_ASK))

    def _several(self, draw: Draw, cores: tuple[str, ...]) -> Lookup:
        item = self.needle(draw).item
        if draw.chance(0.45):
            every = draw.pick(("every ", "all ", "", ""))
            return Lookup(item, carrier_ask(draw, every + "{k}"))
        return Lookup(item, question(draw, cores))

    def multi_value(self, draw: Draw) -> Lookup:
        return self._several(draw, phrases.MULTI_CORE)

    def multi_query(self, draw: Draw) -> Lookup:
        return self._several(draw, phrases.QUERY_CORE)

    def json(self, draw: Draw) -> Lookup:
        ask = f'{draw.fragment()} "{{k}}" {draw.fragment()}' if draw.chance(0.4) else question(draw, phrases.JSON_CORE)
        return Lookup(draw.pick(phrases.JSON_HEAD), ask)

    def chain(self, draw: Draw) -> Listing:
        label = ""
        if draw.chance(0.75):
            words = [draw.word().capitalize() if draw.chance(0.6) else draw.word() for _ in range(draw.between(1, 3))]
            label = " ".join(words) + draw.pick((": ", " ", " = ", " is ", ", ", " - "))
        core = question(draw, phrases.CHAIN_CORE)
        start = draw.pick(phrases.CHAIN_START)
        if draw.chance(0.5):
            start = f'{draw.fragment()} "{{s}}" {draw.fragment(1, 3)}'
        parts = [core, start]
        if draw.chance(0.65):
            end = draw.pick(phrases.CHAIN_END) if draw.chance(0.5) else f'{draw.fragment(1, 3)} "{{e}}".'
            parts.append(end)
        if draw.chance(0.2):
            parts = parts[1:]
        elif draw.chance(0.4):
            parts = [*parts[1:], parts[0]]
        return Listing(draw.pick(phrases.CHAIN_HEAD), label, " ".join(parts))

    def path(self, draw: Draw) -> Lookup:
        go = draw.pick(list(TRAVEL))
        adjective = draw.adjective() if draw.chance(0.4) else draw.pick(("quiet", "small", "fine", "rich", "remote"))
        if draw.chance(0.6):
            line = (
                f"{draw.fragment(1, 4)} {{a}} {draw.fragment(1, 4)} {{b}} {draw.pick(('by', 'with a', 'the'))} {{m}}.\n"
            )
            kind = draw.rng.random()
            if kind < 0.3:
                line = f"{draw.fragment(1, 4)} {{a}} {draw.fragment(1, 2)} {{m}} {draw.fragment(1, 4)} {{b}}.\n"
            elif kind < 0.5:
                line = f"{draw.fragment(1, 3)} {{m}} {draw.fragment(1, 3)} {{a}} {draw.fragment(1, 3)} {{b}}.\n"
        else:
            line = draw.pick(phrases.PATH_LINE)
            person, people = (
                draw.pick(("One", "We", "People", "Anyone", "Travellers")),
                draw.pick(("one", "you", "people")),
            )
            place = draw.pick(("town", "city", "place", "village", "port", "county"))
            for mark, text in (("x", adjective), ("p", place), ("y", person), ("y2", people), ("g", go), ("g2", go)):
                line = line.replace("{" + mark + "}", text)
        ask = f"{draw.fragment()} from {{a}} to {{b}} {draw.fragment()}"
        kind = draw.rng.random()
        if kind < 0.2:
            ask = f"{draw.fragment()} {{a}} {draw.fragment(1, 4)} {{b}} {draw.pick(('.', '?', draw.fragment()))}"
        elif kind < 0.7:
            ask = question(draw, phrases.PATH_CORE)
        return Lookup(line, ask)

    def variables(self, draw: Draw) -> Assignments:
        if draw.chance(0.3):
            base, hop = draw.pick(phrases.ASSIGN)
            if draw.chance(0.5):  # a word in capitals before every name, so that not all that is in capitals is a name
                mark = draw.pick(("LET", "NAME", draw.word().upper(), draw.word().capitalize(), draw.word()))
                base, hop = (text.replace("{a}", mark + " {a}").replace("{b}", mark + " {b}") for text in (base, hop))
            end = draw.pick((".", ".", ";", ",", "\n"))
            base, hop = f" {base}{end}", f" {hop}{end}"
        else:
            parts = [
                _maybe(draw, 0.6, draw.fragment(1, 3) + " "),
                draw.fragment(1, 4),
                _maybe(draw, 0.5, " " + draw.fragment(1, 3)),
            ]
            order = ("{b}", "{a}") if draw.chance(0.7) else ("{a}", "{b}")
            hop = f" {parts[0]}{order[0]} {parts[1]} {order[1]}{parts[2]}."
            value = draw.fragment(1, 4) if draw.chance(0.4) else parts[1]
            names = [{"{b}": "{a}", "{a}": "{v}"}[name] for name in order]
            base = f" {parts[0]}{names[0]} {value} {names[1]}{parts[2]}."
        ask = f"{draw.fragment()} {{v}} {draw.fragment()}"
        if draw.chance(0.55):
            ask = question(draw, phrases.VARIABLE_CORE)
        return Assignments(base, hop, ask)

    def labels(self, draw: Draw) -> str:
        return "{w} " + (draw.pick(phrases.LABEL_SEPARATOR) if draw.chance(0.4) else draw.fragment(1, 3))

    def quote(self, draw: Draw) -> str:
        return draw.pick(phrases.QUOTE) if draw.chance(0.7) else draw.fragment() + ":"

    def markup(self, draw: Draw, columns: list[str]) -> Markup:
        """Random tags around cells and notes; a third of the cells name their column."""
        tags = [draw.pick(TAGS) for _ in range(2)]
        row = self._opening(draw, tags)[0] if draw.chance(0.7) else draw.pick(("", "* ", "Record\n", "--- ", "Next: "))
        cells = []
        named = draw.pick(("", "", "<{t}>{c}</{t}>", "{c}: ", "{c} = ", "{c}\t", "<{t}>{c}</{t}>\n", "- {c}: "))
        before, after = self._opening(draw, tags)
        for column in columns:
            if draw.chance(0.15):
                before, after = self._opening(draw, tags)
            cells.append((named.format(t=tags[0], c=column) + before, after))
        note = (
            draw.pick(("", "<p>", "<small>", "\n", " - ", "(")),
            draw.pick(("", "</p>", "</div>", "\n", "</li>", ")")),
        )
        return Markup(row + draw.pick(("", "\n")), tuple(cells), note)

    def _opening(self, draw: Draw, tags: list[str]) -> tuple[str, str]:
        tag = draw.pick([*tags, draw.word()])
        return draw.pick(
            (
                (f"<{tag}>", f"</{tag}>"),
                (f'<{tag} class="{draw.word()}">', f"</{tag}>\n"),
                (f"<{tag}>\n<{draw.pick(TAGS)}>", f"</{tag}>\n"),
                (f'{draw.word()}="', '" '),
                ("[", "]"),
                ("*", "*\n"),
                (f"[{draw.word()}|", "]"),
                (f'<{tag} id="{draw.number(1, 3)}">', f"</{tag}> "),
                ("", "\n"),
            )
        )

    def table(self, draw: Draw) -> str:
        if draw.chance(0.3):
            return f"{draw.fragment()} {{c}} {draw.fragment()}"
        return question(draw, phrases.TABLE_CORE)
