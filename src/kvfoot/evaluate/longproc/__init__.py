"""LongProc (arXiv 2501.05414): six tasks whose answers are long procedures, from a local copy of its data.

Prompts are the data's own templates; references and scores follow the benchmark's rules.
"""

from kvfoot.evaluate.longproc.task import NAMES, LongProc, longproc_task

__all__ = ["NAMES", "LongProc", "longproc_task"]
