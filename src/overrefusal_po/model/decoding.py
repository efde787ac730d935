"""The decoding loop that stands in place of transformers' own: the same texts, with less work.

    if own_loop_serves(model, config):
        model.generate(**inputs, generation_config=config, custom_generate=Decoding())

- what all prompts of a batch begin with is read once, not in each row;
- further samples of a batch go on from what its prompts were read as (`prompt_cache`);
- a row leaves the batch when its text has ended;
- the cache has room ahead (`roomy_cache`), so a step does not copy it;
- the logits stay in the model's dtype if nothing but the most likely token is asked of them.

`generate` prepares the inputs, the logits processors and the ends as always, and calls the loop.
Sampled tokens are drawn with the numbers of the whole batch, also after rows left it. So a seed
gives the texts that transformers' loop gives.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from overrefusal_po.model.decoding_rows import Picker, Rows

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module
    from transformers import GenerationConfig, PreTrainedModel

    from overrefusal_po.model.prompt_cache import PromptCache
    from overrefusal_po.model.remedied import Installed

PLAIN: dict[str, tuple[object, ...]] = {
    "use_cache": (None, True),
    "cache_implementation": (None, "dynamic"),
    "guidance_scale": (None, 1, 1.0),
    "num_return_sequences": (None, 1),
    **dict.fromkeys(
        ("return_dict_in_generate", "prefill_chunk_size", "token_healing", "is_assistant"),
        (None, False),
    ),
    **dict.fromkeys(("watermarking_config", "compile_config"), (None,)),
}
"""Keys of GenerationConfig, and the values under which this loop does what transformers' does."""

LEAVING = 8
"""Rows leave when one in so many has ended: moving the cache of the others costs, too."""

CHECKED = 8
"""Steps between two looks at a GPU for ended texts: each look waits for it."""

EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
"""Config keys of mixtures of experts: transformers computes these otherwise while it decodes."""

GIVEN = {"attention_mask", "position_ids", "past_key_values", "use_cache", "logits_to_keep"}
"""What `generate` hands to the loop, and what the loop understands."""


class NotServed(Exception):
    """`generate` gave the loop something that it does not know; transformers' own loop does."""


FirstSeen = Callable[["Tensor", "Tensor"], None]
"""Gets what the output layer read at the prompts' last positions (B, D), and which rows (B,) are
decoded with exactly what it gave. Some models cap or scale that, and a remedy may add to it."""


def own_loop_serves(model: PreTrainedModel, config: GenerationConfig) -> bool:
    """Whether the loop does for this model and these settings what transformers' does."""
    import torch
    from transformers.generation.configuration_utils import GenerationMode

    inner = inner_model(model)
    if inner is None or inner.config.is_encoder_decoder:
        return False
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return False  # with sharded weights all processes take every step together
    if config.get_generation_mode() not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE):
        return False
    if any(getattr(config, key, None) not in allowed for key, allowed in PLAIN.items()):
        return False
    if any(getattr(inner.config.get_text_config(), key, None) for key in EXPERTS):
        return False
    known = set(inspect.signature(inner.forward).parameters)
    return {"attention_mask", "position_ids", "past_key_values"} <= known and plain_cache(inner)


def inner_model(model: PreTrainedModel) -> PreTrainedModel | None:
    """The model that `generate` runs: the one under an adapter; None under a learned prompt."""
    adapter = getattr(model, "active_peft_config", None) if hasattr(model, "peft_config") else None
    base = getattr(model, "get_base_model", None)
    if adapter is None or base is None:
        return model
    if getattr(adapter, "is_prompt_learning", False):
        return None
    found: PreTrainedModel = base()
    return found


def plain_cache(model: PreTrainedModel) -> bool:
    """Whether all that the model keeps of a text is keys and values."""
    from transformers import DynamicCache

    from overrefusal_po.model.roomy_cache import can_drop_rows

    return can_drop_rows(DynamicCache(config=model.config))


class Decoding:
    """The loop, as `custom_generate` of transformers' `generate`.

    Args:
        remedy: what is installed on the model; it decides for each row, and follows the rows.
        first_seen: is told what the model made of the prompts; None: nobody asks.
        prompts_read: what the prompts of the batch were read as, or will be; None: nothing is kept.
    """

    def __init__(
        self,
        *,
        remedy: Installed | None = None,
        first_seen: FirstSeen | None = None,
        prompts_read: PromptCache | None = None,
    ) -> None:
        self.remedy, self.first_seen = remedy, first_seen
        # a remedy decides in the pass that reads whole prompts
        self.prompts_read = prompts_read if remedy is None else None

    # Any: `generate` names what it has prepared, and processors and criteria are only called
    def __call__(
        self,
        model: PreTrainedModel,
        input_ids: Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: GenerationConfig,
        **given: Any,
    ) -> Tensor:
        """(B, T + new): the prompts and their responses, padded behind their ends.

        NotServed if `generate` gives something that the loop does not know.
        """
        if unknown := {key for key, value in given.items() if value is not None} - GIVEN:
            raise NotServed(", ".join(sorted(unknown)))
        pad = generation_config.pad_token_id
        rows = Rows(model, input_ids, given, pad=0 if pad is None else int(pad))
        pick = Picker(logits_processor, sampled=bool(generation_config.do_sample))
        self.go_on(rows, pick, self.prompt_logits(rows), stopping_criteria)
        return rows.texts()

    def prompt_logits(self, rows: Rows) -> Tensor:
        """(B, V): the logits behind the prompts, which are read if they are not known."""
        if self.prompts_read is None:
            return self.read_prompts(rows)
        mask = rows.mask
        known = self.prompts_read.take(rows) if self.first_seen is None else None
        if known is not None:
            return known
        found = self.read_prompts(rows)
        self.prompts_read.keep(rows, mask, found)
        return found

    def read_prompts(self, rows: Rows) -> Tensor:
        """(B, V): the logits behind the prompts."""
        # a remedy decides in the pass that reads whole prompts
        shared = 0 if self.remedy is not None else rows.shared_beginning()
        if self.first_seen is None:
            return rows.read(shared)
        with last_rows(rows.model.get_output_embeddings()) as seen:
            logits = rows.read(shared)
        if seen:
            states, given = seen[-1]
            self.first_seen(states, (given.to(logits) == logits).all(-1))
        return logits

    # Any: transformers does not name the type of a list of criteria in its root
    def go_on(self, rows: Rows, pick: Picker, logits: Tensor, criteria: Any) -> None:
        """Token after token until every text has ended."""
        may_leave = pick.row_by_row and rows.can_drop
        every = 1 if logits.device.type == "cpu" else CHECKED
        for step in range(1, criteria.max_length - rows.width + 1):
            rows.take(pick(rows, logits), criteria)
            if step == criteria.max_length - rows.width:
                return
            if step % every == 0 and self.all_ended(rows, may_leave):
                return
            logits = rows.next_logits()

    def all_ended(self, rows: Rows, may_leave: bool) -> bool:
        """Whether every text has ended; rows whose text has leave if they are enough."""
        ended = int(rows.ended.sum())
        if ended == len(rows.live):
            return True
        if may_leave and ended * LEAVING >= len(rows.live):
            stay = (~rows.ended).nonzero()[:, 0]
            rows.keep(stay)
            if self.remedy is not None:
                self.remedy.keep_rows(stay)
        return False


@contextlib.contextmanager
def last_rows(head: Module | None) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """What a module reads and gives at the last position, (B, D) and (B, V), a list that grows;
    without a module it stays empty."""
    found: list[tuple[Tensor, Tensor]] = []
    if head is None:
        yield found
        return

    # a clone: a remedy adds to the logits in place
    def note(_: Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        found.append((inputs[0][:, -1], output[:, -1].clone()))

    handle = head.register_forward_hook(note)
    try:
        yield found
    finally:
        handle.remove()
