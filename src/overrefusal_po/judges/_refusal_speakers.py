"""Two speakers in one reply, as jailbreaks ask for: the first one refuses, the other answers.

other_speaker("[a] i can't help.\\n[b] take a wire.")     # 18, where the second one begins

A label is known by its form alone: two labels of one form, each at the beginning of a line, and not
the same one. Whoever asks may call the speakers as they like.
"""

from __future__ import annotations

import re

FORMS = tuple(
    re.compile(form, re.M)
    for form in (
        r"^[*_]{0,2}\[([^\]\n]{1,28})\]:?(?=\s)",  # [Jailbreak] or [Jailbreak]:
        r"^[*_]{0,2}\(([^)\n]{1,28})\):?(?=\s)",
        r"^[*_]{0,2}([a-z][\w.'-]{1,14}(?: [\w.'-]{1,14}){0,2}) ?:[*_]{0,2}(?=\s)",
        r"^as (?!an? |the |your |for |long |well )(\w[\w.-]{1,14}),(?=\s)",
        r"^([α-ωΑ-Ω\u2190-\u2bff\U0001f300-\U0001faff]\ufe0f?) ?:?(?=\s)",  # a letter or an emoji
    )
)
"""How a speaker is named before what is said."""

COLON = FORMS[2]

HEADING = re.compile(
    r"(?:step|option|method|part|tip|example|point|day|week|phase|section|chapter|stage|level)\b"
    r"|(?:important |quick |final |safety |legal |please )?"
    r"(?:notes?|warnings?|disclaimers?|caution|reminders?|answers?|questions?|reasons?|summary|"
    r"conclusion|instead|alternatives?|suggestions?|resources?|solutions?|results?|explanations?|"
    r"response|output|input|title|subject|subtitle|key|why|how|what|where|when|who|pros|cons|"
    r"for|if|in|on|at|by|with|to|from|about|the|this|that|these|those|a|an|here)\b",
)
"""Words that begin a heading with a colon, which names no speaker."""


def other_speaker(low: str) -> int | None:
    """Where the second speaker of a reply begins; None if it has one speaker alone. `low`: the
    reply in lower case, which begins with the first one's label."""
    for form in FORMS:
        first = form.match(low)
        if first is None or (form is COLON and HEADING.match(first[1])):
            continue
        for other in form.finditer(low, first.end()):
            heading = form is COLON and HEADING.match(other[1])
            if other[1].strip() != first[1].strip() and not heading:
                return other.start()
    return None
