from dataclasses import dataclass
from typing import ClassVar

from kvfoot.core.hooks import Needs
from kvfoot.core.registry import register
from kvfoot.methods.evict.streaming import Streaming


@register(
    "streamingllm",
    paper="2309.17453",
    category="evict",
    stores="sinks + the most recent entries, renumbered",
    reads="all stored",
)
@dataclass(frozen=True)
class StreamingLLM(Streaming):
    """StreamingLLM as published: an entry's position is its rank in the row, so that texts have no greatest length.

    Keys are stored before RoPE and rotated at every pass (section 3.2); `streaming` keeps original positions.
    """

    needs: ClassVar[Needs] = Needs.PRE_ROPE
