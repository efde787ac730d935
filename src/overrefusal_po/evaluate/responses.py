"""How responses were drawn and how they ended, in counts and in sentences for a reader.

truncated_entry(outcomes)                 # {"count": 258, "of": 284}
"""

from __future__ import annotations

from collections.abc import Sequence

from overrefusal_po.evaluate.entries import TruncatedEntry
from overrefusal_po.recipe.schema import EvaluateRecipe
from overrefusal_po.records import Outcome
from overrefusal_po.run.complete import in_process


def truncated_entry(outcomes: Sequence[Outcome]) -> TruncatedEntry:
    """How many responses ended at the limit of new tokens."""
    ends = [o.completion.finish_reason for o in outcomes if o.completion.error is None]
    return {"count": ends.count("length"), "of": len(ends)}


def response_notes(
    recipe: EvaluateRecipe, truncated: TruncatedEntry, left_out: str | None
) -> list[str]:
    """Sentences about how the responses were drawn and how they ended."""
    notes = [] if left_out is None else [left_out]
    if truncated["count"]:
        notes.insert(
            0,
            f"{recipe.run_name}: {truncated['count']} of {truncated['of']} responses ended at the "
            f"limit of {recipe.generation.max_new_tokens} tokens.",
        )
    if not in_process(recipe.engine):
        notes.append(
            "The servers may have applied the model's own generation_config.json. vLLM does, "
            "unless it was started with --generation-config vllm."
        )
    return notes
