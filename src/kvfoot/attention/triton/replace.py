"""One entry of each row onto another, with everything that it has: a full row's new one where the lost one was.

`move` is told where, `replace` finds it among candidates (attention/overwrite.py). One launch for keys, values and two
planes, the rest two by two.
"""

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from kvfoot.attention.state import Least
from kvfoot.attention.triton import common
from kvfoot.attention.triton.append import words


@triton.jit
def replace_kernel(
    a,
    b,
    c,
    d,
    source,
    target,
    due,
    value,
    index,
    table,
    table_pitch,
    candidates,
    unit,
    W: tl.constexpr,
    WP: tl.constexpr,
    WC: tl.constexpr,
    WCP: tl.constexpr,
    WD: tl.constexpr,
    WDP: tl.constexpr,
    PAGE: tl.constexpr,
    CP: tl.constexpr,
):
    row = tl.program_id(0)
    old = tl.load(source + row)
    if CP == 0:
        new = tl.load(target + row)
    else:
        none: tl.constexpr = 1 << 30
        i = tl.arange(0, CP)
        at = (row // unit).to(tl.int64) * candidates + i
        v = tl.load(value + at, mask=i < candidates, other=float("inf"))
        j = tl.load(index + at, mask=i < candidates, other=none)
        lost = tl.min(tl.where(v == tl.min(v, 0), j, none), 0)
        found = (tl.load(due + row) != 0) & (lost < none)
        lost = tl.where(found, lost, 0)
        page = tl.load(table + row.to(tl.int64) * table_pitch + lost // PAGE).to(tl.int64)
        new = tl.where(found, page * PAGE + lost % PAGE, old)
    far = new - old  # joins a tile below: the interpreter takes no mask from a scalar
    if W > 0:
        w = tl.arange(0, WP)
        x = tl.load(a + old * W + w, mask=(w < W) & (far + w != w))
        y = tl.load(b + old * W + w, mask=(w < W) & (far + w != w))
        tl.store(a + new * W + w, x, mask=(w < W) & (far + w != w))
        tl.store(b + new * W + w, y, mask=(w < W) & (far + w != w))
    if WC > 0:
        wc = tl.arange(0, WCP)
        z = tl.load(c + old * WC + wc, mask=(wc < WC) & (far + wc != wc))
        tl.store(c + new * WC + wc, z, mask=(wc < WC) & (far + wc != wc))
    if WD > 0:
        wd = tl.arange(0, WDP)
        z = tl.load(d + old * WD + wd, mask=(wd < WD) & (far + wd != wd))
        tl.store(d + new * WD + wd, z, mask=(wd < WD) & (far + wd != wd))


def move(planes: Sequence[Tensor], source_R: Tensor, target_R: Tensor) -> None:
    """See overwrite.move; the first two planes, keys and values, have one width and dtype."""
    _launch(planes, source_R, target_R, source_R, None, source_R[None])


def replace(planes: Sequence[Tensor], table_RP: Tensor, source_R: Tensor, due_R: Tensor, least: Least) -> None:
    """See overwrite.replace; planes as of `move`."""
    _launch(planes, source_R, source_R, due_R, least, table_RP)


def _launch(
    planes: Sequence[Tensor], source: Tensor, target: Tensor, due: Tensor, least: Least | None, table: Tensor
) -> None:
    common.pages(*planes)
    size, (k, v, *sides) = planes[0].shape[1], [words(x) for x in planes]
    count = 0 if least is None else least.index.shape[1]
    for i in range(0, max(len(sides), 1), 2):
        c, d = [*sides[i : i + 2], k, k][:2]
        widths = [0 if x is k else x.shape[2] for x in (c, d)]
        width = k.shape[2] if i == 0 else 0
        replace_kernel[(len(source),)](
            k,
            v,
            c,
            d,
            source,
            target,
            due,
            source if least is None else least.value,
            source if least is None else least.index,
            table,
            table.stride(0),
            count,
            1 if least is None else len(source) // len(least.index),
            W=width,
            WP=common.padded(width, 1),
            WC=widths[0],
            WCP=common.padded(widths[0], 1),
            WD=widths[1],
            WDP=common.padded(widths[1], 1),
            PAGE=size,
            CP=common.padded(count, 1) if count else 0,
            num_warps=1 if count < 256 else 4,
        )
