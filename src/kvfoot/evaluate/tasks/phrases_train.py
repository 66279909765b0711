"""Words of the training side. wording_train.py and records_train.py compose phrasings from them; none stands alone.

Templates: {t} title, {k} key, {v} value, {n} count. An entity keeps its leading space wherever it stands.
"""

from __future__ import annotations

# fmt: off
# before a statement
OPENING = (
    "Note:", "Mark this:", "Listen:", "By the way,", "It is said that", "As everybody knew,", "It is written here:",
    "Somebody whispered:", "(Aside)", "Once more:", "Here is a fact.", "Attention:", "For the record,", "In short,",
    "Be it known that", "A clerk wrote:", "In the margin:", "Note well:", "Indeed,", "Besides,", "Oddly enough,",
    "It turns out that", "To be exact,", "As agreed,", "According to the register,", "Entry:", "Memo:", "P.S.",
    "N.B.", "--", "*", "-", "#", ">>", "(1)", "a)", "[note]", "[!]", "Fact:", "Reminder:", "At last:", "True:",
    "People say that", "They found that", "Word came that", "We learnt that", "It was announced that", "Log:",
    "Last night the papers printed:", "On the wall somebody had painted:", "The list goes on:", "Also,", "Further,",
    "Nobody doubts that", "My uncle insists that", "The sign says:", "Between ourselves,", "Observe:", "Item:",
)
PERSON = (
    "the captain", "my aunt", "an old man", "the doctor", "a stranger", "the judge", "her brother", "the teacher",
    "a sailor", "the baker", "our guide", "the widow", "a child", "the king", "the porter", "Mr. Field", "Anna",
    "Mrs. Long", "the librarian", "a soldier", "the gardener", "Peter", "the host", "one of us", "the machine",
)
SAID = (
    "said that", "wrote that", "claimed that", "told us that", "knew that", "added that", "believes that", "shouted:",
    "replied:", "noted:", "swore that", "thought that", "reported that", "had heard that", "muttered:", "repeated:",
)
CLOSING = (
    ".", ".", ".", ".", ".", ".", "!", ";", "", ". Do not forget it.", " (so it was said).", ", and nothing else.",
    ". That is all.", ". Write it down.", ", as we know.", " -- no more.", ". So much for that.", ". Keep it.",
    ". It may be of use.", ", they say.", "...", ". Nobody asked why.", " (see above).", ". This is important.",
    ", once and for all.", ". It will be asked for.", " [end].", ". Let it be known.", ". Ask nobody else.", " .",
)
PREPOSITION = (
    "of", "for", "of", "for", "from", "in", "behind", "beside", "on", "under", "with", "at", "near", "about", "to",
    "belonging to", "given to", "that goes with", "assigned to", "kept for", "linked to", "next to", "known for",
)
IS = (
    "is", "is", "is", "is", "was", "was", "is:", "was:", "reads", "equals", "became", "shows", "came to", "amounts to",
    "stands at", "remains", "turned out to be", "is known to be", "has been fixed at", "must be", "will be",
    "should be",
    "has always been", "is now", "is called", "is simply", "is given as", "was set to", "was noted as", "appears as",
    "is still", "is just", "is really", "is recorded as", "has become", "is none other than", "is said to be", ":", "=",
    "is the following:", "is exactly", "seems to be", "used to be", "can only be", "was found to be", "ought to be",
)
HAS = (
    "has", "has", "holds", "carries", "bears", "keeps", "received", "shows", "wears", "owns", "got", "was given",
    "was assigned", "goes with", "is paired with", "answers to", "corresponds to", "maps to", "stands beside", "hides",
    "leads to", "gives", "yields", "means", "was seen with", "brought", "is marked with", "is filed under", "took",
    "is joined to", "comes with", "needs", "prefers", "is followed by", "chose", "is labelled", "contains", "returns",
)
BELONGS = (
    "belongs to", "was given to", "goes to", "stands for", "is for", "was assigned to", "is kept by", "came from",
    "is what one finds under", "was written beside", "is reserved for", "marks", "opens", "is due to", "fits",
    "was taken from", "is the sign of", "describes", "is found with", "was sent to", "leads to", "is owned by",
)
SYMBOL = (
    "{k}: {v}", "{k} = {v}", "{k} -> {v}", "{k} => {v}", "{k} | {v}", "{k} ({t}): {v}", "{k} / {v}", "{k}, {v}",
    "{k} ... {v}", "{k} - {v}", "{k} :: {v}", "{k} ~ {v}", "{t} [ {k} ] = {v}", "{t}, {k}: {v}", "{v} <- {k}",
    "{v} = {k}", "{v} ( {k} )", "{v}: {k}", "{v} | {k}", "{t} {k} {v}", "{t}: {k}, {v}", "{k} {t} {v}", "{k} {v}",
    "set {k} to {v}", "let {k} be {v}", "give {v} to {k}", "put {v} beside {k}", "from {k} take {v}", "see {k} at {v}",
)
TITLE = (
    "number", "code", "cipher", "figure", "value", "word", "token", "sign", "mark", "id", "entry", "sum", "price",
    "tag", "answer", "name", "phrase", "reading", "score", "address", "ticket", "serial", "key", "amount", "symbol",
)
TITLE_ADJECTIVE = (
    "secret", "lost", "hidden", "old", "first", "second", "last", "official", "private", "real", "true", "new", "lucky",
    "strange", "holy", "red", "little", "great", "ancient", "door", "ship's", "safe", "house", "blue", "royal", "final",
)
# somebody does something: verb, and its past
ACT = (
    ("give", "gave"), ("send", "sent"), ("write", "wrote"), ("hand", "handed"), ("show", "showed"), ("put", "put"),
    ("print", "printed"), ("paint", "painted"), ("leave", "left"), ("bring", "brought"), ("offer", "offered"),
    ("promise", "promised"), ("sell", "sold"), ("tell", "told"), ("lend", "lent"), ("grant", "granted"),
    ("draw", "drew"), ("carve", "carved"), ("note", "noted"), ("choose", "chose"), ("read", "read"), ("find", "found"),
    ("keep", "kept"), ("pin", "pinned"), ("owe", "owed"), ("order", "ordered"), ("add", "added"), ("name", "named"),
)
CARRIER = (
    "with", "marked", "called", "numbered", "labelled", "named", "reading", "that said", "of", "carrying", "worth",
    "under the name", "which read", "signed", "titled", "showing", "on which stood", "priced at", "that we call",
)
MANNER = (
    "", "", "", "", " yesterday", " at noon", " once more", " last week", " in silence", " with care", " by mistake",
    " again", " before dinner", " in spring", " for nothing", " without a word", " on Monday", " as usual", " at last",
)
# what a single number is good for: verb, and verb with an s
PURPOSE = (
    ("open", "opens"), ("unlock", "unlocks"), ("start", "starts"), ("enter", "enters"), ("reach", "reaches"),
    ("wake", "wakes"), ("stop", "stops"), ("release", "releases"), ("activate", "activates"), ("reset", "resets"),
    ("board", "boards"), ("join", "joins"), ("call", "calls"), ("free", "frees"), ("lift", "lifts"),
    ("raise", "raises"), ("disarm", "disarms"), ("switch on", "switches on"), ("log in to", "logs in to"),
    ("get into", "gets into"), ("pass", "passes"), ("claim", "claims"), ("find", "finds"), ("silence", "silences"),
    ("read", "reads"), ("move", "moves"), ("win", "wins"), ("summon", "summons"), ("clear", "clears"),
)
USE = (
    "use", "dial", "enter", "press", "say", "whisper", "show", "present", "write", "send", "give", "quote", "try",
    "punch in", "take", "apply", "call out", "spell", "key in", "remember", "choose", "hand over", "sing", "ring",
)
PURPOSES = (
    "to {w} {x}, {u} {v}", "{u} {v} to {w} {x}", "{v} {ws} {x}", "whoever wants to {w} {x} must {u} {v}",
    "{x} {ws} with {v}", "{x} {ws} at {v} only", "one can {w} {x} with {v}", "nobody could {w} {x} without {v}",
    "if you must {w} {x}: {v}", "what {ws} {x} is {v}", "in order to {w} {x} they {u} {v}",
    "{v} is needed to {w} {x}",
    "the way to {w} {x} is to {u} {v}", "we {w} {x} by {v}", "before you {w} {x}, {u} {v}", "{v} will {w} {x}",
    "do not try to {w} {x} unless you {u} {v}", "let them {u} {v} and {w} {x}", "{u} {v}, and it {ws} {x}",
)
PURPOSES_ASK = (
    "what {ws} {x}", "how does one {w} {x}", "with what {n} does one {w} {x}", "which {n} {ws} {x}",
    "what is one to {u} to {w} {x}", "to {w} {x}, what is to be used", "what should I {u} in order to {w} {x}",
    "by which {n} can we {w} {x}", "I want to {w} {x}: {u} what", "{u} what {ws} {x}", "the {n} to {w} {x}",
    "what do I need to {w} {x}", "what did they {u} to {w} {x}", "{w} {x} for me: the {n}", "at what {n} does {x} {w}",
    "what will {w} {x}", "{n} with which {x} {ws}", "without what could nobody {w} {x}", "how is it that {x} {ws}",
)
# what a value is called in a question: by what it is made of, which tells a number from the word before it
MADE_OF = {
    "number": ("digits", "digits", "figures", "numbers", "number", "numerals", "figure", "code", "sum", "thing"),
    "words": ("words", "words", "word", "letters", "term", "name", "code", "saying", "thing"),
    "hex": ("signs", "symbols", "characters", "letters and digits", "string", "code", "value", "thing"),
}
# before a question
ASK_OPENING = (
    "Question:", "From the text above:", "According to the passage,", "Answer briefly:", "Please,", "In the text,",
    "Now,", "One more:", "Read again.", "Think of the text.", "Q:", "Task:", "Well then,", "Your turn:", "Next:",
    "Going by what you have read,", "Using only the text,", "Look above.", "Use the story.", "So,", "Tell me:",
    "A question about the text:", "Here is what I want:", "Quickly:", "Be careful.", "With the lines above in mind,",
    "The text holds the answer.", "Do not explain.", "No other words.", "For the reader:", "Question 1.", "Then",
    "Judging by the lines above,", "If you have read it all,", "Without guessing,", "From memory:", "Request:", "Hint:",
    "Somewhere above it is said.", "Having read this,", "As the text says,", "Before we go on,", "User:", "Exam:",
)
ASK_CLOSING = (
    "?", "?", "?", "?", "?", ".", ".", ":", "", " in the text?", " above?", " according to the text?", "!",
    " in this passage?", " that was given?", " as it was written?", " in the story above?", " among all those lines?",
    "? Answer:", "? Reply with nothing else.", ", please.", ", if you can.", " as told above.", " -- quickly!", "? =",
    " (from the text).", "? Say no more.", "? Look it up.", "? It stands above.", " then?", "? Thank you.", " here?",
    ". Only that.", ". Be exact.", "? Copy it.", " after all?", " in what you have read?", ": ...", " ->", " =",
)
WHAT = (
    "what is", "what was", "which is", "what might be", "what would be", "what are", "what were", "which are",
    "can you tell", "do you know", "do you recall", "could you say", "who knows", "what did they call", "where is",
    "what did the text give as", "what do you have as", "what have we for", "how did one write", "what has become of",
)
SAY = (
    "give", "give me", "name", "tell me", "write", "write down", "state", "print", "output", "return", "report",
    "find", "look for", "look up", "repeat", "recall", "copy", "fetch", "show", "show me", "quote", "say", "search for",
    "spell out", "I need", "I want", "we are looking for", "I am after", "I wonder about", "let me have", "list",
    "let us hear", "remind me of", "bring me", "read out", "point out", "identify", "pick", "supply", "fill in",
    "everybody asks for", "nobody told me", "it remains to find", "your task is to find", "the question is about",
)
HAVE_ASK = (
    "has", "had", "goes with", "belongs to", "was given to", "stands for", "is for", "stands beside", "fits", "follows",
    "was assigned to", "is found with", "is kept by", "comes with", "did we give to", "did the text give to", "marks",
)
QUANTITY = (
    "", "", "", "", "every ", "all ", "each ", "all the ", "every single ", "the whole list of ",
    "the complete set of ",
    "any ", "one by one, the ", "as many as there are: ", "in order, the ", "everything: ", "both or more ",
    "the full ",
)
JSON_HEAD = (
    "Here is some data as JSON.\n", "JSON:\n", "Read this object; questions follow.\n", "", "", "The data:\n",
    "An object with keys and values.\n", "data = ", "Table of keys:\n", "store:\n", "const map = ", "// pairs\n",
    "What the machine keeps:\n", "dictionary ", "config\n", "begin ", "state <- ", "Pairs, in no order:\n", "Log: ",
)
JSON_CORE = (
    "the value of {k}", "what stands behind {k}", "the entry {k}", "{k}", "key {k}, value", "what {k} maps to",
    "what the object holds for {k}", "the string stored under {k}", "data[{k}]", "the partner of {k}",
    "{k} and its value",
    "whatever is filed under {k}", "the right side of {k}", "the pair with {k}", "map.get({k})", "the content of {k}",
)
CHAIN_CORE = (
    "write {n} keys as a chain, each beginning with the last word of the one before.",
    "follow the keys for {n} steps.", "make a chain of {n} keys.",
    "list {n} keys so that each starts where the last one ended.", "chain {n} keys by their words.",
    "give {n} keys in a row, joined word to word.", "{n} keys, please.", "go from key to key {n} times.",
    "name {n} keys; the next one starts with the word that ended the one before.", "build a row of {n} keys.",
    "put {n} of these end to end.", "walk along {n} keys.", "link {n} keys.", "continue for {n} keys.",
)
CHAIN_START = (
    'Start with "{s}".', 'Begin at "{s}".', 'The chain starts with "{s}".', '"{s}" comes first.', 'from "{s}"',
    'First word: "{s}".', 'Start: "{s}".', 'Take "{s}" as the first word.', 'We start from "{s}".', 'start="{s}"',
    'Its first word is "{s}".', 'Go on from "{s}".', 'It opens with "{s}".', 'The row begins with "{s}".',
)
CHAIN_END = (
    'The last word is "{e}".', 'Stop at "{e}".', 'End with "{e}".', 'until "{e}"', 'It closes with "{e}".', 'end="{e}"',
    'Go as far as "{e}".', 'to "{e}"', '"{e}" comes last.', 'Do not go beyond "{e}".', 'up to "{e}".', 'Halt at "{e}".',
)
CHAIN_HEAD = (
    "Below are keys.\n", "A list of keys follows.\n", "Each line has a key of two words.\n", "", "", "Items:\n",
    "Many keys, in no order.\n", "These keys hang on the wall.\n", "Keys:\n", "Pairs of words.\n", "The drawer:\n",
)
QUOTE = (
    "Continue this passage of the text:", "How does the text go on after this?", "Quote what follows:", "Go on:",
    "What comes next in the text?", "Recite from here:", "These words stand in the text; continue:", "Then?",
    "The passage begins:", "Copy on from:", "Find these words and write what comes after them:", "Next words after",
)
# fmt: on
