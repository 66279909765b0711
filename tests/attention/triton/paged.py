"""Ragged rows in pages in any order; what no row owns, and the slack of last pages, is NaN."""

from dataclasses import dataclass

import torch
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ULP = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
"""Error allowed of results of size 1: fp32's of sums, else two units in the last place of the result's dtype."""


@dataclass
class Paged:
    """k, v [pages, page, D]; table [R, P] with pages of NaN beyond a row's own; lens [R]; q [R, H, n, D]."""

    k: Tensor
    v: Tensor
    table: Tensor
    lens: Tensor
    q: Tensor
    scale: float

    @property
    def most(self) -> int:
        return int(self.lens.max())

    def dense(self, rows: slice, m: int) -> tuple[Tensor, Tensor]:
        """The first m entries of rows that have as many: [R, m, D], a view with strides."""
        found = [x[self.table[rows].long()].flatten(1, 2)[:, :m] for x in (self.k, self.v)]
        return found[0], found[1]


def make(
    lens: list[int],
    head_size: int,
    group: int,
    page: int,
    dtype: torch.dtype,
    queries: int = 1,
    index: torch.dtype = torch.int32,
) -> Paged:
    generator = torch.Generator().manual_seed(sum(lens) + head_size + group + page)
    draw = lambda *shape: torch.randn(shape, generator=generator)  # noqa: E731
    rows, width = len(lens), max(-(-n // page) for n in lens) + 1
    pages = rows * width + 2
    order = torch.randperm(pages, generator=generator)
    table = order[: rows * width].view(rows, width)
    k, v = torch.full((pages, page, head_size), torch.nan), torch.full((pages, page, head_size), torch.nan)
    for r, n in enumerate(lens):
        for x in (k, v):
            for i in range(n):
                x[table[r, i // page], i % page] = draw(head_size)
        table[r, -(-n // page) :] = order[-1]
    q = 2 * draw(rows, group, queries, head_size)
    on = lambda x: x.to(DEVICE)  # noqa: E731
    return Paged(
        on(k.to(dtype)),
        on(v.to(dtype)),
        on(table.to(index)),
        on(torch.tensor(lens, dtype=index)),
        on(q.to(dtype)),
        head_size**-0.5,
    )


def close(found: Tensor, expected: Tensor, dtype: torch.dtype) -> bool:
    """Within the precision's tolerance; infinities where they are expected, NaN nowhere."""
    return torch.allclose(found.float(), expected.float(), atol=ULP[dtype], rtol=ULP[dtype])
