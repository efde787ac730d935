"""KTO (arXiv 2402.01306, equation 7) by TRL's `KTOTrainer`: sides of pairs as rows of their own.

    trainer = kto_trainer("my/model", pairs, args={"per_device_train_batch_size": 4})
    sides = unpaired([(chosen, rejected), ...], batch_size=4, seed=0)     # in training order

KTO compares a response with how far the policy has moved from the reference. It measures that
distance on prompts with responses to *other* prompts. TRL 1.16 picks those responses once, before
training. Among each `per_device_train_batch_size` rows in a row, a prompt gets the response of the
row before it; the first prompt gets the response of the last row. If TRL makes rows of pairs
itself, all chosen sides come before all rejected ones. A batch then has one label. The order made
here has these properties:

- All prompts of a batch are different, so that no prompt gets a response to itself.
- Any run of rows has its share of desirable rows, to within one row. The share is a half if no side
  is in two pairs.
- The order follows from the seed and the rows alone, whatever order they come in.

accelerate gives whole batches to the processes in turn, and a step accumulates whole batches. So
both keep these properties. accelerate repeats rows to fill the last step of an epoch; those rows
keep their responses. Every epoch has the same order, since TRL pairs only once. A new order would
need a trainer and a sampler of our own.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from overrefusal_po.model.chat import ChatTemplate
from overrefusal_po.recipe.methods import check_kto, uses_kl
from overrefusal_po.recipe.schema import TrainRecipe
from overrefusal_po.recipe.sections import TooLong
from overrefusal_po.records import PreferencePair, content_id
from overrefusal_po.train import preference
from overrefusal_po.train.data import Prepared, Source, as_dataset
from overrefusal_po.train.first_rows import check_first_rows
from overrefusal_po.train.policy import frozen_copy, load_policy, tokenizer_and_template, trains_all
from overrefusal_po.train.preference import finished
from overrefusal_po.train.preference import read as read
from overrefusal_po.train.rows import COLUMNS, fit_pairs, pair_table, side_lengths
from overrefusal_po.train.settings import Settings, trainer_config
from overrefusal_po.train.student import StudentAnswer

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset
    from peft import PeftConfig
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
    from trl import KTOConfig, KTOTrainer

logger = logging.getLogger(__name__)


def kto_trainer(
    model: PreTrainedModel | str,
    pairs: Sequence[PreferencePair] | Prepared,
    *,
    args: KTOConfig | Settings | None = None,
    processing_class: PreTrainedTokenizerBase | None = None,
    ref_model: PreTrainedModel | None = None,
    peft_config: PeftConfig | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    template: ChatTemplate | None = None,
    opening: int | None = None,
    too_long: TooLong = "error",
) -> KTOTrainer:
    """TRL's `KTOTrainer` on the sides of pairs as rows of their own, in the order of this module.

    Arguments as for `dpo_trainer`; `args` is `trl.KTOConfig` or a mapping of its keys. A batch
    counts sides, not pairs, and holds at least 2.

    Raises:
        ValueError: as for `dpo_trainer`, and if the prompts of a batch cannot all be different.
    """
    from trl import KTOConfig

    from overrefusal_po.train.trl_private import ReadyKTOTrainer

    config = trainer_config(KTOConfig, args)
    check_kto(vars(config))
    tokenizer, template = tokenizer_and_template(model, processing_class, template)
    if not isinstance(pairs, Prepared):
        table = pair_table(pairs, template, opening)
        kept = fit_pairs(pairs, table, max_length=config.max_length, too_long=too_long).warned()
        used = [pairs[at] for at in kept]
        pairs = side_rows(used, table.take(kept), vars(config), opening)
    assert pairs.rows is not None, "data without rows are not whole"
    check_first_rows(pairs, template)
    warn_of_cut(pairs.rows, config.max_length)
    policy = load_policy(model, peft_config)
    if ref_model is None and trains_all(policy, peft_config):
        ref_model = frozen_copy(policy)
    return finished(
        ReadyKTOTrainer(
            model=policy,
            ref_model=ref_model,
            args=config,
            train_dataset=pairs.rows,
            processing_class=tokenizer,
            peft_config=peft_config,
            callbacks=list(callbacks),
        )
    )


def prepare(
    recipe: TrainRecipe,
    source: Source,
    template: ChatTemplate,
    said: Sequence[StudentAnswer] | None = None,
) -> Prepared:
    """The sides to train on (see `preference.prepare`), in this module's order."""
    return preference.prepare(recipe, source, template, said, make_rows=side_rows)


def recipe_trainer(
    model: PreTrainedModel,
    prepared: Prepared,
    *,
    recipe: TrainRecipe,
    args: KTOConfig,
    template: ChatTemplate,
    peft_config: PeftConfig | None,
) -> KTOTrainer:
    """The trainer of a recipe (see `method.MethodModule`)."""
    return kto_trainer(model, prepared, args=args, template=template, peft_config=peft_config)


class Side(NamedTuple):
    """The token ids of one side of a pair, and whether it is the chosen one."""

    prompt: tuple[int, ...]
    completion: tuple[int, ...]
    desirable: bool


def side_rows(
    pairs: Sequence[PreferencePair],
    table: pa.Table,
    settings: Settings,
    opening: int | None,
) -> Prepared:
    """Both sides of pairs as rows in training order; `settings` are trl.KTOConfig's keys.

    With a KL term each row also holds the completion that its prompt is compared with. TRL takes
    that of the row before it in its batch; the first row gets that of the last.
    """
    import pyarrow as pa

    size = int(settings["per_device_train_batch_size"])
    sides = unpaired(
        sides_of_pairs(table),
        batch_size=size if uses_kl(settings) else 1,
        seed=int(settings["seed"]),
    )
    kind = pa.list_(pa.int32())
    columns = {
        "prompt_ids": pa.array([side.prompt for side in sides], kind),
        "completion_ids": pa.array([side.completion for side in sides], kind),
        "label": pa.array([side.desirable for side in sides]),
    }
    if uses_kl(settings):
        others = [sides[compared_with(at, len(sides), size)].completion for at in range(len(sides))]
        columns["KL_completion_ids"] = pa.array(others, kind)
    return Prepared(as_dataset(pa.table(columns)), pairs, lengths=side_lengths(table))


def compared_with(place: int, rows: int, batch_size: int) -> int:
    """The place of the row whose completion the prompt at `place` gets for its KL term.

    >>> [compared_with(at, 5, 3) for at in range(5)]
    [2, 0, 1, 4, 3]
    """
    start = place - place % batch_size
    end = min(start + batch_size, rows)
    return end - 1 if place == start else place - 1


def sides_of_pairs(table: pa.Table) -> list[tuple[Side, Side]]:
    """(chosen, rejected) of every pair of a table of token ids."""
    prompts, chosen, rejected = (table[name].to_pylist() for name in COLUMNS)
    return [
        (Side(tuple(p), tuple(c), True), Side(tuple(p), tuple(r), False))
        for p, c, r in zip(prompts, chosen, rejected, strict=True)
    ]


def unpaired(pairs: Sequence[tuple[Side, Side]], *, batch_size: int, seed: int) -> list[Side]:
    """All sides in training order; a side that is in several pairs comes once.

    Left out, with a warning: pairs whose sides have the same tokens, and a row that would be a
    batch by itself. Raises ValueError if no pair is left, and if the prompts of a batch cannot all
    be different.
    """
    sides = different_sides(pairs)
    order = interleaved(
        *(in_rounds([s for s in sides if s.desirable is label], seed) for label in (True, False))
    )
    separate_prompts(order, batch_size)
    if len(order) % batch_size == 1 < batch_size:
        order.pop()
        logger.warning("1 of %d rows would be a batch by itself and is left out", len(order) + 1)
    return order


def different_sides(pairs: Sequence[tuple[Side, Side]]) -> list[Side]:
    """Each side once, without the pairs whose sides have the same tokens.

    Warns of what it leaves out, and of responses that one pair of a prompt chooses and another
    rejects. Raises ValueError if no pair is left.
    """
    given = [side for both in pairs if both[0].completion != both[1].completion for side in both]
    if not given:
        raise ValueError(
            f"The sides of all {len(pairs)} pairs have the same tokens. Raise data.opening."
        )
    if equal := len(pairs) - len(given) // 2:
        logger.warning(
            "%d of %d pairs begin with the same tokens on both sides and are left out",
            equal,
            len(pairs),
        )
    known = list(dict.fromkeys(given))
    if again := len(given) - len(known):
        logger.warning(
            "%d of %d sides stand in another pair too; each is one row", again, len(given)
        )
    if both_ways := len(known) - len({side[:2] for side in known}):
        logger.warning(
            "%d responses are chosen in one pair and rejected in another of the same prompt: KTO "
            "trains both ways",
            both_ways,
        )
    return known


def in_rounds(sides: Sequence[Side], seed: int) -> list[Side]:
    """Sides of one label in a drawn order, in rounds.

    The first round has one side of each prompt, the next one side of each prompt that has more. A
    round of undesirable sides begins in its middle. So both sides of a prompt are half a round
    apart.
    """
    by_prompt: dict[tuple[int, ...], list[Side]] = {}
    for side in sorted(sides, key=lambda s: content_id(seed, s.prompt, s.completion)):
        by_prompt.setdefault(side.prompt, []).append(side)
    waiting = [by_prompt[prompt] for prompt in sorted(by_prompt, key=lambda p: content_id(seed, p))]
    order: list[Side] = []
    while waiting:
        middle = 0 if sides[0].desirable else (len(waiting) + 1) // 2
        order += [own.pop() for own in waiting[middle:] + waiting[:middle]]
        waiting = [own for own in waiting if own]
    return order


def interleaved(some: Sequence[Side], others: Sequence[Side]) -> list[Side]:
    """Both lists in one list, each spread evenly over it."""
    places = [((2 * i + 1) * len(others), side) for i, side in enumerate(some)]
    places += [((2 * i + 1) * len(some), side) for i, side in enumerate(others)]
    return [side for _, side in sorted(places, key=lambda place: place[0])]


def separate_prompts(order: list[Side], batch_size: int) -> None:
    """Swaps rows of one label until no batch has a prompt twice.

    No swap is needed if each prompt has one side of each label. (A batch must not have more rows
    than there are prompts.) If some prompts have more sides, twice as many prompts were always
    enough (tried). With fewer prompts an order may exist that is not found: that is a ValueError.
    """
    for i, side in enumerate(order):
        if is_alone(order, i, side.prompt, batch_size):
            continue
        fits = (
            j
            for j, other in enumerate(order)
            if other.desirable is side.desirable
            and is_alone(order, i, other.prompt, batch_size)
            and is_alone(order, j, side.prompt, batch_size)
        )
        if (j := next(fits, None)) is None:
            raise ValueError(
                f"KTO holds each response against responses to the other prompts of its batch, but "
                f"the {len(order)} sides, of {len({s.prompt for s in order})} prompts, do not go "
                f"into batches of {batch_size} with different prompts. "
                "Lower trainer.per_device_train_batch_size, or give pairs for more prompts."
            )
        order[i], order[j] = order[j], order[i]


def is_alone(order: Sequence[Side], place: int, prompt: tuple[int, ...], batch_size: int) -> bool:
    """Whether no other row in the batch of `place` has `prompt`."""
    start = place - place % batch_size
    return all(
        start + k == place or s.prompt != prompt
        for k, s in enumerate(order[start : start + batch_size])
    )


def warn_of_cut(rows: Dataset, max_length: int | None) -> None:
    """Warns if TRL cuts the responses for the KL term at `max_length`: that KL is partial."""
    import pyarrow.compute as pc

    if max_length is None or "KL_completion_ids" not in rows.column_names:
        return
    lengths = [
        pc.list_value_length(rows.data[name]).to_numpy()
        for name in ("prompt_ids", "KL_completion_ids")
    ]
    cut = int((lengths[0] + lengths[1] > max_length).sum())
    if cut:
        logger.warning(
            "%d of %d prompts with another one's response are cut at max_length (KL)",
            cut,
            len(rows),
        )
