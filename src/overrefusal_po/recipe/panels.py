"""A list of judges -> the panel that it is short for. Imports nothing of ours.

    panel_spec(["refusal", "my.judge"])
    # {"name": "panel", "judges": ["refusal", "my.judge"], "disagreement": "first"}

`judges.panel` says what a panel is, and checks it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

NAME = "panel"
"""The panel's name in a recipe."""

# Any: a judge's own settings, which its class checks
JudgeSpec = str | Mapping[str, Any]
"""A judge in a recipe: its name, or {name: ..., key: value}."""

JudgesGiven = JudgeSpec | list[JudgeSpec] | tuple[JudgeSpec, ...]
"""A judge, or a list of judges, which is short for a panel."""


# Any: what stands in a file is checked later
def panel_spec(given: Any) -> Any:
    """A list of judges as a panel's mapping; anything else unchanged. Nothing is checked."""
    if isinstance(given, list | tuple):
        return {"name": NAME, "judges": list(given), "disagreement": "first"}
    return given


def is_panel(spec: object) -> bool:
    """Whether an entry of a recipe is a panel."""
    name = spec.get("name") if isinstance(spec, Mapping) else spec
    return name == NAME or isinstance(spec, list | tuple)


def panel_members(spec: object) -> Iterator[tuple[str, JudgeSpec]]:
    """(key below the panel, entry) of each member of a checked panel; none for other judges."""
    if isinstance(spec, Mapping) and is_panel(spec):
        for number, member in enumerate(spec["judges"]):
            yield f"judges.{number}", member
