"""Contrastive decoding as numbers: a prompt with a safety text in it, and what both say together.

    twin_ids(change, ids)                       # the prompt's ids with the safety text in them
    contrasted(change, 1.0, plain, behind)      # (..., V): the logits that are decoded with

`plain` are the logits of the prompt, `behind` those of the prompt behind the safety text. With
strength a:

- `self` (Self-CD, Shi et al. 2024, arXiv 2401.17633): plain - a (behind - plain).
- `adaptive` (AdaCD, Qi et al. 2026, arXiv 2604.17132): behind + a (behind - plain) if both agree,
  else behind - a (behind - plain). They agree if 1 / (rank of behind's best token in plain, from 1)
  and (the greatest probability of plain) / (that of behind) are at least `agreement`. A token with
  less than `plausible` times the greatest probability of plain is forbidden.

`model.second_stream` reads the second prompts; `model.remedied` puts both on a model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

Rule = Literal["self", "adaptive"]

FORBIDDEN = 100.0
"""By how many nats a forbidden token is below every other. It is finite: if something else forbids
all others (a recipe's suppressed tokens), plain's best of the rest is said."""


class Opening(NamedTuple):
    """A prompt that begins with the ids `before` gets `after` in their place."""

    before: tuple[int, ...]
    after: tuple[int, ...]


class Contrast(NamedTuple):
    """The first logits of a response are set against those behind a safety text.

    Attributes:
        rule: how both are put together.
        tokens: positions of the response, from the first; 0: all of them.
        openings: how prompts may begin, the longest first; the last one fits every prompt.
        bos: the id that may stand before them; None without one.
        agreement, plausible: of `adaptive`, as above.
    """

    rule: Rule
    tokens: int
    openings: tuple[Opening, ...]
    bos: int | None = None
    agreement: float = 0.9
    plausible: float = 0.01

    @property
    def more(self) -> int:
        """By how many tokens a prompt becomes longer, at most."""
        return max(len(one.after) - len(one.before) for one in self.openings)

    @property
    def ids(self) -> list[int]:
        """Every token id in it."""
        known = [token for one in self.openings for token in (*one.before, *one.after)]
        return known if self.bos is None else [*known, self.bos]


def twin_ids(change: Contrast, ids: Sequence[int]) -> list[int]:
    """The ids of a prompt with the safety text in it. A BOS stays in front."""
    begins = int(bool(ids) and ids[0] == change.bos)
    head, rest = list(ids[:begins]), tuple(ids[begins:])
    found = next(one for one in change.openings if rest[: len(one.before)] == one.before)
    return [*head, *found.after, *rest[len(found.before) :]]


def contrasted(change: Contrast, strength: float, plain: Tensor, behind: Tensor) -> Tensor:
    """(..., V) logits to decode with, in 32 bits at least, from those of both streams."""
    import torch

    kind = torch.promote_types(plain.dtype, torch.float32)
    plain, behind = plain.to(kind), behind.to(kind)
    step = strength * (behind - plain)
    if change.rule == "self":
        return plain - step
    sure, best = plain.softmax(-1), behind.argmax(-1, keepdim=True)
    above = (plain > plain.gather(-1, best)).sum(-1, keepdim=True)
    greatest = sure.amax(-1, keepdim=True)
    agrees = (1 / (above + 1) >= change.agreement) & (
        greatest >= change.agreement * behind.softmax(-1).amax(-1, keepdim=True)
    )
    found = torch.where(agrees, behind + step, behind - step)
    allowed = sure >= change.plausible * greatest
    lowest = found.masked_fill(~allowed, torch.inf).amin(-1, keepdim=True)
    barred = lowest - FORBIDDEN + plain - plain.amax(-1, keepdim=True)
    return torch.where(allowed, found, barred)


def contrast_parts(change: Contrast) -> dict[str, object]:
    """All of a contrast, as remedy.json holds it."""
    openings = [[list(one.before), list(one.after)] for one in change.openings]
    return {"kind": "contrast", **change._asdict(), "openings": openings}


# Any: what JSON holds
def read_contrast(known: Mapping[str, Any]) -> Contrast:
    """The contrast as `contrast_parts` wrote it. ValueError, KeyError or TypeError if it is another
    thing."""
    rule, tokens = known["rule"], int(known["tokens"])
    openings = tuple(Opening(*(tuple(map(int, ids)) for ids in one)) for one in known["openings"])
    bos = None if known["bos"] is None else int(known["bos"])
    shares = [float(known[key]) for key in ("agreement", "plausible")]
    found = Contrast(rule, tokens, openings, bos, *shares)
    if rule not in ("self", "adaptive") or tokens < 0 or not all(0 <= one <= 1 for one in shares):
        raise ValueError(f"it has the rule {rule!r} for {tokens} tokens, and the shares {shares}")
    if not openings or openings[-1].before or min(found.ids) < 0:
        raise ValueError("its last opening does not fit every prompt, or an id is below 0")
    return found
