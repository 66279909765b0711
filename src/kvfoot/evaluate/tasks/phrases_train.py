"""Phrasings of the training side: cores, beginnings and endings that wording_train.py combines."""

from __future__ import annotations

# fmt: off
ITEM_CORE = (
    "the {t} of {k} is {v}", "the {t} for {k} is {v}", "the {t} for {k} is: {v}", "{k} has the {t} {v}",
    "for {k} the {t} was set to {v}", "{k}'s {t} is {v}", "one {t} for {k} reads {v}",
    "in the ledger, {k} stands beside the {t} {v}", "{v} is the {t} of {k}", "{v} is the {t} for {k}",
    "{k} was given {v} as its {t}", "the {t} {v} belongs to {k}", "under {k} one finds the {t} {v}", "{k}: {v}",
    "{k} = {v}", "one of those {t}s of {k}: {v}", "a {t} for {k} was noted: {v}",
    "whoever asks for {k} gets the {t} {v}",
)
ITEM_BEFORE = (
    "", "", "", "", "", "Note: ", "Remember: ", "Mind this: ", "By the way, ", "It is said that ",
    "As everybody knew, ", "Listen: ", "It is written here: ", "Somebody whispered: ", "(Aside) ", "Once more: ",
    "Here is a fact. ",
)
ITEM_AFTER = (
    ".", ".", ".", ".", "!", ";", ". Do not forget it.", ". Remember this.", " (so it was said).",
    ", and nothing else.",
)
ASK_CORE = (
    "what is the {t} of {k}", "what is the {t} for {k}", "which {t} has {k}", "which {t} belongs to {k}",
    "give the {t} of {k}", "give the {t} for {k}", "name the {t} of {k}", "tell me the {t} for {k}",
    "what was the {t} for {k}", "find {k} and write its {t}", "look for {k}; which {t} goes with it",
    "{k}: which {t}", "{t} of {k}", "the {t} for {k} is", "{k}", "do you recall the {t} of {k}",
    "write the {t} that belongs to {k}", "{k} has which {t}",
)
ASK_BEFORE = (
    "", "", "", "", "", "", "Question: ", "From the text above: ", "According to the passage, ", "Answer briefly: ",
    "Please, ", "In the text, ", "Now, ", "One more: ", "Read again. ", "Think of the text. ", "Q: ",
)
ASK_AFTER = (
    "?", "?", "?", ".", ":", "", " in the text?", " above?", " according to the text?", " in this passage?",
    " that was given?", " as it was written?", " in the story above?", " among all those lines?",
)
PASSKEY_ITEM = (
    " The {t} is {v}. Keep it in mind; {v} is the {t}.", " Keep this in mind: the {t} is {v}.",
    " The {t} to be remembered is {v}. Do not forget it.", " Now, {v} is the {t}; say it to nobody.",
    " The {t} is {v}.", " Let {v} be the {t}.", " The {t}: {v}.", " We chose {v} for the {t}. Remember {v}.",
)
PASSKEY_ASK = (
    "What is the {t}?", "What was the {t} in the text?", "Write the {t} that the text mentions.",
    "Which {t} did the text mention?", "The {t} is", "Give me the {t}.", "{t}?", "Tell me the {t}, please.",
    "Do you remember the {t}?",
)
MULTI_CORE = (
    "list every {t} of {k}", "{k} has several: write each {t} in order", "which {t}s belong to {k}",
    "what are the {t}s of {k}", "name all {t}s for {k}", "all the {t}s for {k}", "give every {t} for {k}",
    "find every {t} of {k}",
)
QUERY_CORE = (
    "give the {t} for each of these: {k}", "what is the {t} of {k}, one after another", "look up every {t}: {k}",
    "what are the {t}s for {k}", "write the {t}s of {k}, in this order", "the {t}s for {k}",
    "name the {t} of each: {k}", "{k}: write each {t}",
)
JSON_CORE = (
    'find the key "{k}" in the data. Its value is', 'what is the value of the key "{k}"?', 'look up "{k}".',
    'the key is "{k}"\nValue:', 'data["{k}"] =', 'return the value that belongs to "{k}".', '"{k}":',
    'which value has "{k}"?', 'key "{k}", value', 'tell me what stands behind "{k}".', 'value of "{k}"',
    'Read the entry "{k}".', 'what does "{k}" map to?', 'search for "{k}" and copy its value.',
    'for "{k}" the object holds',
)
JSON_HEAD = (
    "Here is some data as JSON.\n", "JSON:\n", "Read this object; questions follow.\n", "", "The data:\n",
    "An object with keys and values.\n", "data = ", "Table of keys:\n",
)
CHAIN_CORE = (
    "write {n} keys as a chain, each beginning with the last word of the one before.",
    "follow the keys for {n} steps.", "make a chain of {n} keys.",
    "list {n} keys so that each starts where the last one ended.", "chain {n} keys by their words.",
    "give {n} keys in a row, joined word to word.",
    "name {n} keys; the next one starts with the word that ended the one before.", "build a row of {n} keys.",
    "{n} keys, please.",
)
CHAIN_START = (
    'Start with "{s}".', 'Begin at "{s}".', 'The chain starts with "{s}".', '"{s}" comes first.',
    'First word: "{s}".', 'Start: "{s}".', 'Take "{s}" as the first word.', 'We start from "{s}".',
    'Its first word is "{s}".', 'Go on from "{s}".',
)
CHAIN_HEAD = (
    "Below are keys.\n", "A list of keys follows.\n", "Each line has a key of two words.\n", "",
    "Many keys, in no order.\n", "These keys hang on the wall.\n", "Keys:\n",
)
PATH_LINE = (
    "{a} is a {x} {p}. {y} can {g} from {a} to {b} by {m}.\n", "There is a {m} from {a} to {b}.\n",
    "{a} is a {x} {p}. From {a} {y2} {g2} to {b} by {m}.\n",
    "Whoever is in {a} can take the {m} that leads from {a} to {b}.\n", "The {m} from {a} goes to {b}.\n",
    "From {a} there is only a {m} to {b}.\n", "In the {x} {p} of {a} a {m} leaves for {b}.\n",
    "A {m} connects {a} to {b}.\n", "{y} can {g} from {a} to {b} by {m}.\n", "Leave {a} by {m} and arrive in {b}.\n",
)
PATH_CORE = (
    "find the way from {a} to {b}", "how does one travel from {a} to {b}", "route from {a} to {b}",
    "show every step from {a} to {b}", "go from {a} to {b}, step by step", "which way leads from {a} to {b}",
    "travel from {a} to {b}", "write the route that begins in {a} and ends in {b}",
    "I am in {a} and want to reach {b}. Which way", "plan a trip from {a} to {b}",
)
VARIABLE_CORE = (
    "which variables hold the value {v}", "name every variable that equals {v}, in order",
    "follow {v}: which variables have it", "variables with the value {v}", "list the variables that contain {v}",
    "where did {v} go? Name the variables", "the value {v} is held by", "trace {v} through the variables",
    "every variable equal to {v}",
)
LABEL_SEPARATOR = (
    "->", "=>", "=", "is", "means", "--", "...", ";", ", thus", ">",
)
QUOTE = (
    "Continue this passage of the text:", "How does the text go on after this?", "Quote what follows:", "Go on:",
    "What comes next in the text?", "Recite from here:", "These words stand in the text; continue:",
    "The passage begins:",
)
TABLE_CORE = (
    "write the table as tab separated values with the columns {c}", "turn the records into TSV ({c})",
    "extract {c} of every record, tab separated, in order", "make a TSV of {c}", "columns: {c}. Write all rows",
    "list {c} for each entry, one row each", "copy {c} row by row", "table with {c}, tabs between",
)
TITLE = (
    "number", "number", "code", "cipher", "figure", "value", "word", "token", "sign", "mark", "id", "entry", "sum",
    "price", "tag", "answer",
)
TITLE_ADJECTIVE = (
    "secret", "special", "lost", "hidden", "old", "first", "second", "last", "official", "private", "real", "true",
    "new", "lucky", "strange", "holy", "red", "little", "great", "ancient", "door", "ship's", "safe", "house",
)
CHAIN_END = (
    'The last word is "{e}".', 'Stop at "{e}".', 'End with "{e}".', 'until "{e}"', 'It closes with "{e}".',
    'Go as far as "{e}".', 'to "{e}"', '"{e}" comes last.',
)
# {b} becomes a copy of {a}; the first of each pair gives {a} its value
ASSIGN = (
    ("{a} = {v}", "{b} = {a}"),
    ("let {a} = {v}", "let {b} = {a}"),
    ("{a} := {v}", "{b} := {a}"),
    ("{a} <- {v}", "{b} <- {a}"),
    ("{v} -> {a}", "{a} -> {b}"),
    ("{a} gets {v}", "{b} gets {a}"),
    ("put {v} into {a}", "put {a} into {b}"),
    ("{a} takes the value {v}", "{b} takes the value of {a}"),
    ("{v} is written to {a}", "{a} is copied to {b}"),
    ("variable {a} is {v}", "variable {b} is {a}"),
    ("{a} holds {v}", "{b} holds the same as {a}"),
    ("we call {v} by the name {a}", "we call {a} also by the name {b}"),
    ("from {v} comes {a}", "from {a} comes {b}"),
    ("{a} equals {v}", "{b} equals {a}"),
)
ASSIGN_ONE = (
    "what was copied from {a}?", "which name comes after {a}?", "{a} went where?", "who took the value of {a}?",
    "next after {a}:", "{a} ->",
)
