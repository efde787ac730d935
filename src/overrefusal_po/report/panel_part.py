"""What metrics.json says of a panel of judges, checked.

    found = PanelPart.model_validate(metrics["panel"])
    found.groups["all"].pairs[0].kappa.value

`evaluate.panel_agreement` makes it; `summary` has the other parts.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

Count = Annotated[int, Field(ge=0)]

READ_CONFIG = ConfigDict(
    frozen=True, extra="ignore", allow_inf_nan=False, use_attribute_docstrings=True
)
"""How the parts of metrics.json and summary.json are read. Keys that nobody here reads are ignored:
a newer evaluation may write more."""


class PanelNumber(BaseModel):
    """A number and its 95 % interval."""

    model_config = READ_CONFIG
    value: FiniteFloat | None
    low: FiniteFloat | None
    high: FiniteFloat | None


class JudgePair(BaseModel):
    """Two judges of a panel. A partial refusal is a refusal."""

    model_config = READ_CONFIG
    first: str
    second: str
    agreement: PanelNumber
    kappa: PanelNumber
    only_first_refused: Count
    only_second_refused: Count


class PanelGroup(BaseModel):
    """The judges of a panel on the `n` responses of a group that all of them scored."""

    model_config = READ_CONFIG
    n: Count
    unscored: dict[str, Count]
    agreement: PanelNumber
    pairs: tuple[JudgePair, ...]


class PanelPart(BaseModel):
    """How often the judges of a panel agree: on all prompts as they were asked (`all`), on each
    kind of them, and on attacked ones (`attacked`)."""

    model_config = READ_CONFIG
    judges: tuple[str, ...]
    disagreement: str
    groups: dict[str, PanelGroup]
