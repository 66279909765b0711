"""Tasks: text-level generators, one file a family, for any tokenizer.

`find_task("keys4").sample(corpus, count, length, seed)` makes a sample of `corpus = read_corpus(folder, "dev")`.
The training of kvfoot-recall uses the same families with its own phrasings (wording_train) and its own token writer.
"""

from kvfoot.evaluate.tasks.corpus import Corpus, read_corpus
from kvfoot.evaluate.tasks.registry import TASKS, Task, find_task
from kvfoot.evaluate.tasks.sample import Draft, Sample, Turn

__all__ = ["TASKS", "Corpus", "Draft", "Sample", "Task", "Turn", "find_task", "read_corpus"]
