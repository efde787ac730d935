"""The rows of a batch that is decoded: their tokens, masks, positions and cache; and how the next
token is picked. `decoding` has the loop.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from overrefusal_po.model.finite import FiniteLogits

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

ALONE = (
    *("MinLength", "MinNewTokensLength", "NoRepeatNGram", "SequenceBias"),
    *("NoBadWords", "ForcedEOSToken", "InfNanRemove", "SuppressTokensAtBegin", "SuppressTokens"),
)
WARPERS = ("Temperature", "TopP", "TopK", "TopH", "MinP", "Typical", "Epsilon", "Eta")
ROW_BY_ROW = {
    "FiniteLogits",
    *(f"{name}LogitsProcessor" for name in ALONE),
    *(f"{name}LogitsWarper" for name in WARPERS),
}
"""Logits processors that look at each row alone. Others may know the whole batch."""

BLOCK = 256
"""Words that are compared at a time."""

SHARED_TOKENS = 256
"""Tokens that a shared beginning must save: reading it is a pass of its own."""


class ReadState(NamedTuple):
    """Where rows stand behind their prompts: the mask in the order of the cache, the next positions
    (B, 1), and each layer's keys and values (B, heads, T, D)."""

    mask: Tensor | None
    places: Tensor
    layers: list[tuple[Tensor, Tensor]]


class Rows:
    """The rows of a batch while their texts grow.

    Attributes:
        ids: (b, T + t) tokens of the rows that are still here, prompts and responses.
        live: (b,) their numbers in the whole batch of B.
        ended: (b,) whether their text has ended.
        mask: (b, T + t) what a row may look at, in the order of the cache; None: everything.
        width: T, tokens of a prompt with its padding.
        pad: the token that stands behind the end of a text.
        can_drop: whether rows can leave the cache.
    """

    # Any: what `generate` has prepared; see `decoding.GIVEN`
    def __init__(
        self, model: PreTrainedModel, prompts: Tensor, given: Mapping[str, Any], *, pad: int
    ) -> None:
        import torch

        from overrefusal_po.model.roomy_cache import can_drop_rows, make_roomy

        self.model, self.prompts, self.ids = model, prompts, prompts
        self.mask: Tensor | None = given.get("attention_mask")
        self.cache = given.get("past_key_values")
        self.roomy = make_roomy(self.cache)
        self.can_drop = can_drop_rows(self.cache)
        count, self.width = prompts.shape
        self.live = torch.arange(count, device=prompts.device)
        self.ended = torch.zeros(count, dtype=torch.bool, device=prompts.device)
        self.pad, self.columns = pad, [prompts]
        self.options = {key: given[key] for key in ("logits_to_keep",) if key in given}
        self.places: Tensor | None = None

    def shared_beginning(self) -> int:
        """How many tokens all prompts begin with; 0 if reading them once saves too little."""
        import torch

        count = len(self.live)
        if not self.roomy or count < 2:
            return 0
        padding = self.padding()
        # one token at least is left to each row; an empty text has none
        length = max(self.width - int(padding.max()) - 1, 0)
        columns = padding[:, None] + torch.arange(length, device=padding.device)
        first = self.ids.gather(1, columns)
        same = (first == first[:1]).all(0).long()
        found = int(same.cumprod(0).sum())
        return found if found * (count - 1) >= SHARED_TOKENS else 0

    def padding(self) -> Tensor:
        """(b,) tokens of padding in front of each prompt."""
        import torch

        if self.mask is None:
            return torch.zeros_like(self.live)
        return self.width - self.mask.sum(1)

    def read(self, shared: int) -> Tensor:
        """(B, V): the logits behind the prompts. Their first `shared` tokens are read once."""
        import torch

        mask = torch.ones_like(self.ids) if self.mask is None else self.mask
        if shared:
            padding = self.padding()
            self.begin_with(self.ids[:1, int(padding[0]) :][:, :shared])
            # in the cache the beginning comes first, then a row's padding, then the rest
            rest = torch.arange(self.width - shared, device=mask.device) >= padding[:, None]
            mask = torch.cat([mask.new_ones(len(mask), shared), rest.to(mask.dtype)], 1)
            self.mask = None if self.mask is None else mask
        places = (mask.cumsum(-1) - 1).clamp(min=0)[:, shared:]
        return self.logits(self.ids[:, shared:], places)

    def begin_with(self, tokens: Tensor) -> None:
        """Reads what all prompts begin with (1, t), and puts it into the cache of each row."""
        import torch
        from transformers import DynamicCache

        from overrefusal_po.model.roomy_cache import repeat_rows

        cache = DynamicCache(config=self.model.config)
        places = torch.arange(tokens.shape[1], device=tokens.device)[None]
        self.model(
            input_ids=tokens,
            position_ids=places,
            past_key_values=cache,
            use_cache=True,
            **self.options,
        )
        assert self.cache is not None, "a roomy one"
        repeat_rows(self.cache, cache, len(self.live))

    def read_state(self) -> ReadState:
        """What the prompts left, for `go_on_from`. The tensors are not copied: a step writes behind
        them, never into them."""
        from overrefusal_po.model.roomy_cache import layers_held

        assert self.cache is not None and self.places is not None, "the prompts were read"
        return ReadState(self.mask, self.places, layers_held(self.cache))

    def go_on_from(self, state: ReadState) -> None:
        """Stands behind the prompts as the rows did that `state` is of, with a cache of its own."""
        from overrefusal_po.model.roomy_cache import begin_with_layers

        assert self.cache is not None, "a roomy one"
        begin_with_layers(self.cache, state.layers)
        self.mask, self.places = state.mask, state.places

    def logits(self, tokens: Tensor, places: Tensor) -> Tensor:
        """(b, V): the logits behind these tokens (b, t) at these positions (b, t)."""
        self.places = places[:, -1:] + 1
        found = self.model(
            input_ids=tokens,
            attention_mask=self.mask,
            position_ids=places,
            past_key_values=self.cache,
            use_cache=True,
            return_dict=True,
            **self.options,
        )
        logits: Tensor = found.logits[:, -1]
        return logits

    # Any: a list of transformers' stopping criteria
    def take(self, tokens: Tensor, criteria: Any) -> None:
        """The next token of each row (b,); the criteria say which texts end with it."""
        import torch

        tokens = tokens.masked_fill(self.ended, self.pad)
        column = self.prompts.new_full((len(self.prompts), 1), self.pad)
        column[self.live, 0] = tokens
        self.columns.append(column)
        self.ids = torch.cat([self.ids, tokens[:, None]], 1)
        self.ended = self.ended | criteria(self.ids, None)

    def texts(self) -> Tensor:
        """(B, T + new): every prompt and its response, padded behind its end."""
        import torch

        return torch.cat(self.columns, 1)

    def next_logits(self) -> Tensor:
        """(b, V): the logits behind the tokens that were taken last."""
        import torch

        assert self.places is not None, "the prompts were read"
        if self.mask is not None:
            self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], 1)
        return self.logits(self.ids[:, -1:], self.places)

    def keep(self, rows: Tensor) -> None:
        """Only these rows (numbers among those that are here) go on."""
        assert self.cache is not None and self.places is not None, "the prompts were read"
        self.cache.batch_select_indices(rows)
        self.ids, self.live, self.ended = self.ids[rows], self.live[rows], self.ended[rows]
        self.places = self.places[rows]
        self.mask = None if self.mask is None else self.mask[rows]


class Picker:
    """How the next token of each row is chosen: by transformers' logits processors, and then the
    most likely one, or one that is drawn.

    Args:
        processors: a list of transformers' logits processors.
        sampled: whether tokens are drawn.
        row_by_row: whether rows may leave, since each processor looks at each row alone.
    """

    # Any: transformers' list of processors, which is only called and read
    def __init__(self, processors: Any, *, sampled: bool) -> None:
        self.processors, self.sampled = processors, sampled
        self.row_by_row = all(type(one).__name__ in ROW_BY_ROW for one in processors)
        self.plain = not sampled and all(type(one) is FiniteLogits for one in processors)

    def __call__(self, rows: Rows, logits: Tensor) -> Tensor:
        """(b,): the next token of each row, by its logits (b, V)."""
        import torch

        # processors write into their scores, and want 32-bit ones
        logits = logits.to(rows.ids.device)
        # `generate` picks among 32-bit scores; those of 16 bits have the same order and equals
        short = self.plain and logits.dtype != torch.float64
        kept = logits if short else logits.to(copy=True, dtype=torch.float32)
        scores: Tensor = self.processors(rows.ids, kept)
        if not self.sampled:
            return most_likely(scores)
        return self.drawn(scores.softmax(-1), rows)

    def drawn(self, chances: Tensor, rows: Rows) -> Tensor:
        """(b,): a token of each row. The numbers are those that the whole batch would use, so what
        a row gets does not change when others leave."""
        import torch

        if len(rows.live) == len(rows.prompts):
            return torch.multinomial(chances, 1)[:, 0]
        every = chances.new_zeros(len(rows.prompts), chances.shape[1])
        every[:, 0] = 1
        every[rows.live] = chances
        return torch.multinomial(every, 1)[rows.live, 0]


def most_likely(scores: Tensor) -> Tensor:
    """(b,): `scores.argmax(-1)` of (b, V), the first of equal ones. On a CPU it takes a tenth of
    the time: first the best block of words, then the best word in it."""
    import torch

    words = scores.shape[1]
    whole = words - words % BLOCK
    if scores.device.type != "cpu" or not whole:
        return scores.argmax(-1)
    tops = scores[:, :whole].unflatten(1, (-1, BLOCK)).amax(-1)
    if whole < words:
        tops = torch.cat([tops, scores[:, whole:].amax(-1, keepdim=True)], 1)
    start = tops.argmax(-1) * BLOCK
    # behind the last word comes the last word again, and of equal ones the first is taken
    columns = (start[:, None] + torch.arange(BLOCK)).clamp(max=words - 1)
    found: Tensor = start + scores.gather(1, columns).argmax(-1)
    return found
