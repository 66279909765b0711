"""The memory that a replayed decode step reads and writes: allocated once, never moved.

Legend: B sequences of the bucket, L layers, R = B x KV heads rows of a layer, row b x KV heads + head.
"""

import numpy as np
import torch
from torch import Tensor

from kvfoot.cache.pool import Pool
from kvfoot.core.geometry import Geometry

PER_SEQUENCE = ("position", "stream")
PER_ROW = ("lens", "slots", "goal", "due", "counts")


class Buffers:
    """Written by the host before a step, in one copy: `words[name]`, int64.

    position [B]: of the token that is fed; stream [B]: keys of the sequences' random numbers; idle [1]: a slot that is
    nobody's. lens [L, R]: entries after the new one is stored, 0 in an idle row; slots: where it is stored; goal: where
    it is to lie in the end, where the host knows that (oldest.py); due: 1 where the device has to find out; counts:
    what is kept.

    tables[layer] int32 [R, P]: page numbers, P the most pages of a row of that layer. tokens int64 [1, B]: fed; the
    step leaves the next ones there. answer: what the host reads after a step (`answered`).
    """

    def __init__(self, pool: Pool, geometry: Geometry, size: int, widths: list[int]):
        """size: B. widths: P of every layer."""
        L, R, device = geometry.layers, size * geometry.kv_heads, pool.device
        self.device, self.size, self.rows, self.widths = device, size, R, tuple(widths)
        sizes = dict.fromkeys(PER_SEQUENCE, size) | {"idle": 1} | dict.fromkeys(PER_ROW, L * R)
        shapes = dict.fromkeys(PER_SEQUENCE, (size,)) | {"idle": (1,)} | dict.fromkeys(PER_ROW, (L, R))
        self._pinned = device.type == "cuda"
        self._sent = torch.zeros(sum(sizes.values()), dtype=torch.int64, pin_memory=self._pinned)
        self._words = torch.zeros(len(self._sent), dtype=torch.int64, device=device)
        self.host: dict[str, np.ndarray] = {}
        self.words: dict[str, Tensor] = {}
        at = 0
        for name, count in sizes.items():
            self.host[name] = self._sent.numpy()[at : at + count].reshape(shapes[name])
            self.words[name] = self._words[at : at + count].view(shapes[name])
            at += count
        self._pitches = np.array(widths)
        self._offsets = np.concatenate([[0], np.cumsum([R * P for P in widths])])
        self._pages = torch.zeros(int(self._offsets[-1]), dtype=torch.int32, device=device)
        self.tables = [self._pages[a : a + R * P].view(R, P) for a, P in zip(self._offsets, widths, strict=False)]
        self.size_of_tables = len(self._pages)
        self.tokens = torch.zeros(1, size, dtype=torch.int64, device=device)
        self.fired = torch.zeros(L, R, dtype=torch.int64, device=device)
        self.answer = torch.zeros(size + L + 1 + L * R, dtype=torch.int64, device=device)
        self._got = torch.zeros(self.answer.shape, dtype=torch.int64, pin_memory=self._pinned)
        self._event = torch.cuda.Event() if self._pinned else None

    def send(self) -> None:
        """The host's words to the device; none of them may change until the step has been `answered`."""
        self._words.copy_(self._sent, non_blocking=True)

    def split(self, pages: np.ndarray) -> list[np.ndarray]:
        """Views [R, P] of all tables' page numbers, which lie one behind the other."""
        ends = zip(self._offsets, self._offsets[1:], self.widths, strict=False)
        return [pages[a:b].reshape(self.rows, P) for a, b, P in ends]

    def index(self, layer: np.ndarray, row: np.ndarray, place: np.ndarray) -> np.ndarray:
        """Where tables[layer][row, place] lies among them."""
        found: np.ndarray = self._offsets[layer] + row * self._pitches[layer] + place
        return found

    def fill(self, pages: np.ndarray) -> None:
        """All tables anew, int32."""
        self._pages.copy_(torch.from_numpy(pages))

    def put(self, index: np.ndarray, page: np.ndarray) -> None:
        """Page numbers `page` at `index`: rows that have got a page. No wait for the device."""
        self._pages.index_copy_(0, self.sent(index), self.sent(page).int())

    def sent(self, numbers: np.ndarray) -> Tensor:
        """int64 numbers of the host on the device."""
        found = torch.from_numpy(np.ascontiguousarray(numbers, np.int64))
        return found.pin_memory().to(self.device, non_blocking=True) if self._pinned else found

    def feed(self, tokens: list[int]) -> None:
        """The tokens of the first of several steps."""
        self.tokens.copy_(self.sent(np.array([tokens])), non_blocking=True)

    def fetch(self) -> None:
        """Start the way of the step's answer to the host."""
        self._got.copy_(self.answer, non_blocking=True)
        if self._event is not None:
            self._event.record(torch.cuda.current_stream(self.device))

    def answered(self) -> tuple[list[int], np.ndarray, np.ndarray]:
        """Tokens [B], finite bool [L + 1] (layers, logits), fired bool [L, R]: the one wait of a decode step."""
        if self._event is not None:
            self._event.synchronize()
        found, B, L = self._got.numpy(), self.size, len(self.tables)
        finite = found[B : B + L + 1] != 0
        return found[:B].tolist(), finite, found[B + L + 1 :].reshape(L, self.rows) != 0
