"""A response -> whether it is word salad: random tokens, as a broken or an untrained model gives.

    salad(" Teleaic emptied Investingpl lambsMuLy Ital Part productivity diminishMiscoresroot ...")
    # True

Three signs, each of them absent from what people and trained models write, whatever the language:

- characters that are none (U+FFFD, control characters), more than once;
- letters of three scripts or more glued together without a blank;
- many words in Latin letters, and hardly a common or a short one among them, hardly a full stop or
  comma, but capitals in or before every few of them.

Lists, tables, verse and code have short lines and are not read by the third sign. RESULTS.md has
what was tried.
"""

from __future__ import annotations

import re

BROKEN = re.compile(r"[\ufffd\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]")
BROKEN_LEAST, BROKEN_SHARE = 2, 0.02

LATIN = "A-Za-z\u00aa\u00b5\u00ba\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u1e00-\u1eff"
SCRIPTS = {
    "latin": LATIN,
    "greek": "\u0370-\u03ff",
    "cyrillic": "\u0400-\u052f",
    "armenian": "\u0530-\u058f",
    "hebrew": "\u0590-\u05ff",
    "arabic": "\u0600-\u06ff",
    "indic": "\u0900-\u0dff",
    "thai": "\u0e00-\u0eff",
    "georgian": "\u10a0-\u10ff",
    "east_asian": "\u1100-\u11ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af",
}
"""Letters by script. Those of East Asia count as one: Japanese and Korean mix them."""
SCRIPT_RUN = re.compile("|".join(f"(?P<{name}>[{signs}]+)" for name, signs in SCRIPTS.items()))
GLUED_SCRIPTS, GLUED_PLACES = 3, 2

WORD = re.compile(r"[^\W\d_]+")
INNER_CAPITAL = re.compile(r"[a-zà-ÿ][A-Z]|[A-Z]{2}[a-zà-ÿ]{2}")
STOP = re.compile(r"[\w)\"'*`»”’][.,:;!?][\"')*”»]*(?=\s|\Z)")
SYMBOLS = re.compile(r"[(){}\[\]=<>;/\\|`#*_$%+@-]+")

COMMON_WORDS = """
a an the and or of to in is it for on with as at by be not you your this that are was from if
can i we they have has do will but which when how use
de la le les des un une et en du pas est pour que qui dans sur avec ou par ne se il au
el los las del y no es una con para por su al lo como
der die das und nicht ist von zu mit sie ein eine den auf für wird oder werden im sich es
di che non per è della si da sono e o os as dos em um uma com mais ao na não é
het een van niet voor met te dat op zijn wordt
och att det som på är inte för till av med ett er ikke af og i å
on ja ei tai että ole kun voi nie w z jest do lub to dla je v pro nebo že ni za ako sa kao ili
nem az és egy ha vagy hogy bir ve bu için ile olarak veya
yang dan tidak untuk dari ke dengan ini atau không các có được của cho một là và trong
nu și este să cu pentru ca din
"""
COMMON = frozenset(COMMON_WORDS.split())
"""The commonest words of two dozen languages in Latin letters."""


def salad(text: str) -> bool:
    """Whether a response shows one of the signs above."""
    return broken(text) or glued_scripts(text) or random_words(text)


def broken(text: str) -> bool:
    """Whether the text has characters that are none. One at its end was cut by the token limit."""
    found = len(BROKEN.findall(text.rstrip("\ufffd")))
    return found >= BROKEN_LEAST and found >= BROKEN_SHARE * len(text)


def glued_scripts(text: str) -> bool:
    """Whether letters of several scripts follow each other without a blank."""
    if text.isascii():
        return False
    glued: set[str | None] = set()
    places, last, end = 0, None, -1
    for run in SCRIPT_RUN.finditer(text):
        if run.start() == end:
            places += 1
            glued |= {last, run.lastgroup}
        last, end = run.lastgroup, run.end()
    return places >= GLUED_PLACES and len(glued) >= GLUED_SCRIPTS


def random_words(text: str) -> bool:
    """Whether most of the text is words in Latin letters that make no sentence."""
    words = WORD.findall(text)
    n = len(words)
    lines = sum(1 for line in text.splitlines() if line.strip())
    # few blanks: a code, a key or a file in base64
    if n < 12 or n < 6 * lines or len(text.split()) < 8:
        return False
    if sum(word.lower() in COMMON for word in words) >= 0.06 * n:
        return False
    letters = "".join(words)
    if len(re.findall(f"[{LATIN}]", letters)) < 0.8 * len(letters):
        return False
    if len(STOP.findall(text)) >= 0.05 * n or len(SYMBOLS.findall(text)) >= 0.6 * n:
        return False
    return odd_capitals(text, words)


def odd_capitals(text: str, words: list[str]) -> bool:
    """Whether capitals stand where no language has them, and short words are rare."""
    n = len(words)
    short = sum(len(word) <= 3 for word in words) / n
    inner = len(INNER_CAPITAL.findall(text)) / n
    first = sum(word[0].isupper() for word in words) / n
    if inner + first < 0.2:
        return False
    return short < 0.25 if inner >= 0.03 else n >= 20 and short < 0.15
