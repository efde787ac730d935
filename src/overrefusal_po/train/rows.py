"""Preference pairs -> the rows that TRL's trainers tokenise: a pair a row (DPO, ORPO), or a side a
row (KTO)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from overrefusal_po.model.chat import ChatTemplate
from overrefusal_po.recipe.methods import uses_kl
from overrefusal_po.recipe.sections import TooLong
from overrefusal_po.records import PreferencePair
from overrefusal_po.train.kto import Side, unpaired
from overrefusal_po.train.lengths import fitting


def pair_dataset(
    pairs: Sequence[PreferencePair],
    template: ChatTemplate,
    max_length: int | None,
    opening: int | None = None,
    too_long: TooLong = "error",
) -> Any:
    """Pairs as a conversational TRL dataset.

    Raises ValueError where there is none, where sides are equal, or where one is too long (see
    `lengths.fitting`).
    """
    from datasets import Dataset

    kept = fitting_pairs(pairs, template, max_length, opening, too_long)
    return Dataset.from_list(
        [template.preference_row(p.prompt.messages, p.chosen, p.rejected) for p in kept]
    )


def side_dataset(
    pairs: Sequence[PreferencePair],
    template: ChatTemplate,
    config: Any,
    opening: int | None = None,
    too_long: TooLong = "error",
) -> Any:
    """Both sides of every pair as rows of a conversational TRL dataset, in the order of `kto`;
    errors as `pair_dataset`."""
    from datasets import Dataset

    kept = fitting_pairs(pairs, template, config.max_length, opening, too_long)
    return Dataset.from_list(side_rows(kept, template, vars(config), opening))


def fitting_pairs(
    pairs: Sequence[PreferencePair],
    template: ChatTemplate,
    max_length: int | None,
    opening: int | None,
    too_long: TooLong,
) -> list[PreferencePair]:
    """The pairs that are trained on (see `lengths.fitting`); ValueError where there is none."""
    if not pairs:
        raise ValueError("Preference optimisation needs at least one pair; got none.")
    return fitting(
        pairs, template, max_length=max_length, too_long=too_long, opening=opening
    ).warned()


def side_rows(
    pairs: Sequence[PreferencePair],
    template: ChatTemplate,
    settings: dict[str, Any],
    opening: int | None = None,
) -> list[dict[str, Any]]:
    """The rows of `side_dataset`; `settings` are trl.KTOConfig's keys. Raises what `kto.unpaired`
    raises."""
    size = settings["per_device_train_batch_size"] if uses_kl(settings) else 1
    sides = [both_sides(pair, template, opening) for pair in pairs]
    return unpaired(sides, batch_size=size, seed=settings["seed"])


def both_sides(
    pair: PreferencePair, template: ChatTemplate, opening: int | None
) -> tuple[Side, Side]:
    """The chosen and the rejected side of a pair, their tokens cut where only openings are trained
    on."""
    row = template.preference_row(pair.prompt.messages, pair.chosen, pair.rejected)
    chosen, rejected = row.pop("chosen"), row.pop("rejected")

    def side(text: str, completion: Any, desirable: bool) -> Side:
        turn = template.turn(pair.prompt.messages, text)
        tokens = tuple(turn.prompt_ids), tuple(turn.response_ids[:opening])
        return Side(*tokens, desirable, {**row, "completion": completion, "label": desirable})

    return side(pair.chosen, chosen, True), side(pair.rejected, rejected, False)
