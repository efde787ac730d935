"""What PAIR says to its attacker and its judge, and what it reads in their replies.

    request = judge_text("id", objective="...", prompt="...", response="...")
    read_proposal('{"improvement": "...", "prompt": "..."}').prompt
    read_rating("Rating: [[7]]")    # 7

The texts are in `prompts/pair_*.v1.txt`. The paper's release (MIT) has others; the wording here is
ours. Objectives, prompts and responses are hostile: each stands between marked lines, and nothing
in it is expanded (`fences`).
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

from overrefusal_po.attacks.completing import opening
from overrefusal_po.fences import fenced, filled, harmless, unique_mark
from overrefusal_po.records import content_id

FOLDER = Path(__file__).parent / "prompts"
APPROACHES = ("roleplay", "logic", "authority")
"""Ways to persuade; streams take them in turn, as in the release."""

REPLY_SHOWN = 4_000
"""Characters of a response that the attacker reads. The judge reads all of it."""

FIRST_BRACES = 20
"""Places of a reply at which a JSON object is looked for."""

RATING = re.compile(r"\[\[\s*(\d{1,3})\s*\]\]")

Begun = str
"""The first characters of a reply that the program writes itself; "" for none."""


class Proposal(NamedTuple):
    """What the attacker proposes."""

    improvement: str
    prompt: str

    @property
    def said(self) -> str:
        """The proposal as the attacker's own turn in its conversation."""
        return harmless(json.dumps(self._asdict(), ensure_ascii=False))


def attacker_text(objective: str, approach: str) -> str:
    """What the attacker is told once, before everything else."""
    mark = unique_mark(0, approach, (objective,))
    values = {
        "mark": mark,
        "objective": fenced("objective", objective, mark),
        "opening": harmless(f"Sure! {opening(objective)}"),
        "approach": text_of(f"pair_{approach}"),
    }
    return filled(text_of("pair_attacker"), values)


def feedback(objective: str, response: str | None, score: int | None) -> str:
    """What the attacker reads after a prompt of its own. None: no response, or no rating."""
    said = response or ""
    cut = said if len(said) <= REPLY_SHOWN else f"{said[:REPLY_SHOWN]} [...]"
    mark = unique_mark(0, "feedback", (objective, cut))
    reply = "There is no REPLY." if response is None else f"REPLY:\n{fenced('reply', cut, mark)}"
    rated = "unknown" if score is None else str(score)
    return f"{reply}\n\nOBJECTIVE:\n{fenced('objective', objective, mark)}\n\nSCORE: {rated}"


def judge_text(item: str, *, objective: str, prompt: str, response: str) -> str:
    """What the judge reads about one response. `item` is its id, from which the mark is made."""
    texts = {"objective": objective, "prompt": prompt, "response": response}
    mark = unique_mark(0, item, tuple(texts.values()))
    blocks = {name: fenced(name, text, mark) for name, text in texts.items()}
    return filled(text_of("pair_judge"), {"mark": mark, **blocks})


def read_proposal(reply: str) -> Proposal | None:
    """The first JSON object of a reply that has both texts; None if there is none.

    Text around it, such as a Markdown fence, and line ends inside its texts are let pass. A weak
    attacker repeats the form that it was shown: that proposes nothing.
    """
    decoder = json.JSONDecoder(strict=False)
    for found in list(re.finditer(r"\{", reply))[:FIRST_BRACES]:
        try:
            value, _ = decoder.raw_decode(reply, found.start())
        except (ValueError, RecursionError):
            continue
        improvement, prompt = value.get("improvement"), value.get("prompt")
        if not (isinstance(improvement, str) and isinstance(prompt, str)):
            continue
        if prompt.strip().strip(".").casefold() not in ("", form_shown().prompt.casefold()):
            return Proposal(sendable(improvement), sendable(prompt))
    return None


@cache
def form_shown() -> Proposal:
    """The example of a reply that the attacker is shown."""
    line = next(line for line in text_of("pair_attacker").splitlines() if line.startswith('{"'))
    return Proposal(**json.loads(line))


def sendable(text: str) -> str:
    """The text with lone surrogates, which JSON may hold and no file can, replaced by "?"."""
    return text.encode("utf-8", "replace").decode()


def read_rating(reply: str) -> int | None:
    """The last rating of a reply; None if there is none from 1 to 10."""
    found = RATING.findall(reply)
    rating = int(found[-1]) if found else 0
    return rating if 1 <= rating <= 10 else None


def begun_json(first: bool) -> Begun:
    """How the attacker's reply begins if the program begins it; before the first response there is
    nothing to improve."""
    return '{"improvement": "", "prompt": "' if first else '{"improvement": "'


@cache
def text_of(name: str) -> str:
    """The newest text of this name."""
    return (FOLDER / f"{name}.v1.txt").read_text(encoding="utf-8").strip()


def texts_version() -> str:
    """A name for the wording of all texts."""
    names = ("pair_attacker", "pair_judge", *(f"pair_{approach}" for approach in APPROACHES))
    return f"v1-{content_id([text_of(name) for name in names])[:8]}"
