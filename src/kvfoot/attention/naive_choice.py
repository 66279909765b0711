"""What refreshes choose, by definition, in loops: what triton/select.py and triton/vote.py are judged by.

R rows, H query heads per row, m entries; base-2 logits fp32 [R, H, m], of which the first lens[r] count.
"""

from torch import Tensor


def best(
    logits_RHm: Tensor, lse_RH: Tensor, lens_R: Tensor, count: int, kernel: int, sink: int, leaving: int
) -> list[tuple[list[int], list[int]]]:
    """Per row, of its entries before the newest: the `leaving` worst of the `count` best, worst first, and the others.

    Best: by log2 w, the greatest of the query heads and of `kernel` neighbours (infinite for the first `sink`), then by
    the entry's own, then the later one. Base-2 logits and natural lse: log2 w = logit - lse / ln 2.
    """
    found = []
    for s, lse, n in zip(logits_RHm, lse_RH, lens_R.tolist(), strict=True):
        m, half = max(n - 1, 0), kernel // 2
        own = (s[:, :m] - (lse * 1.4426950408889634)[:, None]).amax(0).tolist()
        pooled = [float("inf") if j < sink else max(own[max(0, j - half) : j + half + 1]) for j in range(m)]
        order = sorted(range(m), key=lambda j: (pooled[j], own[j], j))[max(0, m - count) :]
        found.append((order[:leaving], sorted(order[leaving:])))
    return found


def vote(
    logits_RHm: Tensor, lens_R: Tensor, sequences: int, first: int, last: int, count: int
) -> list[tuple[list[int], Tensor]]:
    """Per sequence: of entries [first, n - last), those that its heads vote for most, ascending, and all votes.

    A head's vote is its softmax over these entries. Base-2 logits.
    """
    found = []
    for s, n in zip(logits_RHm.unflatten(0, (sequences, -1)), lens_R.view(sequences, -1)[:, 0].tolist(), strict=True):
        votes = (s[..., first : max(n - last, first)] * 0.6931471805599453).softmax(-1).sum((0, 1))
        best = votes.argsort(stable=True)[max(0, len(votes) - count) :]
        found.append((sorted((best + first).tolist()), votes))
    return found
