"""The shape of a decoder, as far as its KV cache is concerned."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Geometry:
    """Counts are per model; `group` query heads share one KV head; `positions` is the longest sequence it was made for.

    `windows[layer]` is the layer's native sliding window in tokens (the current one included), None where it has none.
    """

    layers: int
    kv_heads: int
    group: int
    head_dim: int
    positions: int
    windows: tuple[int | None, ...] = ()

    def window(self, layer: int) -> int | None:
        return self.windows[layer] if self.windows else None

    @property
    def rows(self) -> int:
        """Rows of one sequence: layers x KV heads."""
        return self.layers * self.kv_heads

    def entry_bytes(self, itemsize: int) -> int:
        """Bytes of one dense entry: a key and a value."""
        return 2 * self.head_dim * itemsize
