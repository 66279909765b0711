"""Phrasings of the three development sides. Never trained on; looked at between runs."""

from __future__ import annotations

from kvfoot.evaluate.tasks.wording import Assignments, FixedWording, Listing, Lookup

_MAGIC = " One of the special magic numbers for {k} is: {v}."

DEV = FixedWording(
    needles=(
        Lookup(_MAGIC, "What is the special magic number for {k} mentioned in the provided text?"),
        Lookup(" Here {k} keeps the figure {v} on file.", "Which figure does {k} keep on file?"),
    ),
    passkeys=(Lookup(" The pass key is {v}. Remember it. {v} is the pass key.", "What is the pass key?"),),
    multi_values=(Lookup(_MAGIC, "What are all the special magic numbers for {k} mentioned in the provided text?"),),
    multi_queries=(Lookup(_MAGIC, "What are all the special magic numbers for {k} mentioned in the provided text?"),),
    jsons=(
        Lookup(
            "JSON data:\n",
            "Extract the value corresponding to the specified key in the JSON object above.\n\n"
            'Key: "{k}"\nCorresponding value:',
        ),
    ),
    chains=(
        Listing(
            "The keys of the building, in no order.\n",
            "Name of key: ",
            "Output a list of {n} keys, where the first word of each key is the last word of the previous key. "
            'The first key begins with "{s}" and the last key ends with "{e}".',
        ),
    ),
    paths=(
        Lookup(
            "{a} is a lively city. You can travel from {a} to {b} by {m}.\n",
            "Now find the route from {a} to {b} based on the information above.",
        ),
    ),
    assignments=(
        Assignments(
            " VAR {a} = {v}.",
            " VAR {b} = VAR {a}.",
            "Find all variables that are assigned the value {v} in the text above.",
        ),
    ),
    label_lines=("{w} :",),
    quotes=("Complete the following excerpt from the text above:",),
    rows=(('<div class="item">\n', "<b>{c}</b>\n<span>", "</span>\n", "<p>", "</p>\n</div>"),),
    tables=("Extract the information above into a TSV with the headers {c}.",),
)

DEV2 = FixedWording(
    needles=(
        Lookup(
            " The vault combination recorded for {k} happens to be {v}, said the clerk.",
            "State the vault combination that was recorded for {k} in this document.",
        ),
        Lookup(
            " When the inspector examined {k} he stamped {v} onto its label.",
            "Which digits did the inspector stamp when he examined {k}?",
        ),
    ),
    passkeys=(
        Lookup(
            " To open the gate, type {v} and nothing else; the gate knows only {v} .",
            "What must be typed to open the gate?",
        ),
        Lookup(
            " Our agreed watchword is {v} and it will not change.",
            "Which watchword was agreed upon?",
        ),
    ),
    multi_values=(
        Lookup(
            " A parcel bearing {v} was delivered to {k} today.",
            "In order of appearance, which parcels were delivered to {k}?",
        ),
        Lookup(
            " The auditor assigned {k} another docket, {v}.",
            "Give the complete series of dockets the auditor assigned {k}, earliest first.",
        ),
    ),
    multi_queries=(
        Lookup(
            " The auditor assigned {k} the docket {v}.",
            "For every one of the following, state the docket assigned by the auditor: {k}.",
        ),
        Lookup(
            " A parcel bearing {v} was delivered to {k} today.",
            "Which parcels were delivered to {k}? Respect this order.",
        ),
    ),
    jsons=(
        Lookup(
            "The configuration dump reads:\n",
            'In the configuration dump, the setting named "{k}" was stored together with which text? Reply with it.',
        ),
        Lookup(
            "Contents of settings.json follow.\n",
            'Parse the file above and print settings["{k}"] exactly.',
        ),
    ),
    chains=(
        Listing(
            "Our locksmith left this unsorted inventory.\n",
            "Inventory tag ",
            'Domino game: lay down {n} tags. Every tag must open with the word that closed the preceding tag; "{s}" '
            'opens the first tag and "{e}" closes the final one.',
        ),
        Listing(
            "Labels found in the drawer:\n",
            "Drawer label reads ",
            'Beginning from the label that starts with "{s}", connect {n} labels end to end until one finishes '
            'with "{e}".',
        ),
    ),
    paths=(
        Lookup(
            "The timetable of {a} lists a single {m} service, departing from {a} and terminating at {b}.\n",
            "Using the timetables, describe the complete journey whose origin is {a} and whose destination is {b}.",
        ),
        Lookup(
            "Passengers boarding at {a} by {m} disembark at {b}.\n",
            "A passenger boards at {a} and must finally disembark at {b}. Describe each leg.",
        ),
    ),
    assignments=(
        Assignments(
            " Define {a} as {v}.",
            " Define {b} as a duplicate of {a}.",
            "Report each symbol whose definition amounts to {v}, from the earliest to the latest.",
        ),
        Assignments(
            " Register {a} was loaded with {v}.",
            " Register {b} was loaded from register {a}.",
            "Which registers end up containing {v}? Keep the order of loading.",
        ),
    ),
    label_lines=("{w} belongs under", "{w} //"),
    quotes=("The next lines were torn from the text; restore what followed:",),
    rows=(
        ('<article class="card">\n', "<dt>{c}</dt><dd>", "</dd>\n", "<aside>", "</aside>\n</article>"),
        ("## Entry\n", "- {c}: <code>", "</code>\n", "> ", "\n"),
    ),
    tables=("Convert all entries to tab-delimited lines holding {c}, preserving their sequence.",),
)

# written before the first run of the second release and opened once, for its checkpoint; the test side then
DEV3 = FixedWording(
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
