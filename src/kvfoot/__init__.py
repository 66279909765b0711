"""kvfoot: long-context language models in a fraction of the KV memory, and what it cost."""

__version__ = "0.1.0"
