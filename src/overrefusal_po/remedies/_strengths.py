"""What a strength may be.

strengths: tuple[Strength, ...] = Field(default=(0.5, 1.0), min_length=1)
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

Strength = Annotated[float, Field(gt=0, allow_inf_nan=False)]
"""How much of a change is made: 0 would be none, and below 0 it would add refusals."""
