"""What the output layer reads behind a prompt, kept while responses are made: the logits of the
first token, without a second pass over the prompts.

states = FirstStates({"3f2a..."})             # ids of the prompts that will be asked for
engine.first_states = states                  # `complete` fills it
states.logits(engine.model, ["3f2a..."])      # (1, V)

A state has D numbers, logits have one for each word.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from overrefusal_po.model.decoding import FirstSeen


class FirstStates:
    """The output layer's inputs at the last positions of prompts, by prompt id, on the CPU.

    Args:
        wanted: ids of the prompts to keep. More can be added.
    """

    def __init__(self, wanted: Iterable[str] = ()) -> None:
        self.wanted = set(wanted)
        self.rows: dict[str, Tensor] = {}
        self.seen: set[str] = set()
        """Wanted prompts that were read, also if their states are not kept."""

    def __contains__(self, prompt_id: str) -> bool:
        return prompt_id in self.rows

    def keeper(self, prompt_ids: Sequence[str]) -> FirstSeen | None:
        """What keeps the states of a batch; None if none of them is wanted."""
        if self.wanted.isdisjoint(prompt_ids):
            return None
        return lambda states, own: self.keep(prompt_ids, states, own)

    def keep(self, prompt_ids: Sequence[str], states: Tensor, own: Tensor) -> None:
        """Keeps those of the states (B, D) from which the output layer alone makes the logits, as
        `own` (B,) says. The other prompts are read again when they are asked for. What was kept of
        a prompt before is forgotten: the weights may be others."""
        for one in prompt_ids:
            self.rows.pop(one, None)
        rows = zip(prompt_ids, states.cpu(), own.tolist(), strict=True)
        # a clone: a row of a view would hold the whole batch
        self.rows |= {one: row.clone() for one, row, ok in rows if ok and one in self.wanted}
        self.seen |= self.wanted.intersection(prompt_ids)

    def clear(self) -> None:
        """Forgets what was read."""
        self.rows.clear()
        self.seen.clear()

    def logits(self, model: PreTrainedModel, prompt_ids: Sequence[str]) -> Tensor:
        """(B, V): the logits of the first token behind each prompt."""
        import torch

        return from_head(model, torch.stack([self.rows[one] for one in prompt_ids]))


def from_head(model: PreTrainedModel, states: Tensor) -> Tensor:
    """(B, V): what the output layer makes of states (B, D)."""
    import torch

    head = model.get_output_embeddings()
    assert head is not None, "its inputs were kept"
    weight = next(head.parameters())
    with torch.inference_mode():
        found: Tensor = head(states.to(weight.device)[:, None].contiguous())[:, 0]
    return found
