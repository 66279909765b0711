"""Rows whose entries' positions are their ranks (PRE_ROPE), in a replayed step: keys turned anew, shapes by the tables.

Keys are stored as they are before RoPE, and the model is given position 0. A row is gathered in the order of its
positions, so that entry i has rank i, whatever slots it lies in: the angles are the same at every step. Layers with a
window of their own keep distances as they are and store turned keys.
"""

from typing import Any

import torch
from torch import Tensor

from kvfoot.attention.backend import Backend
from kvfoot.attention.state import State
from kvfoot.cache.kv import KVCache
from kvfoot.core.hooks import ABSENT, POSITION
from kvfoot.engine.buffers import Buffers
from kvfoot.engine.overwrite import flat
from kvfoot.models.rotation import Rotation


class Ranks:
    """most: more than any rank, or position in a layer with a window, that a step will meet. stored: whether these
    sequences' positions are; a pool may have the plane for others.
    """

    def __init__(self, model: Any, cache: KVCache, buffers: Buffers, backend: Backend, most: int, stored: bool):
        self.cache, self.buffers, self.backend, self.stored = cache, buffers, backend, stored
        size = cache.pool.page_size
        self.most = max(most, *(width * size for width in buffers.widths))
        self.rotation = Rotation(model)  # its own: the angles' addresses do not change
        for dtype in {cache.pool.dtype, next(model.parameters()).dtype}:
            self.rotation.ready(torch.empty(0, dtype=dtype, device=cache.pool.device), self.most)

    def placed(self, layer: int, x: Tensor) -> Tensor:
        """x [1, heads, B, D] of the new tokens, turned to their positions in the text."""
        return self.rotation(layer, x, self.buffers.words["position"][None], self.most)

    def attend(self, layer: int, q: Tensor, scale: float, plan: Any) -> State:
        """q [R, H, D] before RoPE, of the newest entries, which are stored already. plan: of whole rows."""
        pool, table, lens = self.cache.pool, self.buffers.tables[layer], self.buffers.words["lens"][layer]
        (R, P), size, device = table.shape, pool.page_size, table.device
        entry = torch.arange(P * size, device=device)
        slots = (table[:, :, None].long() * size + torch.arange(size, device=device)).flatten(1)
        if self.stored:
            at = flat(pool.planes[POSITION.name])[:, 0][slots].long()
            slots = slots.gather(1, at.masked_fill(entry >= lens[:, None], ABSENT).argsort(1))
        k, v = (flat(x)[slots] for x in (pool.k, pool.v))
        k = self.rotation(layer, k[:, None], range(P * size))[:, 0]
        q = self.rotation(layer, q[:, :, None], (lens - 1).clamp(min=0)[:, None], self.most)[:, :, 0]
        own = torch.arange(R * P * size, dtype=torch.int32, device=device).view(R, -1)
        k, v = (x.reshape(R * P * size, 1, -1) for x in (k, v))
        return self.backend.paged(q, k, v, own, lens, scale, plan=plan)[0]
