"""Prompts -> what makes two of them the same: the whole conversation. Pure.

    conversation_key(prompt)               # equal for the same turns, whatever case and white space
    words_and_signs("What is C++?")        # (["what", "is", "c"], ["++"])
    conversation_text(prompt.conversation)   # all turns as one text, for people and judges
    spoken_words("Hi there, 你好")         # ["Hi", "there,", "你", "好"]

Signs count, since "C++" is not "C#" and "<" is not ">". Only punctuation around a word does not.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from overrefusal_po.records import Message, Prompt, content_id

CLOSING = re.compile(
    "(?<=\\S)(?:[.,;:?\u2026\"'\u2019\u201d\u00bb)\\]\u3002\uff0c\uff1f]|(?<!\\d)[!\uff01])+(?=\\s|$)"
)
"""Punctuation behind a word. "5!" keeps its sign: it is a factorial."""

OPENING = re.compile("(?:(?<=\\s)|^)[\"'\u2018\u201c\u201e\u00ab(\\[\u00bf\u00a1]+(?=\\w)")
INSIDE = re.compile("(?<=\\w)['\u2019](?=\\w)")
"""The apostrophe of "don't"."""

DASH = re.compile(r"(?<=[^\W\d])-(?=[^\W\d])|(?:(?<=\s)|^)(?:-{2,}|[\u2013\u2014])(?=\s|$)")
"""The hyphen of "step-by-step", and the dash of a sentence."""

UNSEEN = re.compile("[\u00ad\u200b\u2060\ufeff]")
"""Characters that nobody sees and that join nothing; emoji and Indic scripts need the joiners."""

UNSPACED = (
    "\u0e01-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
    "\uff66-\uff9f\U00020000-\U0003ffff"
)
"""Scripts that put no blanks between words: Thai, Lao, Burmese, Khmer, kana, Chinese characters."""

UNSPACED_MARKS = (
    "\u0e31\u0e34-\u0e3a\u0e47-\u0e4e\u0eb1\u0eb4-\u0ebc\u0ec8-\u0ece\u102b-\u103e\u1056-\u1059"
    "\u17b4-\u17d3"
)
"""The marks among them: part of the letter before."""

SPOKEN_WORD = re.compile(f"[{UNSPACED}][{UNSPACED_MARKS}]*|[^\\s{UNSPACED}]+")

MARKS = "\u0300-\u036f\u0591-\u05bd\u0610-\u061a\u064b-\u065f\u0670\u0900-\u0963\u0970-\u0dff"
"""Blocks of marks that stand inside of words, and of scripts with such marks (Hindi, Tamil)."""

LETTERS = rf"[^\W{UNSPACED}](?:[{MARKS}]|[^\W{UNSPACED}])*"
PLAIN_WORD = re.compile(rf"(?=\w)[{UNSPACED}][{UNSPACED_MARKS}]*|{LETTERS}(?:['\u2019]{LETTERS})?")


class Parts(NamedTuple):
    """A text's words in lower case, and its signs, both in order."""

    words: list[str]
    signs: list[str]


def spoken_words(text: str) -> list[str]:
    """The words of a text in any script, with their punctuation. In a script without blanks each
    letter is a word: nothing separates words there, and a token is about that long."""
    return SPOKEN_WORD.findall(text)


def word_ends(text: str) -> list[int]:
    """The character behind each of the `spoken_words`, in order."""
    return [match.end() for match in SPOKEN_WORD.finditer(text)]


def lower_words(text: str, most: int | None = None) -> list[str]:
    """Lower-case words without punctuation, in any script (as for `spoken_words`), the first `most`
    of them; an apostrophe of either form is kept as '."""
    found = islice(PLAIN_WORD.finditer(text.lower()), most)
    return [word[0].replace("\u2019", "'") for word in found]


def bare_words(text: str) -> str:
    """The words of `text`, the same whatever its case, punctuation and blanks; a text without words
    is returned unchanged."""
    words = re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(words) or text


def folded(text: str) -> str:
    """A text in one case, with one blank where white space was."""
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def words_and_signs(text: str) -> Parts:
    """The words and signs of a text. A word is letters, marks and digits; punctuation around words
    is left out."""
    text = DASH.sub(" ", UNSEEN.sub("", folded(text)))
    for punctuation in (CLOSING, OPENING, INSIDE):
        text = punctuation.sub("", text)
    words: list[str] = []
    signs: list[str] = []
    for part in text.split():
        if part.isalnum():  # nearly all of a text; only the rest is read sign by sign
            words.append(part)
        else:
            add_parts(part, words, signs)
    return Parts(words, signs)


def bare_text(text: str) -> str:
    """A text's words and signs, without case, blanks and punctuation."""
    words, signs = words_and_signs(text)
    return f"{' '.join(words)} | {' '.join(signs)}"


def add_parts(part: str, words: list[str], signs: list[str]) -> None:
    """Adds the words and signs of a text without blanks to the lists."""
    run, in_word = "", None
    for sign in part:
        is_word = unicodedata.category(sign)[0] in "LMN"
        if run and is_word != in_word:
            (words if in_word else signs).append(run)
            run = ""
        run, in_word = run + sign, is_word
    if run:
        (words if in_word else signs).append(run)


def conversation_key(prompt: Prompt) -> str:
    """A hash of all that the model reads, the same whatever its case and white space."""
    return content_id(*context_of(prompt), folded(prompt.text))


def context_of(prompt: Prompt) -> list[object]:
    """All that the model reads but the last user turn, in one case, and that turn's place."""
    last = max((at for at, m in enumerate(prompt.messages) if m.role == "user"), default=-1)
    turns = [(m.role, folded(m.content)) for at, m in enumerate(prompt.messages) if at != last]
    begun = (prompt.assistant_prefix, prompt.raw_text)
    return [last, turns, *(folded(text) if text else "" for text in begun)]


def conversation_text(turns: Sequence[Message]) -> str:
    """The turns as one text: a single user turn unchanged, others each under its role."""
    if len(turns) == 1 and turns[0].role == "user":
        return turns[0].content
    return "\n\n".join(f"[{turn.role}]\n{turn.content}" for turn in turns)


def unique_prompts(prompts: Iterable[Prompt]) -> Iterator[Prompt]:
    """The prompts, each id once: the first of it."""
    seen: set[str] = set()
    for prompt in prompts:
        if prompt.id not in seen:
            seen.add(prompt.id)
            yield prompt


def check_kinds(prompts: Iterable[Prompt]) -> None:
    """Raises ValueError if one prompt is asked as harmful and as harmless; it names both rows."""
    first: dict[str, Prompt] = {}
    for prompt in prompts:
        if prompt.attack is not None:
            continue
        other = first.setdefault(conversation_key(prompt), prompt)
        if (other.kind == "harmful") != (prompt.kind == "harmful"):
            raise ValueError(
                f"Prompt {prompt.label} is {prompt.kind}, and prompt {other.label} asks the same "
                f"and is {other.kind}. One of them is wrong: a refusal would be right and wrong. "
                "Correct or delete one of the rows."
            )
