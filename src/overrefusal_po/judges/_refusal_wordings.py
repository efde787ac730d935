"""The wordings that `refusal.py` looks for, read from `wordings/<language>.yaml`.

    say.decline.search("i can't help with that")        # English: each entry of en.yaml
    languages_in("dabei kann ich leider nicht helfen")  # a text's other languages: German
    languages_in(low)[0].decline.search(low)            # their entries, the same way

en.yaml explains the format. A file is read when a text is first judged. A pattern is compiled when
it is first used. A language is added with one file in the folder.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parent / "wordings"
BLOCK = re.compile(r"\{([a-z]\w*)\}")
Entry = Mapping[str, Any]
"""What a file says of one kind of evidence: strings, lists and a truth value."""


class Wordings:
    """The entries of one file, compiled, as attributes; AttributeError when there is none."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __getattr__(self, name: str) -> re.Pattern[str]:
        """The pattern of the entry `name`, which is an ordinary attribute from then on."""
        if name.startswith("_") or name not in self.evidence:
            raise AttributeError(f"{self.path.name} has no entry {name!r}")
        found = compiled(self.evidence[name], self.blocks)
        setattr(self, name, found)
        return found

    @cached_property
    def file(self) -> dict[str, Any]:
        """What the file holds."""
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        return dict(yaml.load(self.path.read_text(encoding="utf-8"), Loader=loader))

    @cached_property
    def evidence(self) -> dict[str, Entry]:
        """The entries by name."""
        return dict(self.file["evidence"])

    @cached_property
    def blocks(self) -> dict[str, str]:
        """The building blocks by name, as regular expressions; each may use those above it."""
        blocks: dict[str, str] = {}
        for name, text in self.file.get("blocks", {}).items():
            either = [expanded(line, blocks) for line in joined_lines(text)]
            blocks[name] = either[0] if len(either) == 1 else f"(?:{'|'.join(either)})"
        return blocks


class English(Wordings):
    """The English entries, and what is made of them."""

    @cached_property
    def decline_at_word(self) -> re.Pattern[str]:
        """`decline` at a word's start: three times as fast; `decline` itself is for glued words."""
        return re.compile(rf"\b(?:{self.decline.pattern})")

    @cached_property
    def negative_words(self) -> tuple[str, ...]:
        """The words of that entry, in its order: the commonest come first."""
        return tuple(self.evidence["negative_words"]["words"])

    @cached_property
    def idle_words(self) -> frozenset[str]:
        """The words of that entry."""
        return frozenset(self.evidence["idle_words"]["words"])


class Language(Wordings):
    """Another language: how a text in it is known, and its entries."""

    @cached_property
    def common_words(self) -> frozenset[str]:
        """Words of which each refusal has at least one; none when the letters tell the language."""
        return frozenset(unicodedata.normalize("NFC", self.file.get("common_words", "")).split())

    @cached_property
    def letters(self) -> re.Pattern[str] | None:
        """The letters that tell the language, None when its words do."""
        return re.compile(self.file["letters"]) if "letters" in self.file else None

    def condemned(self, text: str) -> str:
        """How a sentence calls an act wrong: the words up to the end of the match; "" if it does
        not, or if the file has no entry `condemnation`."""
        entry = self.evidence.get("condemnation")
        if entry is None:
            return ""
        begins = entry.get("where") == "beginning"
        found = (self.condemnation.match if begins else self.condemnation.search)(text)
        return found.group() if found else ""

    def find(self, name: str, text: str) -> re.Match[str] | None:
        """The first match of the entry `name` in a text; None too if the file lacks the entry."""
        return getattr(self, name).search(text) if name in self.evidence else None


say = English(FOLDER / "en.yaml")


@cache
def other_languages(folder: Path = FOLDER) -> tuple[Language, ...]:
    """The languages besides English with a file there, in the order in which they are tried."""
    found = [Language(path) for path in sorted(folder.glob("*.yaml")) if path.stem != "en"]
    return tuple(sorted(found, key=lambda language: language.file["order"]))


@cache
def all_common_words() -> frozenset[str]:
    """The common words of all those languages."""
    return frozenset().union(*(language.common_words for language in other_languages()))


def languages_in(low: str) -> list[Language]:
    """The languages besides English that a plain, lower-case NFC text may hold.

    An English text costs one look-up and no regular expression.
    """
    words = low.split()
    found: list[Language] = []
    if not all_common_words().isdisjoint(words):
        found += [x for x in other_languages() if not x.common_words.isdisjoint(words)]
    if not low.isascii():
        found += [x for x in other_languages() if x.letters and x.letters.search(low)]
    return found


@cache
def in_any_language(name: str) -> re.Pattern[str]:
    """The entry `name` of all those languages, a regex in each, as one pattern."""
    return re.compile("|".join(getattr(x, name).pattern for x in other_languages()))


def compiled(entry: Entry, blocks: Mapping[str, str]) -> re.Pattern[str]:
    """The pattern of an entry; ValueError when it names a block that the file lacks."""
    if "regex" in entry:
        text = expanded("".join(line.strip() for line in uncommented(entry["regex"])), blocks)
        flags = re.IGNORECASE if entry.get("any_case") else 0
        return re.compile(unicodedata.normalize("NFC", text), flags)
    each = (expanded(wording, blocks) for wording in joined_lines(entry["wordings"]))
    either = "|".join(f"(?:{wording})" for wording in each).replace(" ", r"\s")
    start = r"\b" if entry.get("where") == "word" else ""
    return re.compile(unicodedata.normalize("NFC", f"{start}(?:{either})"))


def uncommented(text: str) -> list[str]:
    """The lines without comments."""
    return [line for line in text.splitlines() if not line.lstrip().startswith("# ")]


def joined_lines(text: str) -> list[str]:
    """The lines without comments; an indented line belongs to the line before it."""
    lines: list[str] = []
    for line in uncommented(text):
        if line.startswith(" ") and lines:
            lines[-1] += line.strip()
        else:
            lines.append(line.strip())
    return lines


def expanded(wording: str, blocks: Mapping[str, str]) -> str:
    """The wording with each {name} replaced by that block; ValueError when there is none."""

    def block(found: re.Match[str]) -> str:
        if found[1] not in blocks:
            known = ", ".join(blocks) or "none"
            raise ValueError(
                f"There is no block {found[1]!r} for {wording!r}. The blocks above it: {known}. "
                "Correct the name, or define the block."
            )
        return blocks[found[1]]

    return BLOCK.sub(block, wording)
