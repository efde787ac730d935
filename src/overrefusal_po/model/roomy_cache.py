"""A cache of keys and values that is written in place, so that a step does not copy what is there.

    make_roomy(cache)              # True: the fresh cache of `generate` now has room ahead
    repeat_rows(cache, prefix)     # each row begins with what one row has read

transformers' own layers make a new tensor at every token. This module imports transformers, so it
is imported within functions only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

STEP = 16
"""Tokens of room that are added at a time; a layer's old and new room exist together for a moment.
"""


class RoomyLayer(DynamicLayer):
    """The keys and values (B, heads, T, D) of a layer: views of tensors that have room ahead."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # transformers leaves it so
        self.rooms: tuple[Tensor, Tensor] | None = None

    # Any: what else transformers gives to a layer
    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """All keys and values, with the new ones (B, heads, t, D) behind the others."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.rooms = None
        seen = self.get_seq_length()
        self.show(seen, seen + key_states.shape[-2], (key_states, value_states))
        return held(self)

    def show(self, seen: int, now: int, new: tuple[Tensor, Tensor]) -> None:
        """Writes `new` behind `seen` tokens; keys and values then hold `now` tokens."""
        rooms = self.rooms
        if rooms is None or rooms[0].shape[-2] < now:
            rooms = self.grown(seen, now, new)
        for room, states in zip(rooms, new, strict=True):
            room[:, :, seen:now] = states
        self.rooms = rooms
        self.keys, self.values = (room[:, :, :now] for room in rooms)

    def grown(self, seen: int, now: int, like: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Larger rooms that hold the `seen` tokens. A whole prompt comes at once: it fits."""
        length = now + STEP
        rooms = tuple(x.new_empty(*x.shape[:2], length, x.shape[-1]) for x in like)
        if seen:
            for room, old in zip(rooms, held(self), strict=True):
                room[:, :, :seen] = old
        return rooms[0], rooms[1]

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps these rows; the room ahead stays."""
        if self.rooms is None:
            return
        now = self.get_seq_length()
        self.rooms = (self.rooms[0][indices], self.rooms[1][indices])
        self.keys, self.values = (room[:, :, :now] for room in self.rooms)

    def begin_with(self, keys: Tensor, values: Tensor) -> None:
        """Begins with a copy of these keys and values."""
        self.lazy_initialization(keys, values)
        self.show(0, keys.shape[-2], (keys, values))


def held(layer: DynamicLayer) -> tuple[Tensor, Tensor]:
    """The keys and values of a layer that has read something."""
    assert layer.keys is not None and layer.values is not None, "it has read something"
    return layer.keys, layer.values


def make_roomy(cache: object) -> bool:
    """Whether a cache, still empty, has now layers with room. Caches with windows or with states of
    another kind stay as they are."""
    if type(cache) is not DynamicCache or cache.get_seq_length() or cache.offloading:
        return False
    if not all(type(layer) is DynamicLayer for layer in cache.layers):
        return False
    if not cache.layers and cache.layer_class_to_replicate is not DynamicLayer:
        return False
    cache.layers = [RoomyLayer() for _ in cache.layers]
    if cache.layer_class_to_replicate is not None:
        cache.layer_class_to_replicate = RoomyLayer
    return True


def repeat_rows(cache: Cache, prefix: Cache, rows: int) -> None:
    """A roomy cache, still empty, begins each of `rows` rows with the one row of `prefix`."""
    one_row = layers_held(prefix)
    begin_with_layers(
        cache, [(k.expand(rows, -1, -1, -1), v.expand(rows, -1, -1, -1)) for k, v in one_row]
    )


def begin_with_layers(cache: Cache, layers: Sequence[tuple[Tensor, Tensor]]) -> None:
    """A roomy cache, still empty, begins with a copy of these keys and values, layer by layer."""
    if not cache.layers:
        cache.layers = [RoomyLayer() for _ in layers]
    for layer, (keys, values) in zip(cache.layers, layers, strict=True):
        assert isinstance(layer, RoomyLayer), "make_roomy"
        layer.begin_with(keys, values)


def layers_held(cache: Cache) -> list[tuple[Tensor, Tensor]]:
    """The keys and values of each layer of a cache that has read something."""
    return [held(layer) for layer in cache.layers if isinstance(layer, DynamicLayer)]


def can_drop_rows(cache: object) -> bool:
    """Whether rows of a cache can leave it, and the others stay exact."""
    from transformers.cache_utils import DynamicSlidingWindowLayer

    known = (DynamicLayer, RoomyLayer, DynamicSlidingWindowLayer)
    return type(cache) is DynamicCache and all(type(layer) in known for layer in cache.layers)
