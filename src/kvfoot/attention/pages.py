"""Lists of whole pages, the last one as far as it is filled: what a row reads, as a table of pages of the cache."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Pages:
    """number: int64 [R, c] of pages of `size` entries, the newest entry's last."""

    number: Tensor
    size: int

    def units(self, page_size: int) -> Tensor:
        """The same in pages of `page_size` entries, where that divides `size`, else in entries: int64 [R, c x m]."""
        m = self.size // grain(self.size, page_size)
        if m == 1:
            return self.number
        inside = torch.arange(m, device=self.number.device)
        return (self.number[..., None] * m + inside).flatten(1)


def grain(size: int, page_size: int) -> int:
    """Entries that a list of pages of `size` is made of, in a cache of pages of `page_size`: its pages, or one."""
    return page_size if size % page_size == 0 else 1
