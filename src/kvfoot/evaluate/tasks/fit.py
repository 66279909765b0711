"""A draft becomes a sample of a wanted length: book text between the items, counted in the model's own tokens."""

from __future__ import annotations

from kvfoot.evaluate.tasks.corpus import sentence_starts
from kvfoot.evaluate.tasks.draw import Draw
from kvfoot.evaluate.tasks.sample import Draft, Sample, Turn

FRAME = 6  # tokens of the chat template and the blank line before the question


def _turns_that_fit(draw: Draw, draft: Draft, room: int) -> tuple[tuple[Turn, ...], int]:
    """The first turns that leave the items in the room, and what then remains for filler."""
    room -= FRAME + draw.count([draft.head, *draft.items])
    kept = []
    for turn in draft.turns:
        cost = draw.count([turn.question, *turn.units]) + 3
        if cost > room:
            break
        room -= cost
        kept.append(turn)
    return tuple(kept), room


def _filler(draw: Draw, tokens: int) -> str:
    """Running text of at most `tokens` and at least 95 % of them, cut at a word."""
    probe = draw.corpus.passage(draw.rng, 2000)
    per_token = 2000 / draw.count([probe])
    text = draw.corpus.passage(draw.rng, int(tokens * per_token * 1.15))
    length = int(tokens * per_token)
    for _ in range(8):
        have = draw.count([text[:length]])
        if 0.97 * tokens <= have <= tokens or length >= len(text):
            break
        length = min(len(text), int(length * tokens / have * 0.985))
    while draw.count([text[:length]]) > tokens:
        length = int(length * 0.98)
    return text[: text.rfind(" ", 0, length)] if " " in text[:length] else text[:length]


def fit(draw: Draw, task: str, draft: Draft, room: int) -> Sample | None:
    """`draft` in `room` tokens: context, questions and answers together. None when not one question fits."""
    turns, left = _turns_that_fit(draw, draft, room)
    if not turns:
        return None
    metadata = dict(draft.metadata)
    if not draft.scatter or left < 24:
        return Sample(task, tuple(text for text in (draft.head, *draft.items) if text), turns, metadata)
    text = _filler(draw, left)
    places = sentence_starts(text) or [0]
    if draft.depth is not None:
        wanted = draft.depth * len(text)
        cuts = [min(places, key=lambda at: abs(at - wanted))] * len(draft.items)
    elif len(places) >= len(draft.items):
        cuts = sorted(draw.rng.sample(places, len(draft.items)))
    else:
        cuts = sorted(draw.pick(places) for _ in draft.items)
    pieces, last = [draft.head], 0
    for cut, item in zip(cuts, draft.items, strict=True):
        pieces += [text[last:cut], item]
        last = cut
    return Sample(task, tuple(piece for piece in (*pieces, text[last:]) if piece), turns, metadata)
