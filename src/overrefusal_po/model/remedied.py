"""A fitted remedy on a loaded model.

    with remedied(model, remedy):
        model.generate(...)           # a batch may hold prompts that the gate lets through or not
    install(model, remedy)            # until the process ends; `remedy_of(model)` finds it
    check_generation({"num_beams": 4})                  # ValueError

The model's `forward` is wrapped. A pass without a cache, or with an empty one, begins new
responses: the gate reads the prompts, and what it decides stays until the next such pass. Steering
changes only the last positions of a prompt, so the cache of the pass that decided is kept up to
them, and only they are read again. A gated change of weights concerns every position, so the prompt
is read twice. So it is if a cache cannot be cut (long prompts under sliding windows).

Contrastive decoding reads every prompt a second time with a safety text in it, beside the first
stream, and sets the first logits of a response against it (`model.second_stream`).

A response that is longer than one token behind an uncached prompt would be read as a prompt. Read
it behind the prompt's cache (`evaluate.capability` does).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from overrefusal_po.model.blocks import blocks, kept_streams, stream, with_stream
from overrefusal_po.model.contrast import Contrast, contrasted
from overrefusal_po.model.remedy import (
    Deltas,
    FirstLogits,
    Gate,
    Remedy,
    Steering,
    check_shape,
    remedy_id,
)
from overrefusal_po.model.second_stream import SecondStream

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module
    from transformers import PreTrainedModel

BY_POSITION = ("position_ids", "token_type_ids", "cache_position")
"""Arguments of a forward pass that have a value for each token."""

ATTRIBUTE = "overrefusal_po_remedy"
"""The attribute of a model that holds what is installed on it."""

# Any: a forward pass takes and returns what transformers says
Forward = Callable[..., Any]

ONE_BY_ONE: Mapping[str, tuple[object, ...]] = {
    "num_beams": (None, 1),
    "num_return_sequences": (None, 1),
    "use_cache": (None, True),
    "guidance_scale": (None, 1, 1.0),
    **dict.fromkeys(
        ("prefill_chunk_size", "prompt_lookup_num_tokens", "assistant_early_exit", "low_memory"),
        (None, False),
    ),
    "cache_implementation": (None, "dynamic", "dynamic_full"),
}
"""Keys of GenerationConfig under which a model is not asked for a whole prompt and then for one
token at a time, and the values that change nothing about that."""


def check_generation(settings: Mapping[str, object]) -> None:
    """Raises ValueError for settings of generation with which a remedy cannot be served."""
    for key, allowed in ONE_BY_ONE.items():
        if settings.get(key) not in allowed:
            raise ValueError(
                f"engine.generation_config has {key}: {settings[key]}, and the model has a remedy. "
                "A remedy reads each prompt once and then one token at a time. Take the key out, "
                "or model.remedy."
            )


class Installed:
    """A remedy on a model: its hooks, and the state of the responses that are being generated.

    Attributes:
        id: the remedy's, which completions carry.
        on: (B,) float, 1 for the rows that the remedy changes; None without a gate.
        tail: how many of the positions at hand are steered; None: all of them.
        prompt: tokens of the prompts at hand; 0 before the first.
    """

    def __init__(self, model: PreTrainedModel, remedy: Remedy) -> None:
        self.model, self.remedy = model, remedy
        self.plain: Forward = model.forward
        self.id = remedy_id(remedy)
        self.on: Tensor | None = None
        self.tail: int | None = None
        self.active = False
        self.prompt = 0
        self.placed: dict[int, Tensor] = {}
        change = remedy.change
        self.second = SecondStream(model, change) if isinstance(change, Contrast) else None
        self.handles = [module.register_forward_hook(hook) for module, hook in self.hooks()]
        self.before = model.__dict__.get("forward")

        @functools.wraps(self.plain)  # generate() reads the names of the arguments
        def forward(*args: Any, **kwargs: Any) -> Any:
            return self.forward(*args, **kwargs)

        model.__dict__["forward"] = forward
        setattr(model, ATTRIBUTE, self)

    def remove(self) -> None:
        """The model is what it was before."""
        for handle in self.handles:
            handle.remove()
        del self.model.__dict__["forward"]  # the class's own is seen again
        if self.before is not None:
            self.model.__dict__["forward"] = self.before
        delattr(self.model, ATTRIBUTE)

    # Any: a hook gets what the module takes and returns
    def hooks(self) -> Iterator[tuple[Module, Callable[[Module, Any, Any], Any]]]:
        """(module, forward hook) of the change."""
        change = self.remedy.change
        if isinstance(change, Steering):
            every = blocks(self.model)
            for layer, vector in zip(change.layers, change.vectors, strict=True):
                yield every[layer][1], functools.partial(self.steer, vector)
        elif isinstance(change, Deltas):
            for path, down in change.down.items():
                module = self.model.get_submodule(path)
                yield module, functools.partial(self.add_delta, down, change.up[path])

    def steer(self, vector: Tensor, _: Module, __: Any, output: Any) -> Any:
        """A block's output with the vector at the positions that are steered."""
        if not self.active:
            return output
        states = stream(output)
        step = self.rows(states)[:, None, None] * self.like(states, vector) * self.remedy.strength
        if self.tail is None:
            return with_stream(output, states + step)
        changed = states.clone()
        changed[:, -self.tail :] += step
        return with_stream(output, changed)

    def add_delta(self, down: Tensor, up: Tensor, _: Module, given: Any, output: Tensor) -> Tensor:
        """A linear module's output with B A x for the rows that are changed."""
        if not self.active:
            return output
        x: Tensor = given[0]
        more = (x @ self.like(x, down).T) @ self.like(x, up).T * self.remedy.strength
        return output + more * self.rows(more).view(-1, *[1] * (more.dim() - 1))

    def like(self, other: Tensor, tensor: Tensor) -> Tensor:
        """A tensor of the remedy in the type and on the device of another one. It is moved once,
        not at every token."""
        known: Tensor = self.placed.get(id(tensor), tensor)
        if known.dtype != other.dtype or known.device != other.device:
            known = tensor.to(other)
            self.placed[id(tensor)] = known
        return known

    def rows(self, like: Tensor) -> Tensor:
        """(B,) which rows are changed, in the type of a tensor (B, ...)."""
        import torch

        if self.on is None:
            return torch.ones(like.shape[0], dtype=like.dtype, device=like.device)
        if self.on.shape[0] != like.shape[0]:
            raise ValueError(
                f"The remedy {self.remedy.name} decided about {self.on.shape[0]} prompts, and now "
                f"{like.shape[0]} rows go on. Beams and continuous batching cannot be used with it."
            )
        return self.on.to(like)

    def keep_rows(self, rows: Tensor) -> None:
        """Only these rows of the responses at hand go on: what was decided about them stays."""
        self.on = None if self.on is None else self.on[rows]
        if self.second is not None and self.on is not None and not bool(self.on.any()):
            self.second.stop()  # none of those that are left is contrasted
        if self.second is not None:
            self.second.keep_rows(rows)

    # Any: see `Forward`
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's forward pass, with the remedy."""
        ids = kwargs.get("input_ids", args[0] if args else None)
        if ids is None:
            raise ValueError("A model with a remedy reads token ids, not embeddings.")
        cache = kwargs.get("past_key_values")
        seen = cache.get_seq_length() if cache is not None else 0
        if seen:
            return self.go_on(seen, ids, args, kwargs)
        self.check_left_padded(kwargs.get("attention_mask"))
        self.prompt, self.on = ids.shape[1], None
        return self.begin(ids, args, kwargs)

    def go_on(self, seen: int, ids: Tensor, args: Any, kwargs: Any) -> Any:
        """A pass over generated tokens: all of them are changed."""
        if not self.prompt:
            raise ValueError(
                "This cache was filled before the model had its remedy. Read the prompt again."
            )
        self.tail = None
        output = self.changed(args, kwargs)
        fed = seen - self.prompt
        self.add_logits(output.logits, first=fed + 1)
        if self.second is not None:
            mask = kwargs.get("attention_mask")
            behind = self.second.go_on(self.plain, ids, mask, fed=fed)
            if behind is not None:
                self.contrast(output, behind, at=0)
        return output

    def begin(self, ids: Tensor, args: Any, kwargs: Any) -> Any:
        """A pass over prompts: the gate decides, and what it lets through is read again."""
        self.tail = self.remedy.change.tail if isinstance(self.remedy.change, Steering) else None
        if self.second is not None:
            self.second.stop()  # the pass may need the memory of what the last batch has left
        if self.remedy.gate is None:
            output = self.changed(args, kwargs)
        else:
            output = self.decided(self.remedy.gate, ids, args, kwargs)
        # position 0 of the response is predicted at the last position of the prompt
        self.add_logits(output.logits[:, -1:], first=0)
        if self.second is not None and (self.on is None or bool(self.on.any())):
            behind = self.second.begin(self.plain, ids, kwargs.get("attention_mask"))
            self.contrast(output, behind, at=output.logits.shape[1] - 1)
        return output

    def decided(self, gate: Gate, ids: Tensor, args: Any, kwargs: Any) -> Any:
        """A pass over prompts, after the gate has decided which rows are changed."""
        again = isinstance(self.remedy.change, Steering | Deltas)
        cuts = can_be_cut(kwargs.get("past_key_values"), ids.shape[1])
        first = {**kwargs, "past_key_values": None, "use_cache": False}
        with kept_streams(self.model, [gate.layer]) as kept:
            output = self.plain(*args, **(kwargs if cuts or not again else first))
        self.on = (gate.scores(kept[gate.layer]) < gate.threshold).float()
        if again and not cuts:  # the cache is still empty
            return self.changed(args, kwargs)
        return self.read_again(ids, args, kwargs) if again and bool(self.on.any()) else output

    def read_again(self, ids: Tensor, args: Any, kwargs: Any) -> Any:
        """The pass over the prompts with the change; steering reads only the last positions."""
        cache = kwargs.get("past_key_values")
        if cache is None:
            return self.changed(args, kwargs)
        width = ids.shape[1]
        tail = min(self.tail or width, width)
        cache.crop(-tail)
        places = {
            key: value[..., -tail:]
            for key, value in kwargs.items()
            if key in BY_POSITION and value is not None
        }
        return self.changed((), {**kwargs, **places, "input_ids": ids[:, -tail:]})

    def changed(self, args: Any, kwargs: Any) -> Any:
        """A pass in which the hooks change the states."""
        self.active = True
        try:
            return self.plain(*args, **kwargs)
        finally:
            self.active = False

    def add_logits(self, logits: Tensor, *, first: int) -> None:
        """Adds the constants of the response's positions to (B, T, V) in place; `first` is the
        position that logits[:, 0] predicts."""
        change = self.remedy.change
        if not isinstance(change, FirstLogits):
            return
        known = change.values[first : first + logits.shape[1]].to(logits)
        step = self.rows(logits)[:, None, None] * known * self.remedy.strength
        logits[:, : known.shape[0], change.tokens.to(logits.device)] += step

    # Any: what a forward pass returns
    def contrast(self, output: Any, behind: Tensor, *, at: int) -> None:
        """Sets logits of the pass against those of the second stream (B, n, V); `at` is the place
        of the first of them in output.logits."""
        import torch

        change = self.remedy.change
        assert isinstance(change, Contrast)
        places = slice(at, at + behind.shape[1])
        plain = output.logits[:, places]
        found = contrasted(change, self.remedy.strength, plain, behind)
        found = torch.where(self.rows(found)[:, None, None] > 0, found, plain.to(found))
        if output.logits.dtype != found.dtype:  # 16 bits would make tokens equal
            output.logits = output.logits.to(found.dtype)
        output.logits[:, places] = found

    def check_left_padded(self, mask: Tensor | None) -> None:
        """Raises ValueError if a prompt does not end at the last position."""
        if mask is not None and mask.dim() == 2 and not bool(mask[:, -1].all()):
            raise ValueError("A model with a remedy reads prompts that are padded on the left.")


def can_be_cut(cache: Any, width: int) -> bool:
    """Whether a cache, still empty, can lose its last tokens again after `width` tokens. No cache
    can. Any: transformers has many classes of caches."""
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    from overrefusal_po.model.roomy_cache import RoomyLayer

    if cache is None:
        return True
    if not cache.layers:
        return getattr(cache, "layer_class_to_replicate", None) in (DynamicLayer, RoomyLayer)
    return all(
        type(layer) in (DynamicLayer, RoomyLayer)
        or (type(layer) is DynamicSlidingWindowLayer and width < layer.sliding_window)
        for layer in cache.layers
    )


def install(model: PreTrainedModel, remedy: Remedy) -> Installed:
    """Puts a remedy on a model. ValueError if there is one already, or if it does not fit."""
    if remedy_of(model) is not None:
        raise ValueError("This model has a remedy already. Remove it first.")
    check_shape(remedy, model)
    return Installed(model, remedy)


def installed_on(model: object) -> Installed | None:
    """The remedy on a model with its state; None without one."""
    return cast("Installed | None", getattr(model, ATTRIBUTE, None))


def remedy_of(model: object) -> Remedy | None:
    """The remedy on a model; None without one."""
    found = installed_on(model)
    return None if found is None else found.remedy


@contextmanager
def remedied(model: PreTrainedModel, remedy: Remedy) -> Iterator[Installed]:
    """The model has the remedy within it."""
    installed = install(model, remedy)
    try:
        yield installed
    finally:
        installed.remove()
