"""The table of training methods: one row here and one file in train/ make a method. No torch.

    find_method("dpo").config       # "trl.DPOConfig"
    find_method("my_package.grpo")  # the METHOD of a module of your own

A method is found by its name in METHODS, by the name of an entry point in the group
`overrefusal_po.methods` of an installed package, or by a dotted module name.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

from overrefusal_po.recipe.sections import DertaData, PairsData, Section, SftData
from overrefusal_po.recipe.soft_prompt import SoftPromptData
from overrefusal_po.recipe.words import nearest

GROUP = "overrefusal_po.methods"
"""The group of entry points in which an installed package names its methods."""

# Any: TRL's settings have every type, and TRL's own table has checked them before
Settings = Mapping[str, Any]
"""The keys under `trainer`, TRL's defaults filled in."""


def accept(settings: Settings) -> None:
    """Accepts all settings: for a method without a check of its own."""


def check_kto(settings: Settings) -> None:
    """Raises ValueError for values of `trl.KTOConfig`'s keys with which TRL would train on
    something else, or fail."""
    if settings["precompute_ref_log_probs"]:
        raise ValueError(
            "trainer.precompute_ref_log_probs is true, which this package does not test for KTO. "
            "Take it out: the reference then runs in every step. With adapters it takes no memory "
            "of its own. Under FSDP 2 its log-probs are computed ahead without this key."
        )
    if not uses_kl(settings):
        return
    if settings["per_device_train_batch_size"] < 2:
        raise ValueError(
            "trainer.per_device_train_batch_size is 1, but KTO compares each response with those "
            "to the other prompts of its batch. Give at least 2 (accumulated steps do not count)."
        )
    if (
        settings["train_sampling_strategy"] != "sequential"
        or (settings["dataset_num_proc"] or 1) > 1
    ):
        raise ValueError(
            "KTO's rows are put in order and paired with other responses before training. Leave "
            "trainer.train_sampling_strategy at sequential and trainer.dataset_num_proc at null."
        )
    if settings["auto_find_batch_size"]:
        raise ValueError(
            "trainer.auto_find_batch_size is true, but KTO's rows are paired with other responses "
            "for one batch size before training. Smaller batches would break the pairs up. Take it "
            "out, and lower trainer.per_device_train_batch_size if memory does not suffice."
        )


def check_dro(settings: Settings) -> None:
    """Raises ValueError for values of `DROConfig`'s keys that its rows or its loss cannot use."""
    if settings["packing"] or settings["padding_free"]:
        raise ValueError(
            "trainer.packing and trainer.padding_free put prompts one behind the other, and DRO "
            "reads the last token of each. Take them out."
        )
    if settings["dimensions"] < 1:
        raise ValueError(
            f"trainer.dimensions is {settings['dimensions']}; allowed is 1 or more. DRO's released "
            "code has 4."
        )


def uses_kl(settings: Settings) -> bool:
    """Whether the loss estimates a KL term. Without one, the rows of a batch are independent."""
    return bool(settings["loss_type"] != "apo_zero_unpaired")


class Method(NamedTuple):
    """A training method.

    Attributes:
        name: what a recipe says under `method`.
        title: a line for `overrefusal-po list`.
        config: dotted name of the TRL config class whose keys stand under `trainer`.
        data: the section that says what it learns from.
        module: dotted name of its file. It defines the functions of `train.method.MethodModule`.
        shares_prefix: whether both sides of a pair can share one computation of the prompt.
        scores_prompt: whether the loss reads the prompt of the chosen side too.
        sides_apart: whether each side of a pair is a row of its own.
        needs_reference: whether the loss compares with the start policy.
        stores_reference: whether the reference log-probs may come from a store.
        soft_tokens: whether it trains the rows of new tokens alone, in a plain model.
        check: raises ValueError for trainer settings (TRL's defaults filled in) it cannot train.
    """

    name: str
    title: str
    config: str
    data: type[Section]
    module: str
    shares_prefix: bool = False
    scores_prompt: bool = False
    sides_apart: bool = False
    needs_reference: bool = False
    stores_reference: bool = False
    soft_tokens: bool = False
    check: Callable[[Settings], None] = accept


METHODS = {
    row.name: row
    for row in (
        Method(
            name="sft",
            title="supervised fine-tuning on reference responses",
            config="trl.SFTConfig",
            data=SftData,
            module="overrefusal_po.train.sft",
        ),
        Method(
            name="derta",
            title="SFT after which a model can refuse at any position",
            config="trl.SFTConfig",
            data=DertaData,
            module="overrefusal_po.train.derta",
        ),
        Method(
            name="dpo",
            title="direct preference optimisation against the start policy",
            config="trl.DPOConfig",
            data=PairsData,
            module="overrefusal_po.train.dpo",
            shares_prefix=True,
            needs_reference=True,
            stores_reference=True,
        ),
        Method(
            name="orpo",
            title="odds-ratio preference optimisation, no reference model",
            config="overrefusal_po.train.orpo.ORPOConfig",
            data=PairsData,
            module="overrefusal_po.train.orpo",
            shares_prefix=True,
            scores_prompt=True,
        ),
        Method(
            name="cpo",
            title="contrastive preference optimisation or SimPO, no reference model",
            config="overrefusal_po.train.cpo.CPOConfig",
            data=PairsData,
            module="overrefusal_po.train.cpo",
            shares_prefix=True,
        ),
        Method(
            name="kto",
            title="each side of a pair by itself against the start policy",
            config="trl.KTOConfig",
            data=PairsData,
            module="overrefusal_po.train.kto",
            sides_apart=True,
            needs_reference=True,
            check=check_kto,
        ),
        Method(
            name="dro",
            title="soft tokens in the system turn that move harmful and harmless prompts apart",
            config="overrefusal_po.train.dro.DROConfig",
            data=SoftPromptData,
            module="overrefusal_po.train.dro",
            soft_tokens=True,
            check=check_dro,
        ),
    )
}
"""Every method of this package by its name in a recipe."""


PLAIN_KEYS = ("use_peft", "load_in_4bit", "load_in_8bit")
"""Keys of `model:` that a method of soft tokens cannot use."""


def check_plain_model(method: str, section: Settings) -> None:
    """Raises ValueError for an adapter or quantised weights under a method of soft tokens.
    `section`: the recipe's `model:`."""
    asked = [key for key in PLAIN_KEYS if section.get(key)]
    if asked and find_method(method).soft_tokens:
        raise ValueError(
            f"model.{asked[0]} is true, and method: {method} trains the embedding rows of new "
            "tokens in plain weights of 16 or 32 bits. It takes no adapter and no quantised "
            f"weights: take {', '.join(asked)} out."
        )


def check_weights(
    method: str, weights: str | None, trainer: Settings, *, reference_store: bool
) -> None:
    """Raises ValueError if a recipe weighs pairs in a training that has no weights. `trainer`: the
    keys that the recipe gives."""
    if weights is None:
        return
    if not find_method(method).stores_reference:
        raise ValueError(
            f"data.weights is {weights!r}, which is for method: dpo; the method is {method}. Take "
            "data.weights out."
        )
    if not reference_store or trainer.get("sync_ref_model"):
        raise ValueError(
            f"data.weights is {weights!r}. It reads the reference's log-probs, which are only "
            "there with speed.reference_store: true and without trainer.sync_ref_model."
        )
    check_losses(trainer.get("loss_type") or (), "weights")


def check_losses(kinds: str | Sequence[str], key: str) -> None:
    """Raises ValueError for losses that compare pairs with each other, which `key` cannot have."""
    names = [kinds] if isinstance(kinds, str) else kinds
    sorting = [kind for kind in names if kind in ("aot", "aot_unpaired")]
    if sorting:
        raise ValueError(
            f"{key}: loss_type {sorting[0]} compares the pairs of a batch with each other, so none "
            f"is computed alone. Take another loss, or leave {key} out."
        )


def installed_methods() -> dict[str, importlib.metadata.EntryPoint]:
    """{name: entry point} of the methods that other installed packages bring."""
    return {point.name: point for point in importlib.metadata.entry_points(group=GROUP)}


def all_methods() -> dict[str, Method]:
    """Every method of this package and of installed packages by name."""
    return {**METHODS, **{name: find_method(name) for name in installed_methods()}}


def find_method(name: str) -> Method:
    """The row of a method; ValueError with the nearest names if there is none of this name."""
    if name in METHODS:
        return METHODS[name]
    installed = installed_methods()
    if name in installed:
        point = installed[name]
        named = f"; its entry point is {point.value}"
        return checked_row(loaded(name, point.load, named), name)
    if not (name.isascii() and "." in name and all(map(str.isidentifier, name.split(".")))):
        known = [*METHODS, *installed]
        raise ValueError(
            f"method is {name!r}; allowed is one of {', '.join(known)}, or the dotted name of a "
            f"module of your own.{nearest(name, known)}"
        )
    return checked_row(getattr(method_file(name, name), "METHOD", None), name)


def method_file(place: str, name: str) -> ModuleType:
    """The module `place` of the method `name`; ValueError if it cannot be imported."""
    found: ModuleType = loaded(name, lambda: importlib.import_module(place))
    return found


def loaded(name: str, load: Callable[[], Any], named: str = "") -> Any:
    """What `load` returns for the method `name`; ValueError if a module or a name is missing.

    `named` says where the module was named. `Any`, since a module may define anything.
    """
    try:
        return load()
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"method: the module of {name!r} cannot be imported ({error}{named}). Install its "
            "package, or put its folder on PYTHONPATH."
        ) from None


def checked_row(row: object, name: str) -> Method:
    """`row` if it is a Method; else ValueError that says what a module has to define."""
    if not isinstance(row, Method):
        raise ValueError(
            f"method: {name!r} gives {type(row).__name__}, not a Method. Define METHOD = "
            "Method(...) as docs/extend.md shows."
        )
    return row
