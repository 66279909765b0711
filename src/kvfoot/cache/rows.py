"""What belongs to one sequence in the cache."""

import numpy as np
from torch import Tensor

from kvfoot.core.geometry import Geometry


class Rows:
    """The rows of one sequence: lengths on the host, pages per row.

    lens: int64 [layers, kv_heads], entries stored. seen: tokens read so far, evicted or not. pages[layer][head]: int64.
    ordered[layer]: entries lie in position order (decode-time eviction ends that).
    turn[layer]: slot of the oldest entry of a window layer, which is a ring.
    """

    def __init__(self, geometry: Geometry):
        self.lens = np.zeros((geometry.layers, geometry.kv_heads), np.int64)
        self.seen = 0
        self.forked = False
        self.pages = [[np.empty(0, np.int64) for _ in range(geometry.kv_heads)] for _ in range(geometry.layers)]
        self.ordered = [True] * geometry.layers
        self.turn = [0] * geometry.layers
        self.indices: list[dict[tuple[tuple[int, ...], int], Tensor]] = [{} for _ in range(geometry.layers)]
