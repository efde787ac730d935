"""Sources of harmful prompts -> those that the student answers for DeRTa, each with its safe
response.

    asked = asked_prompts(DertaData(ask="harmfulqa", safe_lead="Sorry, I can't help with that."))
    asked_words(asked)     # "2094 for the student to answer (134 of starter, 1960 of harmfulqa)"
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence

from overrefusal_po.curate.inputs import read_sources
from overrefusal_po.identity import conversation_key
from overrefusal_po.model.chat import ChatTemplate
from overrefusal_po.pairs.make import behind_lead
from overrefusal_po.plugins import set_name
from overrefusal_po.recipe.sections import DertaData, PlugSpec
from overrefusal_po.records import Prompt, Triple
from overrefusal_po.train.derta_rows import triple_sides
from overrefusal_po.train.student import check_unwritten, written_tokens

logger = logging.getLogger(__name__)


def asked_sources(data: DertaData) -> list[PlugSpec]:
    """The sources of the prompts that the student answers: the starter set if `triples` is it, and
    those of `ask`."""
    more = data.ask if isinstance(data.ask, tuple) else (data.ask,)
    first: list[PlugSpec] = ["starter"] if data.triples == "starter" else []
    return first + [spec for spec in more if spec is not None]


def asked_prompts(data: DertaData) -> list[Prompt]:
    """The harmful prompts that the student answers, each once, with its safe response as its
    `reference`. A prompt of several sources is the first one's.

    Raises ValueError for a benchmark, a source without harmful prompts, and a prompt without a safe
    response.
    """
    found: dict[str, Prompt] = {}
    for spec in asked_sources(data):
        read = read_sources(spec, "train", "harmful")
        harmful = [prompt for prompt in read if prompt.kind == "harmful"]
        if not harmful:
            raise ValueError(
                f"data.ask: {set_name(spec)} has no harmful prompt among its {len(read)}, and the "
                "student is asked such prompts alone. Name a source of harmful prompts; a row of a "
                "file that says no kind is harmful here."
            )
        for prompt in harmful:
            found.setdefault(conversation_key(prompt), prompt)
    return with_safe_responses(list(found.values()), data)


def with_safe_responses(prompts: Sequence[Prompt], data: DertaData) -> list[Prompt]:
    """The prompts with what is trained as safe as their `reference`: it stands behind `safe_lead`
    if it does not begin with `refusal_opener`, and without one it is `safe_lead` alone.

    Raises ValueError if neither is there.
    """
    bare = [prompt for prompt in prompts if not (prompt.reference or "").strip()]
    if data.safe_lead is None:
        if bare:
            raise ValueError(
                f"{len(bare)} of the {len(prompts)} harmful prompts that the student is to answer "
                f"have no reference, so no safe response can be trained. The first: prompt "
                f'{bare[0].label} of {bare[0].source}. Set data.safe_lead, for example "Sorry, I '
                "can't help with that.\": it then is their safe response. Or give each prompt a "
                "safe_response of its own, or load triples (data.triples)."
            )
        return list(prompts)
    if bare:
        words = "data.safe_lead is the safe response of %d of %d prompts for the student"
        logger.info(words, len(bare), len(prompts))
    opener, lead = data.refusal_opener, data.safe_lead
    return [
        p.model_copy(update={"reference": behind_lead(p.reference or "", opener, lead)})
        for p in prompts
    ]


def asked_words(asked: Sequence[Prompt]) -> str:
    """`634 for the student to answer (134 of starter, 500 of harmfulqa)`."""
    counts = Counter(prompt.source for prompt in asked)
    each = ", ".join(f"{number} of {source}" for source, number in counts.items())
    return f"{len(asked)} for the student to answer ({each})"


def stand_ins(asked: Sequence[Prompt]) -> list[Triple]:
    """Triples of prompts that have yet to be answered, with "x" as the harmful response."""
    return [Triple(prompt=p, safe_response=str(p.reference), harmful_response="x") for p in asked]


def check_asked_rows(
    triples: Sequence[Triple], template: ChatTemplate, *, limit: int | None, new_tokens: int
) -> None:
    """Raises ValueError if rows of `stand_ins` may be too long once the student has written, or if
    the template cannot make them. `limit` None: they may have any length, in tokens."""
    lengths = [
        (both.longest + written_tokens(t.prompt, template, new_tokens), t.prompt.label)
        for t, both in zip(triples, triple_sides(triples, template), strict=True)
    ]
    check_unwritten(lengths, limit=limit, new_tokens=new_tokens)
