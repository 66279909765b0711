"""Phrasings of the test side, written before any run that is scored on them; opened once, for a final checkpoint."""

from __future__ import annotations

from kvfoot.evaluate.tasks.wording import Assignments, FixedWording, Listing, Lookup

TEST = FixedWording(
    needles=(
        Lookup(
            " The reference printed on the receipt of {k} was {v}.",
            "Which reference was printed on the receipt of {k}?",
        ),
        Lookup(
            " People who come for {k} are told to quote {v} at the counter.",
            "What should I quote at the counter if I come for {k}?",
        ),
        Lookup(
            " On the last page somebody had pencilled {v} next to {k} in a neat hand.",
            "What had been pencilled next to {k} on the last page?",
        ),
        Lookup(
            " The curator catalogued {k} as {v}, and nobody objected.",
            "As what did the curator catalogue {k}?",
        ),
        Lookup(" Whoever wants to book {k} has to mention {v}.", "I want to book {k}. What do I have to mention?"),
    ),
    passkeys=(
        Lookup(
            " By the way, {v} switches off the alarm; you will need it later.", "Which number switches off the alarm?"
        ),
        Lookup(" Your booking at the hotel is under {v}, so keep it handy.", "What is my booking at the hotel under?"),
        Lookup(" Where the form asks for a customer number, write {v}.", "What am I to write as the customer number?"),
        Lookup(
            " The wifi at the cottage wants {v} before it lets anyone in.",
            "What does the wifi at the cottage want before it lets me in?",
        ),
        Lookup(" It was {v} to which the bicycle lock had been changed.", "To what had the bicycle lock been changed?"),
    ),
    multi_values=(
        Lookup(
            " {k} scored {v} points in this round.",
            "How many points did {k} score, round by round?",
        ),
        Lookup(
            " That evening the meter at {k} read {v}.",
            "What did the meter at {k} read? I need each evening, beginning with the first.",
        ),
        Lookup(
            " They also billed {k} on invoice {v}.",
            "Make a list of the invoices on which {k} was billed. Older ones come before newer ones.",
        ),
        Lookup(
            " Of the raffle tickets, {v} went to {k}.",
            "Which raffle tickets went to {k}? Keep to the order of the text.",
        ),
    ),
    multi_queries=(
        Lookup(" At the last count {k} had {v} inhabitants.", "How many inhabitants did these have: {k}?"),
        Lookup(
            " After six you can ring {k} on {v}.", "I would like to ring {k}, one after the other. On what numbers?"
        ),
        Lookup(
            " There were {v} kilometres on the clock when {k} was sold.",
            "How many kilometres were on the clock when these were sold? The cars are {k}.",
        ),
        Lookup(" The museum paid {v} for {k}.", "What did the museum pay for {k}? Answer for each in turn."),
    ),
    jsons=(
        Lookup("This is what the server sent back:\n", 'What did the server send back for "{k}"?'),
        Lookup(
            "I have pasted the lookup table here, as JSON.\n",
            'Could you tell me what the pasted table maps "{k}" to?',
        ),
        Lookup("Saved state of the program: ", 'What does the saved state have for "{k}"?'),
    ),
    chains=(
        Listing(
            "Every plank has a word painted on either end.\n",
            "Plank ",
            "Put {n} planks in a row. Where two planks meet, both ends must have the same word painted on them. "
            'The row starts with "{s}" and stops at "{e}".',
        ),
        Listing(
            "These wagons stand in the yard; the front is written before the rear.\n",
            "wagon: ",
            "Couple {n} wagons into a train. What is written on the rear of a wagon is also written on the front of "
            'the wagon behind it. The train has "{s}" at its front and "{e}" at its rear.',
        ),
        Listing(
            "",
            "word pair ",
            "Go through {n} of the pairs, always on to the pair that takes up the word the last one left off with. "
            'You set out from "{s}" and arrive at "{e}".',
        ),
    ),
    paths=(
        Lookup(
            "There is only one way out of {a} and that is the {m} to {b}.\n",
            "How do I get from {a} to {b}? I would like the whole trip on paper.",
        ),
        Lookup(
            "If you are in {a}, a {m} will bring you to {b}.\n",
            "We are in {a} now and have to be in {b} by Sunday. What do we take, and where do we change?",
        ),
        Lookup(
            "The {m} out of {a} stops nowhere but in {b}.\n",
            "Plan a tour for me, ride by ride: the first stop is {a}, the last one {b}.",
        ),
        Lookup(
            "For a trip to {b}, people in {a} use the {m}.\n",
            "Please guide me to {b}, one change at a time. At the moment I am in {a}.",
        ),
    ),
    assignments=(
        Assignments(
            " Player {a} drew card {v}.",
            " Player {b} drew the same card as player {a}.",
            "Who drew card {v}? Name all of these players as they come up.",
        ),
        Assignments(
            " Folder {a} contains file {v}.",
            " Folder {b} is a shortcut to folder {a}.",
            "Through which folders do I get to file {v}? Begin with the one that contains it.",
        ),
        Assignments(
            " {a} weighs {v} grams.",
            " {b} weighs as much as {a} does.",
            "Tell me everything that weighs {v} grams, going through the text from the top.",
        ),
    ),
    label_lines=("I would call{w} a case of", "{w}? That counts as", "The drawer for{w} is"),
    quotes=(
        "Somewhere above you have read this. How did it go on?",
        "Finish this just as the author did:",
        "I marked the place that begins like this, please read on from there:",
    ),
    rows=(
        ("<li>\n", "<i>{c}</i> <q>", "</q>\n", "<small>", "</small>\n</li>"),
        ("[record]\n", '{c}="', '"\n', "; ", "\n"),
        ("<tr>\n", '<td title="{c}">', "</td>\n", "</tr>\n<!-- ", " -->"),
        ("---\n", "{c}: '", "'\n", "comment: >\n  ", "\n"),
    ),
    tables=(
        "Make a table of all this for me: {c}. Tabs between the fields, please, and no heading.",
        "I want to paste {c} into a spreadsheet, so write a line for each of them with tabs in between.",
        "Which {c} did you find? A row for each, tabs as separators.",
    ),
)
