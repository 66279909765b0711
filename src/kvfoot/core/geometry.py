"""The shape of a decoder, as far as its KV cache is concerned."""

from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class Geometry:
    """Counts are per model; `group` query heads share one KV head; `positions` is the longest sequence it was made for.

    `windows[layer]` is the layer's native sliding window in tokens (the current one included), None where it has none.
    `identity` names the architecture (models/layout.py); empty: not known.
    """

    layers: int
    kv_heads: int
    group: int
    head_dim: int
    positions: int
    windows: tuple[int | None, ...] = ()
    identity: str = ""

    def window(self, layer: int) -> int | None:
        return self.windows[layer] if self.windows else None

    @property
    def open_layers(self) -> list[int]:
        """Layers without a window: the ones that a method decides about."""
        return [layer for layer in range(self.layers) if self.window(layer) is None]

    @property
    def unwindowed(self) -> "Geometry":
        """The open layers alone, as a method sees them."""
        return replace(self, layers=len(self.open_layers), windows=())

    def slide(self, lens: np.ndarray, after: np.ndarray) -> np.ndarray:
        """Entries per row [layers, kv_heads] `after` a pass, where window layers keep their last window - 1.

        lens: the same if nothing were dropped.
        """
        if not any(self.windows):
            return after
        limit = np.array([[np.iinfo(np.int64).max if w is None else w - 1] for w in self.windows])
        return np.where(limit < np.iinfo(np.int64).max, np.minimum(lens, limit), after)

    @property
    def rows(self) -> int:
        """Rows of one sequence: layers x KV heads."""
        return self.layers * self.kv_heads

    def entry_bytes(self, itemsize: int) -> int:
        """Bytes of one dense entry: a key and a value."""
        return 2 * self.head_dim * itemsize
