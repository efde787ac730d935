"""The language of a reply, if the built-in judge does not read it.

    unread_language("Przykro mi, ale nie mogę w tym pomóc.")    # "Polish", without wordings/pl.yaml
    unread_language("I can't recommend this book enough.")      # None

Scripts are counted first, by their names in Unicode. Then the common words of each language are
counted (`languages.yaml`). A doubt is decided for reading: code, tables and names are read, and so
is a reply that opens in a language that is read. The numbers are our choice.

No package does this. py3langid 0.4.0 names the language of a sentence better, but it always names
one: of 6,895 English replies it took 44 (code, numbers, one word) for other languages.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple

import yaml

from overrefusal_po.judges._refusal_wordings import FOLDER, other_languages

FILE = Path(__file__).with_name("languages.yaml")
UNREAD = "the judge does not read {language}; name another judge, or add a file of wordings"
WORDS = 300
"""Words at the beginning of a reply that are looked at."""
ENGLISH_CHARACTERS = 1200
"""Characters at the beginning that tell English."""
LEAST_WORDS = 3
"""Different common words that tell a language; two are enough if one has a mark."""
LEAD, ENGLISH_LEAD = 1.25, 2.0
"""How many times the words of a read language an unread one must have."""
LEAST_LETTERS = 12
"""Letters that tell a script: of three words without a mark between them, or of one in a script
that has no blanks. An alphabet or a list of names has no such words."""
NO_BLANKS = {"THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN"}
SCRIPTS_OF_ALL = {"LATIN", "FULLWIDTH", "MODIFIER", "MATHEMATICAL", "DOUBLE", "UNKNOWN"}
"""Latin letters and symbols: they tell no language."""
PUNCTUATION = ".,;:!?…()[]{}\"'“”„«»‘’*_`-–—¿¡،؟؛।。"
QUOTED = re.compile(r'```.*?(?:```|\Z)|"[^"\n]{1,600}"|“[^”\n]{1,600}”|«[^»\n]{1,600}»', re.DOTALL)
MAY_QUOTE = re.compile(r'["“«`]')
PART = re.compile(r"[^.,;:!?()\n/|•0-9–—]+")
SENTENCE = re.compile(r"[^.!?:\n]+")
TRANSLATION = re.compile(
    r"\b(?:translat|how (?:do|does|would|can) \w+ say|übersetz|tradu|vertaal|перевед|çevir)"
    r"|ترجم|अनुवाद|翻译|翻譯|翻訳|訳して|번역"
)
"""What a prompt says that asks for a translation."""


class Profile(NamedTuple):
    """How a language is known: its name, its common words, and letters that mark a word."""

    name: str
    words: frozenset[str]
    marks: frozenset[str]
    read_as: str


Claim = tuple[str, frozenset[str]]
"""A word, and the codes of the languages in which it is common."""


@cache
def profiles(folder: Path = FOLDER) -> dict[str, Profile]:
    """The languages by code. A file of wordings adds its common words, and may add a language."""
    file = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    found = {
        code: Profile(
            entry["name"],
            frozenset(entry["words"].split()),
            frozenset(entry.get("marks", "")),
            entry.get("read_as", code),
        )
        for code, entry in file.items()
    }
    for language in other_languages(folder):
        code, words = language.path.stem, language.common_words
        known = found.get(code, Profile(language.file["language"], words, frozenset(), code))
        found[code] = known._replace(words=known.words | words)
    return found


@cache
def read_codes(folder: Path = FOLDER) -> frozenset[str]:
    """The codes of the languages that the judge reads."""
    files = {"en", *(language.path.stem for language in other_languages(folder))}
    return frozenset(code for code, known in profiles(folder).items() if known.read_as in files)


@cache
def claims(folder: Path = FOLDER) -> dict[str, frozenset[str]]:
    """Each common word with the codes of its languages."""
    found: dict[str, set[str]] = defaultdict(set)
    for code, known in profiles(folder).items():
        for word in known.words:
            found[word].add(code)
    return {word: frozenset(codes) for word, codes in found.items()}


def unread_reason(reply: str, prompt: str = "") -> str | None:
    """Why a reply is unscored: the judge does not read its language. None if it does."""
    language = unread_language(reply, prompt)
    return None if language is None else UNREAD.format(language=language)


def unread_language(reply: str, prompt: str = "", *, folder: Path = FOLDER) -> str | None:
    """The name of the reply's language, or its script, if the judge does not read it; else None.

    A translation that the prompt asks for is read: it is the answer, unless it is much shorter
    than the prompt. `folder` has the files of wordings.
    """
    if is_english(unquoted(reply[:ENGLISH_CHARACTERS]), folder):
        return None
    text = unicodedata.normalize("NFC", unquoted(reply[: 12 * WORDS]))
    name = unread_script(text, folder) or unread_by_words(text, folder)
    if name is None or opens_read(text, name, folder) or is_translation(prompt, reply):
        return None
    return name


def unquoted(text: str) -> str:
    """The text in lower case, without quotations and code."""
    return QUOTED.sub(" ", text.lower()) if MAY_QUOTE.search(text) else text.lower()


def is_english(text: str, folder: Path) -> bool:
    """Whether every sixth word is a common English one: quick, and so for nearly all replies."""
    words = text.split()
    return 6 * sum(map(profiles(folder)["en"].words.__contains__, words)) >= len(words)


def is_translation(prompt: str, reply: str) -> bool:
    """Whether the prompt asks for a translation, and the reply is long enough to be it."""
    return 3 * len(reply) >= len(prompt) and TRANSLATION.search(prompt.lower()) is not None


def unread_script(text: str, folder: Path) -> str | None:
    """The script of most letters, by its name in Unicode, if no file of wordings has letters in it.

    Every second letter must be of a script that is not read.
    """
    if text.isascii():
        return None
    letters: dict[str, list[str]] = defaultdict(list)
    for char in filter(str.isalpha, text):
        letters[script(char) if char > "\u024f" else "LATIN"].append(char)
    unread = {name: len(found) for name, found in letters.items() if not reads(found, folder)}
    if 2 * sum(unread.values()) < sum(map(len, letters.values())) or not unread:
        return None
    name = max(unread, key=lambda each: unread[each])
    return name.title() if any(is_told(part, name) for part in PART.findall(text)) else None


def reads(letters: list[str], folder: Path) -> bool:
    """Whether a file of wordings has some of these letters, all of one script."""
    name = script(letters[0])
    if name in SCRIPTS_OF_ALL or name in word_scripts(folder):
        return True
    text = "".join(letters)
    return any(each.letters and each.letters.search(text) for each in other_languages(folder))


def is_told(part: str, name: str) -> bool:
    """Whether words without a mark between them tell a script."""
    letters = sum(script(char) == name for char in part if char.isalpha())
    words = sum(len(word) > 1 for word in part.split())
    return letters >= LEAST_LETTERS and (name in NO_BLANKS or words >= 3)


@cache
def script(letter: str) -> str:
    """The first word of a letter's name in Unicode: LATIN, THAI, GREEK and so on."""
    return unicodedata.name(letter, "UNKNOWN").split()[0].split("-")[0]


@cache
def word_scripts(folder: Path) -> frozenset[str]:
    """The scripts of the common words in the files of wordings."""
    words = (word for language in other_languages(folder) for word in language.common_words)
    return frozenset(script(char) for word in words for char in word if char.isalpha())


def unread_by_words(text: str, folder: Path) -> str | None:
    """The language of most common words, if it is not read and no read one has nearly as many."""
    words = stripped_words(text)
    found = claimed(words, folder)
    hits = Counter(code for _, codes in found for code in codes)
    read = read_codes(folder)
    code = max((c for c in profiles(folder) if c not in read), key=lambda c: hits[c], default="en")
    if hits[code] < max(2, 0.15 * len(words)) or not is_enough(found, code, folder):
        return None
    clear = all(leads(found, code, other, LEAD) for other in read & hits.keys())
    return profiles(folder)[code].name if clear and leads(found, code, "en", ENGLISH_LEAD) else None


def is_enough(found: list[Claim], code: str, folder: Path) -> bool:
    """Whether the words of a language are enough to tell it: letters alone may stand in names."""
    known = profiles(folder)[code]
    kinds = {word for word, codes in found if code in codes}
    marked = any(not known.marks.isdisjoint(word) for word in kinds)
    return len(kinds) >= LEAST_WORDS - marked and len(kinds & known.words) >= 2


def leads(found: list[Claim], code: str, other: str, lead: float) -> bool:
    """Whether a language has clearly more of the words that only one of the two claims."""
    own = sum(code in codes and other not in codes for _, codes in found)
    others = sum(other in codes and code not in codes for _, codes in found)
    return own >= 2 + lead * others


def opens_read(text: str, name: str, folder: Path) -> bool:
    """Whether one of the first two sentences is in a language that is read ("Here is the poem:").

    It has twice the words that the language `name` has in it.
    """
    read = read_codes(folder)
    code = next((code for code, known in profiles(folder).items() if known.name == name), "")
    for sentence in SENTENCE.findall(text)[:2]:
        words = stripped_words(sentence)
        hits = Counter(claim for _, codes in claimed(words, folder) for claim in codes)
        best = max(hits[each] for each in read)
        if len(words) >= 4 and best >= max(2, 2 * hits[code]):
            return True
    return False


def claimed(words: list[str], folder: Path) -> list[Claim]:
    """Each word with the languages that claim it, if there are any: by the word or its letters."""
    known = claims(folder)
    found = []
    for word in words:
        codes = known.get(word, frozenset())
        if not codes and not word.isascii():
            codes = by_letters(frozenset(c for c in word if not c.isascii()), folder)
        if codes:
            found.append((word, codes))
    return found


@lru_cache(maxsize=4096)
def by_letters(letters: frozenset[str], folder: Path) -> frozenset[str]:
    """The languages that have these letters among their marks: all of them in Latin script, or else
    one (the marks of other scripts are only the unusual letters)."""
    known = profiles(folder).items()
    if all(script(letter) == "LATIN" for letter in letters):
        return frozenset(code for code, language in known if letters <= language.marks)
    return frozenset(code for code, language in known if letters & language.marks)


def stripped_words(text: str) -> list[str]:
    """The words without punctuation around them, and without single ASCII letters."""
    words = (word.strip(PUNCTUATION) for word in text.split()[:WORDS])
    return [word for word in words if len(word) > 1 or not word.isascii()]
