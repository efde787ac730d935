"""The prompts at hand behind a safety text, read beside the prompts themselves, with a cache of
their own.

    stream = SecondStream(model, change)
    stream.begin(run, ids, mask)        # (B, 1, V): the logits of the response's first token
    stream.go_on(run, new_ids, mask, fed=0)     # (B, n, V): of the tokens behind the new ones

It costs a second pass over each prompt and over the first tokens of its response. Behind the last
position that is contrasted it holds no cache and reads nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from overrefusal_po.model.contrast import Contrast, twin_ids

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import DynamicCache, PreTrainedModel

# Any: a forward pass returns what transformers says
Run = Callable[..., Any]


class SecondStream:
    """The second stream of one batch of responses.

    Attributes:
        cache: what it has read; None if it is not needed any more.
        mask: (B, T) of that, 0 for padding.
        fed: how many tokens of the responses it has read.
    """

    def __init__(self, model: PreTrainedModel, change: Contrast) -> None:
        self.model, self.change = model, change
        self.cache: DynamicCache | None = None
        self.mask: Tensor | None = None
        self.fed = 0

    def stop(self) -> None:
        """Nothing more is read."""
        self.cache = self.mask = None

    def keep_rows(self, rows: Tensor) -> None:
        """Only these rows of the responses at hand go on."""
        if self.cache is not None and self.mask is not None:
            self.cache.batch_select_indices(rows)
            self.mask = self.mask[rows]

    def begin(self, run: Run, ids: Tensor, mask: Tensor | None) -> Tensor:
        """(B, 1, V): the logits behind the prompts (B, T), with the safety text in them."""
        import torch
        from transformers import DynamicCache

        real = torch.ones_like(ids) if mask is None else mask
        rows = [row[keep].tolist() for row, keep in zip(ids, real.bool(), strict=True)]
        twins = [torch.tensor(twin_ids(self.change, row)) for row in rows]
        pad = torch.nn.utils.rnn.pad_sequence
        given = pad(twins, batch_first=True, padding_side="left").to(ids.device)
        marks = [torch.ones_like(twin) for twin in twins]
        self.mask = pad(marks, batch_first=True, padding_side="left").to(ids.device)
        self.cache, self.fed = DynamicCache(config=self.model.config), 0
        found = self.read(run, given, keep=1)
        self.end_at(1)
        return found

    def go_on(self, run: Run, ids: Tensor, mask: Tensor | None, *, fed: int) -> Tensor | None:
        """(B, n, V): the logits behind the responses' next tokens (B, N), n <= N of them. None if
        none is contrasted.

        `fed`: how many tokens of the responses were read before. ValueError if the second stream
        has read others.
        """
        import torch

        if self.cache is None or self.mask is None:
            return None
        if (fed, len(ids)) != (self.fed, len(self.mask)):
            raise ValueError(
                f"The remedy's second stream has read {self.fed} tokens of {len(self.mask)} "
                f"responses, and {len(ids)} go on behind {fed}. Beams, continuous batching and "
                "caches that are cut cannot be used with it."
            )
        # a mask is of the prompts too; its last columns are those of the new tokens
        new = torch.ones_like(ids) if mask is None else mask[:, -ids.shape[1] :]
        left = self.change.tokens - 1 - fed if self.change.tokens else ids.shape[1]
        ids = ids[:, :left]
        self.mask = torch.cat([self.mask, new[:, :left].to(self.mask)], 1)
        found = self.read(run, ids, keep=0)
        self.fed += ids.shape[1]
        self.end_at(self.fed + 1)
        return found

    def read(self, run: Run, ids: Tensor, *, keep: int) -> Tensor:
        """The logits of a pass over the next ids; `keep` of the last positions, 0 for all."""
        assert self.mask is not None
        places = (self.mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        found: Tensor = run(
            input_ids=ids,
            attention_mask=self.mask,
            position_ids=places,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=keep,
        ).logits
        return found[:, -keep:]

    def end_at(self, said: int) -> None:
        """Stops if `said` positions are all that are contrasted."""
        if self.change.tokens and said >= self.change.tokens:
            self.stop()
