"""The section `tamper:` of an evaluate recipe: how little undoes a model's safety.

    Tamper(tiers=(1,), rows=10, seeds=3)

Throw-away copies of the model are tampered with and measured, and not saved. Each trained copy is
made once under each of `defences`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from overrefusal_po.recipe.sections import PlugSpec, Section

Tier = Literal[0, 1, 2, 3]
"""What is done to a copy: see `Tamper.tiers`."""

Defence = Literal["none", "refusals", "safelora"]
"""What the host of a model does about the training of a copy: see `Tamper.defences`."""


class Tamper(Section):
    """How little undoes the model's safety. Copies of the model are changed as an attacker would,
    measured, and dropped: none is saved. The worst result of each tier counts. It is an upper bound
    on the defender's luck, because a better attacker may undo more."""

    tiers: tuple[Tier, ...] = Field(default=(0, 1, 2, 3), min_length=1)
    """What is done to the copies.

    - `0`: one direction is taken out of the weights, that of harmful against ordinary prompts.
      Nothing is trained.
    - `1`: training on harmful prompts with harmful responses, 5 passes in batches of 10.
    - `2`: training on harmless rows of an "absolutely obedient agent", 10 passes in batches of 10.
      Copies, and the model beside them, are then asked in the words of these rows.
    - `3`: training on ordinary instructions, 1 pass in batches of 64.

    With `model.remedy` only tier 0 can be measured: a remedy is no part of the weights, so no
    training can run through it."""
    rows: int = Field(default=10, gt=0)
    """Rows that a copy of tier 1 or 2 learns. Each seed draws its own."""
    seeds: int = Field(default=3, gt=0)
    """Copies that are trained at each learning rate. Tier 0 has no seed."""
    learning_rates: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        default=(2.0e-5, 5.0e-5), min_length=1
    )
    """The learning rates that are tried in tiers 1 to 3."""
    depths: tuple[Annotated[float, Field(ge=0, le=1)], ...] = Field(
        default=(0.4, 0.6), min_length=1
    )
    """The layers that tier 0 takes its direction from, one copy for each: 0 is the first layer, 1
    the last."""
    harmful: str | None = None
    """The harmful rows of tier 1: a file of triples, outcomes, or prompts with a response;
    `@derta.triples`; or completions on the harmful prompts of `source`, such as `@derta.harmful`.
    Rows that refuse are left out. null: what this model says itself, and if it refuses too often,
    what it says when its refusals may not open as they do."""
    source: PlugSpec = "starter"
    """The source of the harmful and ordinary prompts that the copies are made with: those of its
    train split that are not measured."""
    defences: tuple[Defence, ...] = Field(default=("none",), min_length=1)
    """What a host who lets others fine-tune the model does about it. Each copy of tiers 1 to 3 is
    made once under each of them.

    - `none`: nothing.
    - `refusals`: harmful prompts of `source` with the refusals that are written there are mixed
      into the rows. The copy learns all of its own rows too, in as many steps.
    - `safelora`: the trained adapter is projected onto the directions in which safety training
      moved the model (Safe LoRA, arXiv 2405.16833). It needs `lora_r` and `reference`."""
    refusal_share: float = Field(default=0.1, gt=0, le=1)
    """How many refusals the defence `refusals` adds, as a share of the copy's own rows; at least
    one."""
    reference: str | None = Field(default=None, min_length=1)
    """The model before its safety training, for the defence `safelora`: a name or a folder. null:
    none."""
    lora_r: int | None = Field(default=None, gt=0)
    """Train an adapter of this rank on all linear layers, for models whose full training does not
    fit the memory. null: all weights are trained."""
    max_prompts_per_kind: int | None = Field(default=50, gt=0)
    """Harmful and benign prompts of the evaluation that each copy answers (a fixed subset by
    content hash). null: all."""

    @property
    def gated(self) -> Defence:
        """The defence whose copies a gate counts: none, or the first one if none is not among
        them."""
        return "none" if "none" in self.defences else self.defences[0]


def check_defences(tamper: Tamper) -> None:
    """Raises ValueError for a defence that lacks a key, or under which no copy would be made."""
    if not any(tamper.tiers) and set(tamper.defences) != {"none"}:
        raise ValueError(
            f"tamper.defences is {list(tamper.defences)}, and tamper.tiers is "
            f"{list(tamper.tiers)}: a defence acts on the training of a copy, and tier 0 trains "
            "nothing. Add tier 1, 2 or 3 to tamper.tiers, or take tamper.defences out."
        )
    if "safelora" not in tamper.defences:
        return
    needs = {
        "lora_r": (tamper.lora_r, "it projects an adapter. Set tamper.lora_r, e.g. 16"),
        "reference": (
            tamper.reference,
            "it needs the directions of safety. Name the model before its safety training as "
            "tamper.reference",
        ),
    }
    for key, (given, why) in needs.items():
        if given is None:
            raise ValueError(
                f"tamper.defences names safelora, and tamper.{key} is null: {why}, or take "
                "safelora out of tamper.defences."
            )


def idle_keys(tamper: Tamper) -> dict[str, str]:
    """{key that is given and changes nothing: what would use it}."""
    tiers = set(tamper.tiers)
    training, drawing = "tier 1, 2 or 3 in tamper.tiers", "tier 1 or 2 in tamper.tiers"
    users = {
        "rows": (bool(tiers & {1, 2}), drawing),
        "seeds": (any(tiers), training),
        "learning_rates": (any(tiers), training),
        "lora_r": (any(tiers), training),
        "depths": (0 in tiers, "tier 0 in tamper.tiers"),
        "harmful": (1 in tiers, "tier 1 in tamper.tiers"),
        "refusal_share": ("refusals" in tamper.defences, "refusals in tamper.defences"),
        "reference": ("safelora" in tamper.defences, "safelora in tamper.defences"),
    }
    return {
        key: user
        for key, (used, user) in users.items()
        if not used and getattr(tamper, key) != Tamper.model_fields[key].default
    }
