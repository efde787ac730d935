"""Which pairs a later round of a pipeline keeps. Imports no torch.

LaterRound(held_per_wrong=0.5)      # half as many pairs that hold, as pairs that correct
"""

from __future__ import annotations

from pydantic import Field

from overrefusal_po.recipe.reading import Section


class LaterRound(Section):
    """What a curation keeps if its student was trained on such pairs before: all that is still
    wrong, and some of what is right. If a rule yields no pair, that is no error: pairs.jsonl is
    empty, and the pipeline repeats nothing further."""

    held_per_wrong: float = Field(default=1.0, ge=0)
    """Pairs that hold what the student gets right, for each pair that corrects. It goes by the rule
    with more wrong prompts, and the other rule gets as many pairs, so that both sides weigh the
    same. Of the pairs that hold, benign and general prompts keep their proportion."""
