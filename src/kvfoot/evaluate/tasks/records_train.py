"""Training phrasings of what has parts: roads, assignments, labels and tables. Every draw is another form."""

from __future__ import annotations

from kvfoot.evaluate.tasks.draw import Draw
from kvfoot.evaluate.tasks.wording import Markup

# fmt: off
PEOPLE = ("one", "we", "people", "anyone", "travellers", "you", "a visitor", "the mail", "everybody", "merchants", "I")
PLACE = (
    "town", "city", "place", "village", "port", "county seat", "hamlet", "resort", "market", "spot", "harbour", "stop",
)
CAN = ("can", "may", "could", "will", "must", "like to", "often", "usually", "want to", "used to", "should")
GO = ("go", "travel", "get", "ride", "move", "come", "be carried", "pass", "cross over", "be sent", "hurry", "set off")
BY = ("by", "by", "with the", "by means of a", "aboard a", "on a", "using the", "in a", "taking the", "thanks to a")
RUNS = (
    "goes", "runs", "leaves", "leads", "takes people", "is bound", "departs", "brings you", "heads", "starts",
    "sets out",
)
ROADS = (
    "there is a {m} from {a} to {b}", "the {m} from {a} {runs} to {b}", "a {m} {runs} from {a} to {b}",
    "from {a} {people} {can} {go} to {b} {by} {m}", "from {a} there is only a {m} to {b}",
    "{people} {can} {go} from {a} to {b} {by} {m}", "{people} {can} {go} {by} {m} from {a} to {b}",
    "{by} {m} {people} {can} {go} from {a} to {b}", "leave {a} {by} {m} and arrive in {b}",
    "whoever is in {a} can take the {m} that {runs} to {b}", "in {a} a {m} {runs} for {b}",
    "a {m} connects {a} to {b}", "a {m} links {a} with {b}", "{a} has a {m} to {b}", "{a} sends a {m} to {b}",
    "out of {a} the {m} {runs} to {b}", "{a} and then, {by} {m}, {b}", "after {a} comes {b}, {by} {m}",
    "{a}, next stop {b} ( {m} )", "the {m} of {a} ends in {b}", "boarding in {a}, the {m} reaches {b}",
    "{b} can be reached from {a} {by} {m}", "to reach {b} from {a} take the {m}", "{m} service: {a} to {b}",
    "at {a} change to the {m} for {b}", "{a} lies one {m} ride before {b}", "the {m} that stops at {a} goes on to {b}",
    "for {people} in {a} the way on is a {m} to {b}", "starting in {a} the {m} brings {people} to {b}",
    "{m}: from {a} to {b}", "between {a} and {b} there is a {m}", "{a} is joined to {b} {by} {m}",
    "whoever leaves {a} leaves {a} {by} {m} and sees {b}", "the {m} of {a} {runs} from {a} to {b}",
    "at {a} there is one {m} , and from {a} it {runs} to {b}", "{b} it is: the {m} out of {a} ends in {b}",
    "in {a} they know but one {m} ; it leaves {a} and halts in {b}", "{a} has one way out of {a} , a {m} to {b}",
    "the {m} for {b} waits in {a} ; {people} {can} {go} to {b}", "tickets of {a}: {m} , from {a} , as far as {b}",
)
SIGNS = (
    "{a} -> {b} , {m}", "{a} -> {m} -> {b}", "{a} | {m} | {b}", "{a} | {b} | {m}", "{m} : {a} > {b}",
    "{a} => {b} ( {m} )",
    "{a} : {b} / {m}", "{a} -- {m} -- {b}", "{a} , {m} , {b}", "{a} = {b} + {m}", "* {a} ; {b} ; {m}",
    "[ {m} ] {a} , {b}",
    "from: {a} to: {b} by: {m}", "start {a} end {b} with {m}", "by {m} from {a} to {b}", "{m} {a} {b}", "{a} {b} {m}",
)
TRIP = (
    "the way from {a} to {b}", "how one travels from {a} to {b}", "the route from {a} to {b}",
    "every step from {a} to {b}", "from {a} to {b}, step by step", "the road that leads from {a} to {b}",
    "the route that begins in {a} and ends in {b}", "how to get from {a} to {b}", "a trip from {a} to {b}",
    "a journey: start in {a} and go to {b}", "all stops between {a} and {b}", "a plan to leave {a} and reach {b}",
    "directions ( {a} to {b} )", "the connections from {a} until {b}", "start: {a} , goal: {b}", "{a} to {b}",
    "what leads out of {a} and at last into {b}", "how {a} and {b} are connected", "the itinerary {a} -> {b}",
    "a friend who is in {a} and must be in {b}", "the shortest way out of {a} that ends at {b}",
)
# {b} becomes a copy of {a}; the first of each pair gives {a} its value
ASSIGN = (
    ("{a} = {v}", "{b} = {a}"), ("let {a} = {v}", "let {b} = {a}"), ("{a} := {v}", "{b} := {a}"),
    ("{a} <- {v}", "{b} <- {a}"), ("{v} -> {a}", "{a} -> {b}"), ("{a} gets {v}", "{b} gets {a}"),
    ("put {v} into {a}", "put {a} into {b}"), ("{a} takes the value {v}", "{b} takes the value of {a}"),
    ("{v} is written to {a}", "{a} is copied to {b}"), ("variable {a} is {v}", "variable {b} is {a}"),
    ("{a} holds {v}", "{b} holds the same as {a}"), ("we call {v} by the name {a}", "we call {a} also by the name {b}"),
    ("from {v} comes {a}", "from {a} comes {b}"), ("{a} equals {v}", "{b} equals {a}"), ("{a} == {v}", "{b} == {a}"),
    ("move {v} , {a}", "move {a} , {b}"), ("{a} : {v}", "{b} : {a}"), ("{a} was {v}", "{b} was {a}"),
    ("{a} is worth {v}", "{b} is worth as much as {a}"), ("{v} was stored as {a}", "{a} was stored as {b}"),
    ("{a} has {v}", "{b} has what {a} has"), ("give {v} to {a}", "give what {a} has to {b}"),
    ("{a} is short for {v}", "{b} is short for {a}"), ("load {v} to {a}", "load {a} to {b}"),
    ("{a} started with {v}", "{b} followed {a}"), ("{a} points at {v}", "{b} points at {a}"),
    ("{a} , that is {v}", "{b} , that is {a}"), ("{a} is defined as {v}", "{b} is defined as {a}"),
)
HOLDERS = (
    "variables that hold {v}", "every name that equals {v}", "where {v} went", "all that has the value {v}",
    "the names behind {v}", "who has {v}", "the names, in order, for {v}", "{v} and everything that copies it",
    "the variables equal to {v}", "the trace of {v}", "everything that is {v} in the end", "the way of the value {v}",
    "names with {v}", "what holds {v} , directly or not", "the chain of {v}", "each variable that contains {v}",
    "which of them were given {v}", "the list for {v}", "those worth {v}", "holders of {v}", "{v}",
)
LABEL = (
    "->", "=>", "=", "is", "means", "--", "...", ";", ", thus", ">", "|", "~", "is a", "goes with", "gives", "/", "::",
    "\nLabel:", "\nAnswer:", "\nClass:", "\n->", "\nOutput:", "\nType is", "( kind:", "has type", "was sorted as", "+",
)
LABEL_BEFORE = (
    "", "", "", "", "Word:", "Input:", "Q:", "item", "the", "Text:", "*", "-", "Given", "Here:", "No:", "Entry",
    "name =",
)
COLUMNS = (
    "the table as tab separated values with the columns {c}", "the records as TSV ({c})", "all rows; columns: {c}",
    "{c} of every record, tab separated, in order", "a TSV of {c}", "{c} for each entry, one row each",
    "{c} row by row", "a table with {c}, tabs between", "{c}", "every record's {c}", "the columns {c}",
    "each line with {c}", "rows of {c}", "{c}, from the first record to the last", "the fields {c} of all items",
    "a list of all entries with {c}", "what the records have as {c}", "only {c}, one line an entry",
)
TAGS = (
    "td", "li", "span", "p", "div", "i", "em", "h3", "a", "dd", "dt", "section", "b", "tr", "th", "code", "small", "u",
)
# around a cell; a cell follows a mark and never a space, as it does in the answer
CELLS = (
    ("[", "]"), ("*", "*\n"), ("|", "|"), ("|", "\n"), ("", "\n"), ("\n", "\n"), ("(", ")"), ('"', '" '), ('"', '",'),
    ("=", ";"), (":", "\n"), ("\t", ""), ("\t", "\n"), ("<", ">"), ("{", "}"), ("'", "', "), ("_", "_ "), ("#", "\n"),
    (">", "<br>"), ("::", " ::"), ("/", "/"), ("~", "~\n"), ("`", "` "),
)
NAMES = (
    "{c}:", "{c}=", "{c}\t", "- {c}:", "{c} |", "{c}\n", "* {c} *", "the {c} is:", "[{c}] ", "({c})", "{c} ->", "{c}: ",
    "<{t}>{c}</{t}>", "<{t}>{c}</{t}>\n", '"{c}":', "{c} ", "@{c} ", ". {c}:", "{c} = ", "field {c}: ", "{c}>",
)
# fmt: on


def _fill(draw: Draw, text: str) -> str:
    """{runs}, {people} and the like become words, each time others."""
    for mark, options in (("runs", RUNS), ("people", PEOPLE), ("can", CAN), ("go", GO), ("by", BY)):
        while "{" + mark + "}" in text:
            text = text.replace("{" + mark + "}", draw.pick(options), 1)
    return text


def capital_of(text: str) -> str:
    return text[:1].upper() + text[1:]


def road(draw: Draw) -> str:
    """A line with {a}, {b} and {m}: the vehicle before, between or after the towns; rarely the goal first."""
    kind = draw.rng.random()
    if kind < 0.4:
        text = _fill(draw, draw.pick(ROADS))
    elif kind < 0.5:
        text = draw.pick(SIGNS)
    else:
        names = draw.pick((["{a}", "{b}", "{m}"], ["{a}", "{m}", "{b}"], ["{m}", "{a}", "{b}"]))
        if draw.chance(0.3):  # a line may name a town twice: the goal is the other one
            again = draw.pick(("{a}", "{a}", "{b}"))
            names.insert(draw.between(names.index(again), 3), again)
        text = names[0]
        for name in names[1:]:
            text += f" {draw.fragment(1, 4)} {name}"
        text = (draw.fragment(1, 4) + " " if draw.chance(0.6) else "") + text
        text += " " + draw.fragment(1, 5) if draw.chance(0.3) else ""
    text = text[:1].upper() + text[1:] if text[:1].islower() and draw.chance(0.9) else text
    kind = draw.rng.random()
    if kind < 0.2:  # a town is introduced before its road is named
        adjective = draw.adjective() if draw.chance(0.7) else draw.noun()
        article, place, mark = draw.pick(("a", "the", "some")), draw.pick(PLACE), draw.pick((".", ";", ","))
        intro = draw.pick((
            f"{{a}} is {article} {adjective} {place}", f"{{a}} is {article} {adjective} {place}",
            f"{{a}} has {article} {adjective} {draw.noun()}", f"the {draw.noun()} of {{a}} is {adjective}",
            "here is {a}", f"{draw.fragment(1, 4)} {{a}} {draw.fragment(1, 4)}",
        ))  # fmt: skip
        text = f"{capital_of(intro)}{mark} {text}"
    elif kind < 0.3:
        text = f"{draw.fragment(2, 6)}. {text}"
    elif kind < 0.4:
        text = f"{text}. {draw.fragment(2, 8)}"
    # a town at the start of a line would be spelt without its space
    return (
        (" " if text.startswith("{") else "")
        + text
        + draw.pick((".\n", ".\n", ".\n", "\n", ";\n", "!\n", ".\n\n", " .\n"))
    )


def trip(draw: Draw) -> str:
    kind = draw.rng.random()
    if kind < 0.65:
        return draw.pick(TRIP)
    if kind < 0.8:
        return f"{draw.fragment(1, 4)} from {{a}} to {{b}} {draw.fragment(1, 4)}"
    return f"{draw.fragment(1, 4)} {{a}} {draw.fragment(1, 4)} {{b}}"


def assignment(draw: Draw) -> tuple[str, str]:
    """(base, hop): how {a} is given {v}, and how {b} becomes a copy of {a}."""
    if draw.chance(0.5):
        base, hop = draw.pick(ASSIGN)
        if draw.chance(0.55):  # a word before every name, in capitals or not: not all that is in capitals is a name
            mark = draw.pick(
                (
                    "LET",
                    "NAME",
                    "SET",
                    "DEF",
                    draw.word().upper(),
                    draw.word().upper(),
                    draw.word().capitalize(),
                    draw.word(),
                )
            )
            base, hop = (text.replace("{a}", mark + " {a}").replace("{b}", mark + " {b}") for text in (base, hop))
        elif draw.chance(0.4):  # or before the first one only, as in a declaration
            mark = draw.word().upper() if draw.chance(0.4) else draw.word()
            base, hop = f"{mark} {base}", f"{mark} {hop}"
    else:
        before = draw.fragment(1, 3) + " " if draw.chance(0.6) else ""
        middle, after = draw.fragment(1, 4), " " + draw.fragment(1, 3) if draw.chance(0.5) else ""
        order = ("{b}", "{a}") if draw.chance(0.65) else ("{a}", "{b}")
        hop = f"{before}{order[0]} {middle} {order[1]}{after}"
        value = draw.fragment(1, 4) if draw.chance(0.4) else middle
        names = [{"{b}": "{a}", "{a}": "{v}"}[name] for name in order]
        base = f"{before}{names[0]} {value} {names[1]}{after}"
    end = draw.pick((".", ".", ".", ";", ",", "\n", "!", " .", " ;"))
    start = draw.pick((" ", " ", " ", "\n ", " - ", " (", " > ")) if draw.chance(0.5) else " "
    if start.endswith("("):
        start, end = " ( ", " )."
    return start + base + end, start + hop + end


def holders(draw: Draw) -> str:
    if draw.chance(0.6):
        return draw.pick(HOLDERS)
    return f"{draw.fragment(1, 4)} {{v}} {draw.fragment(1, 3)}"


def label(draw: Draw) -> str:
    """What stands before a label; {w} brings its own space."""
    before = draw.pick(LABEL_BEFORE) if draw.chance(0.7) else draw.fragment(1, 3)
    after = draw.pick(LABEL) if draw.chance(0.55) else draw.fragment(1, 3)
    return f"{before}{{w}}{'' if after.startswith(chr(10)) else ' '}{after}"


def _cell(draw: Draw) -> tuple[str, str]:
    tag = draw.pick(TAGS) if draw.chance(0.75) else draw.word()
    kind = draw.rng.random()
    if kind < 0.3:
        return f"<{tag}>", f"</{tag}>" + draw.pick(("", "", "\n", " "))
    if kind < 0.4:
        return f'<{tag} {draw.pick(("class", "id", "name", draw.noun()))}="{draw.word()}">', f"</{tag}>\n"
    if kind < 0.48:
        inner = draw.pick(TAGS)
        return f"<{tag}><{inner}>", f"</{inner}></{tag}>" + draw.pick(("", "\n"))
    return draw.pick(CELLS)


def columns(draw: Draw) -> str:
    if draw.chance(0.75):
        return draw.pick(COLUMNS)
    return f"{draw.fragment(1, 4)} {{c}} {draw.fragment(1, 3)}"


def markup(draw: Draw, names: list[str]) -> Markup:
    """A record: two in three name the column beside the cell; otherwise a first line may, or nothing does.

    The note stands after the cells, before them, or among them, often inside the marks that hold a cell.
    """
    kind = draw.rng.random()
    named = draw.pick(NAMES) if kind < 0.62 else ""
    tag = draw.pick(TAGS)
    before, after = _cell(draw)
    cells = []
    for name in names:
        if draw.chance(0.12):
            before, after = _cell(draw)
        title = named.format(t=tag, c=name)
        if title and not before:  # ` value` would be spelt otherwise than in the answer
            title = title.rstrip(" ") + draw.pick(("=", ":", ">", '"', "|", "#"))
        cells.append((title + before, after))
    header = ""
    if not named and kind < 0.85:
        mark = draw.pick((", ", " | ", "\t", "; ", " / ", "</th><th>"))
        header = (
            draw.pick(("", "# ", "Columns: ", "<tr><th>", "| ", draw.fragment(1, 3) + ": ")) + mark.join(names) + "\n"
        )
    row = draw.pick(
        ("", "", "* ", "Record\n", "--- ", "Next: ", "\n", "@ ", f"<{tag}>", f"<{tag}>\n", f"{draw.word()} ")
    )
    note = draw.pick(
        (
            ("", ""),
            ("<p>", "</p>"),
            ("\n", "\n"),
            (" - ", ""),
            ("(", ")"),
            (before, after),
            (before, after),
            (f"<{draw.pick(TAGS)}>", f"</{tag}>\n"),
            (draw.pick((">", "%", "//", ";", "::")) + " ", "\n"),
            _cell(draw),
        )
    )
    kind = draw.rng.random()
    if kind < 0.45:  # the note looks like one more cell, of a column that nobody asks for
        title = named.format(t=tag, c=draw.noun()) if named else draw.pick(("", draw.noun() + ":"))
        note = (title + before, after)
    elif kind < 0.6:
        note = (draw.noun() + draw.pick((":", "=", ": ", " ")) + note[0], note[1])
    row_end = draw.pick(("", "", "", f"</{tag}>", "---", "\n"))
    place = draw.rng.random()
    at = None if place < 0.75 else 0 if place < 0.9 else draw.between(1, len(names) - 1)
    return Markup(row, tuple(cells), (note[0], note[1] + row_end), header, at, bool(named or header))
