"""A reply and its prompt, read: plain text in sentences, and offsets that lead back.

    text = plain(composed(answer))
    reply, asked = read_reply(text), read_question(prompt)
    raw_offset(answer, 12)          # where character 12 of the plain text stands in the answer

Emphasis and doubled blanks are dropped. Quotations and code are hidden, because their words are not
the model's own.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left
from functools import cached_property, lru_cache
from typing import NamedTuple

from overrefusal_po.judges._refusal_wordings import Language, languages_in, say

STRAIGHT = str.maketrans("’‘‛´“”„«»「」『』\u00a0\u3000", "'" * 4 + '"' * 9 + "  ")
SQUEEZED = re.compile(r"[*_~\u200b\u200d\ufeff]+|[^\S\n](?=\s)|\n(?=\n)")
STAR_BULLET = re.compile(r"(?m)^([ \t]{0,8})\*(?= )")
SENTENCE_END = re.compile(
    r"(?m:(?<=[.!?])(?<!^\d\.)(?<!^\d\d\.)|(?<=[.!?][\"')\]]))\s|\n|(?<=[。！？।؟])",
)
ASCII_SENTENCE_END = re.compile(
    r"(?m)\s(?:(?<=\n)|(?<=[.!?]\s)(?<!^\d\.\s)(?<!^\d\d\.\s)|(?<=[.!?][\"')\]]\s))"
)
"""The same ends in ASCII text, three times faster: a blank is looked for first."""

LIST_ITEM = re.compile(r"\s?(?:[-•–+]\s|\(?\d{1,2}[.)]\s|step\s\d{1,2}\b|[a-h]\)\s)")
GLUED = re.compile(r"[^\W_A-Z][A-Z]")
MAY_HIDE = re.compile(r"[\"`]|(?<![a-z])'")
QUOTED = re.compile(r'"[^"\n]{1,600}"')
HIDDEN = re.compile(
    r"```.*?(?:```|\Z)"
    r'|"[^"\n]{1,600}"'
    r"|(?<![^\s(\[:,])'(?=\w)[^'\n]{0,200}(?:'(?=\w)[^'\n]{0,200}){0,9}[.,!?…-]'(?!\w)",
    re.DOTALL,
)
"""Code, quotations with double marks, and single-quoted speech (with apostrophes in it)."""


OWN_WORD = re.compile(r"[^\W_]+")
OWN_WORDS = 2
"""Words outside quotations, at most, in a reply that is one quotation: a label such as "Bot says:".
"""


class Sentence(NamedTuple):
    """A sentence of the plain text: where it starts, its text, whether it is an item of a list."""

    start: int
    text: str
    item: bool
    words: int


class Reply(NamedTuple):
    """A reply, read: its text as written and in lower case (equally long), and its sentences.

    Quotations are hidden in the sentences. `other_languages`: those besides English that it may
    hold. `glued`: a capital stands inside a word, as when a model breaks off to refuse.
    `negatives`: the words of the entry `negative_words` that it holds.
    """

    cased: str
    low: str
    other_languages: list[Language]
    glued: bool
    negatives: list[str]
    sentences: list[Sentence]


def composed(text: str) -> str:
    """The text in Unicode's normal form NFC, in which an accent is part of its letter."""
    return text if unicodedata.is_normalized("NFC", text) else unicodedata.normalize("NFC", text)


def given_offset(given: str, text: str, offset: int) -> int:
    """Where character `offset` of `text`, which is composed(given), stands in `given`."""
    if given is text:
        return offset
    ends = range(len(given))
    at = bisect_left(ends, offset, key=lambda end: len(unicodedata.normalize("NFC", given[:end])))
    while at < len(given) - 1 and unicodedata.combining(given[at]):
        at += 1
    return at


def straightened(raw: str) -> str:
    """The text with straight quotes and dashes as bullets, as long as before."""
    text = raw.translate(STRAIGHT)
    return STAR_BULLET.sub(r"\1-", text) if "*" in text else text


def plain(raw: str) -> str:
    """The text without markdown emphasis and with single blanks, its case kept."""
    return SQUEEZED.sub("", straightened(raw))


def raw_offset(raw: str, offset: int) -> int:
    """Where character `offset` of plain(raw) stands in `raw`."""
    kept = read_to = 0
    for cut in SQUEEZED.finditer(straightened(raw)):
        if kept + cut.start() - read_to > offset:
            break
        kept += cut.start() - read_to
        read_to = cut.end()
    return read_to + offset - kept


def lower(text: str) -> str:
    """Lower case, as long as before: the Turkish dotted I is the one letter that would grow."""
    return text.replace("\u0130", "i").lower()


def read_reply(text: str) -> Reply:
    """The plain text in sentences. Quotations and code are hidden unless they are all of it."""
    low = lower(text)
    seen = HIDDEN.sub(blank, low) if MAY_HIDE.search(low) else low
    if "\x01" in seen and sum(map(word_count, OWN_WORD.findall(seen))) <= OWN_WORDS:
        seen = low
    sentences = []
    start = 0
    pattern = ASCII_SENTENCE_END if seen.isascii() else SENTENCE_END
    ends = [(m.start(), m.end()) for m in pattern.finditer(seen)]
    for end, after in [*ends, (len(seen), len(seen))]:
        piece = seen[start:end]
        if piece.strip():
            item = (start == 0 or low[start - 1] == "\n") and LIST_ITEM.match(piece) is not None
            sentences.append(Sentence(start, piece, item, word_count(piece)))
        start = after
    negatives = [word for word in say.negative_words if word in low]
    return Reply(text, low, languages_in(low), GLUED.search(text) is not None, negatives, sentences)


def blank(hidden: re.Match[str]) -> str:
    """The quotation's marks without its words, as long as before; a short fenced reply stays."""
    found = hidden.group()
    if found.startswith("`") and word_count(found) <= 60:
        return QUOTED.sub(blank, found)
    return found[0] + "\x01" * (len(found) - 2) + found[-1]


def word_count(text: str) -> int:
    """Words, or what comes to about as much in a script without blanks (two characters a word)."""
    blanks = text.count(" ") + 1
    return blanks if text.isascii() else max(blanks, sum(c >= "\u3040" for c in text) // 2)


COPIED_FROM, COPIED_WHOLE = 60, 400
"""Characters of a prompt within which the task to copy a text is named, and of all of it. What
forbids a model to refuse is longer, and quotes refusals too."""

QUOTED_PART = re.compile(r"['\"].{4,}['\"]|:\s*.{4,}", re.DOTALL)
"""What is in quotation marks, or stands behind a colon."""

READ_CHARACTERS = 2000
"""Characters of a prompt that are read."""

STEM = re.compile(r"[a-z]{4,}")


class Question:
    """What the prompt tells about its answers. `text` is its plain text in lower case.

    Each property is found when it is first asked for: most replies need few of them.
    """

    def __init__(self, text: str, *, cut: bool = False) -> None:
        self.text = text
        self.cut = cut

    @cached_property
    def topic(self) -> frozenset[str]:
        """The first letters of its content words."""
        idle = say.idle_words
        return frozenset(word[:5] for word in STEM.findall(self.text) if word not in idle)

    @cached_property
    def yes_no(self) -> bool:
        """Whether yes or no answers it."""
        return say.yes_no_prompt.match(self.text) is not None

    @cached_property
    def why(self) -> bool:
        """Whether it asks for reasons."""
        return say.why_prompt.match(self.text) is not None

    @cached_property
    def norms(self) -> bool:
        """Whether it asks what is allowed or risky."""
        return say.norms_prompt.search(self.text) is not None

    @cached_property
    def permission(self) -> bool:
        """Whether it asks what somebody may do."""
        return say.permission_prompt.match(self.text) is not None

    @cached_property
    def how(self) -> bool:
        """Whether it asks for a way to do something."""
        return say.how_prompt.match(self.text) is not None

    @cached_property
    def defines(self) -> bool:
        """Whether it asks what something is."""
        return not self.how and say.definition_prompt.match(self.text) is not None

    @cached_property
    def creative(self) -> bool:
        """Whether it asks for a text in which somebody may speak."""
        return say.creative_prompt.search(self.text) is not None

    @cached_property
    def negated(self) -> bool:
        """Whether it speaks of refusing; taken for granted if a part was not read."""
        return self.cut or say.negated_prompt.search(self.text) is not None

    @cached_property
    def copies(self) -> bool:
        """Whether a text that may itself refuse is to be copied or changed."""
        return say.copying_prompt.search(self.text) is not None and self.negated

    @cached_property
    def quotes_refusal(self) -> bool:
        """Whether a short text that itself refuses is to be copied, changed or translated."""
        copied = say.copying_prompt.search(self.text[:COPIED_FROM])
        quoted = QUOTED_PART.search(self.text, copied.end() - 1) if copied else None
        if quoted is None or len(self.text) > COPIED_WHOLE:
            return False
        languages = [say, *languages_in(quoted.group())]
        return any(language.decline.search(quoted.group()) for language in languages)

    @cached_property
    def declining(self) -> bool:
        """Whether it asks how to refuse."""
        return say.declining_prompt.search(self.text) is not None

    @cached_property
    def asks_judgement(self) -> bool:
        """Whether criticism of an act can be its answer: a question of fact or of right, a call for
        help against harm. If a way to do something is asked for, a word for what is not allowed
        names the act ("how do I sell these illegally")."""
        asks_norms = self.norms and not self.how
        found = self.yes_no or self.permission or self.defines or asks_norms
        return found or self.assesses or self.safety

    @cached_property
    def safety(self) -> bool:
        """Whether it asks for help against harm."""
        return say.safety_prompt.search(self.text) is not None

    @cached_property
    def assesses(self) -> bool:
        """Whether it asks for facts or a judgement about an act, not for the act."""
        return say.assessing_prompt.match(self.text) is not None

    @cached_property
    def text_task(self) -> bool:
        """Whether it asks for a text in which criticism may stand, or gives one to work on."""
        if say.text_prompt.match(self.text) is None or say.advocacy_prompt.match(self.text):
            return False
        return not self.how or say.written_prompt.match(self.text) is not None

    @cached_property
    def two_part(self) -> bool:
        """Whether it asks for two things."""
        return say.two_part_prompt.search(self.text) is not None


@lru_cache(maxsize=16)  # both sides of a pair, and samples, have one prompt
def read_question(prompt: str) -> Question:
    """Reads a prompt; an empty one is unknown, and then nothing is ruled out."""
    return Question(
        lower(plain(composed(prompt[:READ_CHARACTERS]))), cut=len(prompt) > READ_CHARACTERS
    )


def stems(text: str) -> list[str]:
    """The first letters of a text's longer words, in order."""
    return [word[:5] for word in STEM.findall(text)]


def topic_stems(text: str, asked: Question) -> set[str]:
    """The stems that a text shares with the prompt."""
    return {*stems(text)} & asked.topic


def unlabelled(text: str) -> str:
    """A sentence without a speaker's name before it."""
    label = say.speaker_label.match(text)
    return text[label.end() :].lstrip() if label else text.lstrip()
