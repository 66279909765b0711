"""Lists of entries that move on by one at every step, at fixed addresses: the queues of readers in replayed steps.

Legend: L layers, R rows of a layer, W the widest ring. A row's ring has width[l, r] places (0: no ring), all of them
read once the newest is in; `at` is where the next one goes, on the oldest. It holds entries of the row, for the state
that is given back, and the slots of the arena where they lie, which is what attention reads: a row's entries do not
move while it only grows, so each is located once.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(eq=False)
class Rings:
    """entry, slot: int32 [L, R, W], W a multiple of 16, so that rows are aligned; at, width: int32 [L, R]."""

    entry: Tensor
    slot: Tensor
    at: Tensor
    width: Tensor

    @staticmethod
    def empty(layers: int, rows: int, widest: int, device: torch.device) -> "Rings":
        room = torch.zeros(2, layers, rows, -(-widest // 16) * 16, dtype=torch.int32, device=device)
        words = torch.zeros(2, layers, rows, dtype=torch.int32, device=device)
        return Rings(room[0], room[1], words[0], words[1])

    def queue(self, layer: int, rows: Tensor, length: int) -> Tensor:
        """int64 [E, length]: what rows int64 [E], of one width, hold, the next to go first."""
        place = torch.arange(1, length + 1, device=rows.device)
        place = (self.at[layer, rows, None] + place) % (length + 1)
        return self.entry[layer, rows].long().gather(1, place.long())


def push(rings: Rings, lens_LR: Tensor, slots_LR: Tensor) -> None:
    """Every row's newest entry, which lies in slots_LR, into its ring; rows of length 0 stay as they are."""
    live = (lens_LR > 0) & (rings.width > 0)
    at = rings.at.long()[..., None]
    for ring, new in ((rings.entry, lens_LR - 1), (rings.slot, slots_LR)):
        ring.scatter_(2, at, new.int()[..., None].where(live[..., None], ring.gather(2, at)))
    rings.at.copy_(((rings.at + 1) % rings.width.clamp(min=1)).where(live, rings.at))


def refill(
    rings: Rings, layer: int, rows_E: Tensor, chosen_EK: Tensor, fired_R: Tensor, table_RP: Tensor, page_size: int
) -> None:
    """Where fired_R, the queues of rows int64 [E] of width K + 1 anew: entries int64 [E, K], the next to go first."""
    fired, (E, K) = fired_R.index_select(0, rows_E), chosen_EK.shape
    table = table_RP.index_select(0, rows_E).long()
    inside = chosen_EK.where(fired[:, None], 0)
    slot = table.gather(1, inside // page_size) * page_size + inside % page_size
    for ring, new in ((rings.entry, inside), (rings.slot, slot)):
        old = ring[layer].index_select(0, rows_E)
        mixed = torch.cat([new.int().where(fired[:, None], old[:, :K]), old[:, K:]], 1)
        ring[layer].index_copy_(0, rows_E, mixed)
    at = torch.full((E,), K, dtype=torch.int32, device=rows_E.device)
    rings.at[layer].index_copy_(0, rows_E, at.where(fired, rings.at[layer].index_select(0, rows_E)))
