"""Phrasings of the test side, written before the first run of the released recipe; opened once, for its checkpoint."""

from __future__ import annotations

from kvfoot.evaluate.tasks.wording import Assignments, FixedWording, Listing, Lookup

TEST = FixedWording(
    needles=(
        Lookup(
            " In case anyone checks, the locker combination filed for {k} is {v}.",
            "Could you remind me which locker combination is filed for {k}?",
        ),
        Lookup(" At {k} the inspector measured {v}, nothing less.", "How much did the inspector measure at {k}?"),
        Lookup(" {v}: so runs the membership number of {k}.", "How does the membership number of {k} run?"),
    ),
    passkeys=(
        Lookup(
            " For safekeeping: the vault opens with {v}. Please memorise {v}.", "With which digits does the vault open?"
        ),
        Lookup(
            " Should the line go dead, dial {v} instead.", "Which digits should be dialled when the line has gone dead?"
        ),
    ),
    multi_values=(
        Lookup(
            " Another delivery arrived for {k}, parcel {v}.",
            "Which parcels arrived for {k}? Mention them in the order of their arrival.",
        ),
        Lookup(
            " The tally of {k} was raised by {v}.", "By which amounts was the tally of {k} raised, from first to last?"
        ),
    ),
    multi_queries=(
        Lookup(
            " The bell tower of {k} counts {v} steps.",
            "How many steps do the bell towers of {k} count, respectively?",
        ),
        Lookup(" Sample {k} weighed in at {v}.", "Provide the weights of samples {k}, separated by commas."),
    ),
    jsons=(
        Lookup("The settings were exported as follows: ", 'Which setting was exported under the name "{k}"?'),
        Lookup("Parsed response:\n", 'Resolve "{k}" against the mapping.'),
    ),
    chains=(
        Listing(
            "Dominoes lie on the table, one to a line.\n",
            "Domino: ",
            "Lay {n} dominoes so that touching halves match. "
            'The leftmost half shows "{s}", the rightmost half shows "{e}".',
        ),
        Listing(
            "",
            "link ",
            'Beginning with "{s}", keep joining links whose first half repeats the previous second half; '
            'finish on "{e}" after {n} links.',
        ),
    ),
    paths=(
        Lookup(
            "Passengers at {a} board the {m}, whose terminus is {b}.\n",
            "I live near {a}; my sister lives near {b}. Spell out each leg of my visit.",
        ),
        Lookup(
            "Station {a}: the sole departure is a {m} towards {b}.\n",
            "Compile the connections. Departure: {a}. Destination: {b}.",
        ),
    ),
    assignments=(
        Assignments(
            " register {a} was initialised to {v};",
            " register {b} mirrors register {a};",
            "Which registers end up storing {v}? Mention them in order of appearance.",
        ),
        Assignments(
            " Badge {a} carries the stamp {v}.",
            " Badge {b} duplicates badge {a}.",
            "Enumerate all badges bearing the stamp {v}.",
        ),
    ),
    label_lines=("{w} gets sorted into", "Specimen{w}, family"),
    quotes=("Somebody read these words aloud; carry on word for word:",),
    rows=(
        ("<article>\n", "<label>{c}</label> <output>", "</output>\n", "<aside>", "</aside>\n</article>"),
        ("::: entry\n", "{c} := [", "]\n", "remarks := ", "\n:::"),
    ),
    tables=(
        "Produce tab-delimited text with one line per entry; keep these columns: {c}.",
        "Flatten the entries into {c}, separated by tab characters, in the order in which they occur.",
    ),
)
