"""What a batch's prompts were read as, for further samples of the same batch: they are read once.

    cache = PromptCache()
    cache.more = True               # the batch is asked again
    Decoding(prompts_read=cache)

The keys, values and logits are the very ones of the first reading, so the texts stay the same. One
batch is kept at a time: the keys and values of its prompts, and only while it is asked again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

    from overrefusal_po.model.decoding_rows import ReadState, Rows


class Kept(NamedTuple):
    """A batch's prompts (B, T) and mask as they were given, and what reading them left."""

    prompts: Tensor
    mask: Tensor | None
    state: ReadState
    logits: Tensor


class PromptCache:
    """Keeps what reading the last batch left, while `more` says that it is asked again."""

    def __init__(self) -> None:
        self.more = False
        self.kept: Kept | None = None

    def take(self, rows: Rows) -> Tensor | None:
        """(B, V): the logits behind the prompts, and `rows` goes on as if it had read them. None if
        another batch was read last, which is then forgotten."""
        kept = self.kept
        if not self.more:
            self.kept = None
        if kept is None or not rows.roomy:
            return None
        if not (same(kept.prompts, rows.prompts) and same(kept.mask, rows.mask)):
            self.kept = None
            return None
        rows.go_on_from(kept.state)
        return kept.logits.clone()

    def keep(self, rows: Rows, mask: Tensor | None, logits: Tensor) -> None:
        """Keeps what `rows` has read; `mask` is that of the prompts as they were given."""
        if self.more and rows.roomy:
            self.kept = Kept(rows.prompts, mask, rows.read_state(), logits.clone())


def same(a: Tensor | None, b: Tensor | None) -> bool:
    """Whether both are None, or tensors of one shape with the same values."""
    import torch

    if a is None or b is None:
        return a is b
    return a.shape == b.shape and torch.equal(a, b)
