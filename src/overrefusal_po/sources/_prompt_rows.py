"""A row under our names -> Prompt or Triple, its kind by `kind` or `label`.

row_to_prompt({"prompt": "How?", "label": "safe"}, "x.jsonl, line 1", None, source="x.jsonl")
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

from pydantic import ValidationError

from overrefusal_po.records import JsonObject, Kind, Prompt, Triple, first_fault
from overrefusal_po.sources._completions import completion_turns
from overrefusal_po.sources._conversations import (
    check_unanswered,
    check_unpaired,
    has_sides,
    row_asked,
    stated_prompt,
)
from overrefusal_po.sources._origins import row_origin
from overrefusal_po.sources._pairs import check_own_prompt
from overrefusal_po.sources._turns import (
    Unread,
    is_blank,
    prompt_id,
    row_category,
    row_prefix,
    short,
)

UNCHECKED = "unsafe_unverified"
"""The label of red-team dialogues that nobody checked: meant to be harmful, and its preferred
response may comply."""

Label = str | int | bool
KIND_OF_LABEL: dict[Label, Kind] = {"safe": "benign", "unsafe": "harmful", UNCHECKED: "harmful"}

TRIPLE_SIDES = ("safe_response", "harmful_response")


def no_triple(row: JsonObject, prompt: Prompt, labels: Collection[Label]) -> str | None:
    """Why a row gives no triple; None if it does."""
    if prompt.kind != "harmful":
        return f"of kind {prompt.kind}"
    if row.get("label") == UNCHECKED and UNCHECKED not in labels:
        return f"with the label {UNCHECKED}"
    missing = [side for side in TRIPLE_SIDES if is_blank(row.get(side))]
    return f"without {missing[0]}" if missing else None


def row_triple(row: JsonObject, prompt: Prompt, place: str) -> Triple:
    """The triple of a row and its prompt; ValueError for a response that is no text, and for what
    `checked_triple` refuses."""
    for side in TRIPLE_SIDES:
        if not isinstance(row[side], str):
            raise ValueError(
                f"{place}, column {side}: {side} is {short(row[side])}; it must be text. Write "
                "the response, or delete the row."
            )
    sides = {side: row[side] for side in TRIPLE_SIDES}
    check_unanswered(stated_prompt(row, place, Counter()), place, *sides.values())
    return checked_triple(Triple(prompt=prompt, **sides), place)


def checked_triple(triple: Triple, place: str) -> Triple:
    """The triple; ValueError if its prompt asks nothing or is not harmful, if a response is blank,
    or if both are the same text."""
    check_own_prompt(triple.prompt, place)
    if triple.prompt.kind != "harmful":
        raise ValueError(
            f"{place}: the prompt's kind is {triple.prompt.kind}; that of a triple is harmful. "
            "Correct the kind, or delete the row."
        )
    texts = [getattr(triple, side) for side in TRIPLE_SIDES]
    for side, text in zip(TRIPLE_SIDES, texts, strict=True):
        if is_blank(text):
            raise ValueError(f"{place}: {side} is empty. Write the response, or delete the row.")
    if texts[0].lower().split() == texts[1].lower().split():
        raise ValueError(
            f"{place}: {' and '.join(TRIPLE_SIDES)} are equal ({short(texts[0])}). DeRTa would "
            "refuse and train on the same text. Correct one of them, or delete the row."
        )
    return triple


def own_triple(row: JsonObject, place: str) -> Triple:
    """A row of our own triples.jsonl; ValueError if it is none, or one that other forms may not be
    either."""
    try:
        triple = Triple.model_validate(row)
    except ValidationError as error:
        raise ValueError(f"{place}: not a Triple: {first_fault(error)}") from None
    checked_triple(triple, place)
    if triple.prompt.origin is not None:
        return triple
    origin = row_origin(row, place, tuple(row), Counter(), own_id=triple.prompt.id)
    prompt = triple.prompt.model_copy(update={"origin": origin})
    return triple.model_copy(update={"prompt": prompt})


def row_to_prompt(
    row: JsonObject,
    place: str,
    kind: Kind | None,
    *,
    source: str,
    labels: Mapping[Label, Kind] = KIND_OF_LABEL,
    unread: Unread | None = None,
) -> Prompt:
    """One row of a public set as a Prompt; ValueError names `place` and the field."""
    check_unpaired(row, place, labels)
    check_labelled(row, place, labels)
    kind = row.get("kind") or label_kind(row.get("label"), labels, place) or kind
    if kind is None:
        raise ValueError(
            f"{place}: no kind. Add `kind` (harmful, benign, general) or `label` (safe, unsafe) to "
            f"the row, or `kind` to the source. The columns found are {', '.join(map(str, row))}."
        )
    try:
        unread = Counter() if unread is None else unread
        if is_blank(row.get("completion")) or has_sides(row):
            turns, answer = row_asked(row, place, unread)
        else:
            (turns, said), answer = completion_turns(row, place, unread), None
            row = {**row, "completion": said}
        if answer is not None and is_blank(row.get("response")):
            row = {**row, "response": answer}
        reference = row_reference(row, kind)
        if not isinstance(reference, str | None):
            raise ValueError(
                f"{place}: the response is {short(reference)}; it must be text. Write its text "
                "alone, or delete the row."
            )
        if answer not in (None, reference):
            unread["last turn by the assistant"] += 1
        for name in ("response", "safe_response", "completion") if answer is None else ():
            unread[name] += not is_blank(row.get(name)) and row[name] != reference
        prefix = row_prefix(row, place)
        return Prompt(
            id=prompt_id(kind, turns, prefix),
            messages=turns,
            kind=kind,
            category=row_category(row) or "uncategorised",
            source=source,
            split=row.get("split"),
            topic=row.get("topic"),
            contrast=is_contrast(row, place),
            reference=reference,
            assistant_prefix=prefix,
        )
    except ValidationError as error:
        raise ValueError(f"{place}: {first_fault(error)}") from None


def spellings(value: Label) -> tuple[str, ...]:
    """The texts in lower case that a value of a recipe stands for: YAML reads `no` as false."""
    if isinstance(value, bool):
        return ("true", "yes", "on") if value else ("false", "no", "off")
    return (str(value).lower(),)


def known_labels(labels: Mapping[Label, Kind]) -> dict[str, Kind]:
    """{label in lower case: kind}; a label that is written as text comes before one of YAML's."""
    by_text = sorted(labels.items(), key=lambda item: isinstance(item[0], bool), reverse=True)
    return {text: kind for label, kind in by_text for text in spellings(label)}


def known_kind(label: object) -> Kind | None:
    """The kind behind a label of public sets, whatever its case; None for another label."""
    return KIND_OF_LABEL.get(str(label).lower())


def check_labelled(
    row: JsonObject, place: str, labels: Mapping[Label, Kind] = KIND_OF_LABEL
) -> None:
    """Raises ValueError if `kind` says harmful and `label` harmless, or the other way round. A
    label that says no kind is none of this."""
    kind, label = row.get("kind"), row.get("label")
    if is_blank(kind) or is_blank(label):
        return
    other = known_labels(labels).get(str(label).lower())
    if other is not None and (kind == "harmful") != (other == "harmful"):
        raise ValueError(
            f"{place}: kind is {short(kind)}, and label is {short(label)}, which says {other}. "
            "Correct one of them, or leave one out: data.ignore: [label]."
        )


def label_kind(label: object, labels: Mapping[Label, Kind], place: str) -> Kind | None:
    """The kind behind a label, whatever its case; None without a label. ValueError on a label that
    is not known."""
    if label is None:
        return None
    known = known_labels(labels)
    if str(label).lower() not in known:
        raise ValueError(
            f"{place}: label is {label!r}; allowed is one of {', '.join(known)}. Other labels: "
            "`labels: {their label: harmful | benign | general}`."
        )
    return known[str(label).lower()]


def row_reference(row: JsonObject, kind: Kind) -> str | None:
    """The good response of a row, None if none is known to be good."""
    # a bare `response` beside a harmful prompt may be anything, and so may the preferred one of an
    # unchecked dialogue
    names = ["reference"]
    if kind != "harmful":
        names += ["response", "completion"]
    elif row.get("label") != UNCHECKED:
        names += ["safe_response"]
    return next((row[name] for name in names if not is_blank(row.get(name))), None)


YES, NO = ("true", "1", "1.0", "yes", "y", "on"), ("false", "0", "0.0", "no", "n", "off")
"""How tables write true and false, in lower case."""


def is_contrast(row: JsonObject, place: str) -> bool:
    """Whether a row is the harmful twin of a benign prompt; its category tells if the row does not
    say. ValueError for a word that is neither yes nor no."""
    value = row.get("contrast")
    if is_blank(value):
        return (row_category(row) or "").startswith("contrast")
    word = str(value).strip().lower()
    if word not in (*YES, *NO):
        raise ValueError(
            f"{place}: contrast is {short(value)}; allowed is one of {', '.join((*YES, *NO))}."
        )
    return word in YES
