"""RefreshKV's training attention: a causal prefix, and a tail that sees K chosen entries of it (arXiv 2411.05787).

The mask of its section on continued pre-training, for a row of L + S tokens:

    tokens [0, L)       ordinary causal attention
    tokens [L, L + S)   per KV head the K entries of the prefix that its last token's attention ranks best, chosen once
                        per layer and never again, and all tokens from L on, causally

The choice is the method's own at a refresh (methods/read/refreshkv.py): its last entry always, the others by softmax,
maximum over a KV head's query heads, max-pooling. It is taken as constant: no gradient goes through the ranking.
No mask of (L + S)^2 is made: one causal attention over the prefix, and one of S queries over K + S gathered entries.

Shapes: B rows, G KV heads, H query heads per KV head, L prefix, S tail, D dimensions per head.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from kvfoot.core.errors import UsageError
from kvfoot.methods.read.refreshkv import best
from kvfoot.methods.tools import Join
from kvfoot.train.mixed import Mixed, Near, full


class TwoPart(Mixed):
    """The attention of a model, as long as `attached`. tail: S, size: K; chosen: int64 [B, G, K] of the last pass."""

    def __init__(self, tail: int, size: int, kernel: int = 7, group: Join = "max"):
        super().__init__(Near())
        if tail < 1 or size < 1:
            raise UsageError(f"tail={tail}, size={size}: give at least 1 token each")
        self.tail, self.size, self.kernel, self.group = tail, size, kernel, group
        self.chosen: dict[int, Tensor] = {}

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """query [B, G x H, L + S, D], key and value [B, G, L + S, D] -> [B, L + S, G x H, D]."""
        B, heads, T, D = query.shape
        G, L = key.shape[1], T - self.tail
        if self.size >= L:
            raise UsageError(f"a row of {T} tokens leaves {L} before the tail: it has to be more than size={self.size}")
        q = query.view(B, G, heads // G, T, D)
        chosen = self.chosen[layer] = select(
            q[:, :, :, L - 1], key[:, :, :L], scale, self.size, self.kernel, self.group
        )
        pick = chosen[..., None].expand(-1, -1, -1, D)
        near_k, near_v = (torch.cat([x[:, :, :L].gather(2, pick), x[:, :, L:]], 2) for x in (key, value))
        S, K = self.tail, self.size
        mask = torch.cat([q.new_ones(S, K, dtype=torch.bool), q.new_ones(S, S, dtype=torch.bool).tril()], 1)
        H = heads // G
        wide_k, wide_v = (x[:, :, None].expand(B, G, H, K + S, D).reshape(B, heads, K + S, D) for x in (near_k, near_v))
        late = F.scaled_dot_product_attention(query[:, :, L:], wide_k, wide_v, mask, scale=scale)
        early = full(q[:, :, :, :L], key[:, :, :L], value[:, :, :L], scale).reshape(B, heads, L, D)
        return torch.cat([early, late], 2).transpose(1, 2)


@torch.no_grad()
def select(q_BGHD: Tensor, key: Tensor, scale: float, size: int, kernel: int, group: Join) -> Tensor:
    """int64 [B, G, size], worst first, the last one L - 1: what the prefix's last query, key [B, G, L, D], chooses."""
    B, G, L = key.shape[:3]
    logits = torch.einsum("bghd,bgnd->bghn", q_BGHD.float() * scale, key.float())
    scores = logits.softmax(-1)[..., : L - 1].reshape(B * G, -1, L - 1)
    slots = best(scores.contiguous(), size - 1, kernel, group)
    last = torch.full((B * G, 1), L - 1, device=key.device)
    return torch.cat([slots, last], 1).view(B, G, size)
