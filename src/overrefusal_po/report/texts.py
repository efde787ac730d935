r"""Texts from outside, made safe to show. A model wrote much of what a report holds.

visible("a\u202eb")             # "a⟨U+202E⟩b"
clipped("abcdef", 4)            # "abcd … [2 more characters]"
"""

from __future__ import annotations

import base64
import hashlib
import re

CONTROL = re.compile(r"\x1b\[[0-9;]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f-\x9f]")
HIDING = re.compile(
    r"[\xad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    r"\U000e0000-\U000e007f]"
)
"""Characters that cannot be seen, or that change the direction of a text."""


def visible(value: object) -> object:
    """A text without control characters, and with hidden ones spelt out; other values unchanged."""
    if type(value) is not str:  # a subclass is jinja's Markup, made of parts that were here before
        return value
    return HIDING.sub(lambda sign: f"⟨U+{ord(sign[0]):04X}⟩", CONTROL.sub("", value))


def clipped(text: str, length: int) -> str:
    """`text`, or its beginning and how much is left out."""
    if len(text) <= length:
        return text
    return f"{text[:length]} … [{len(text) - length} more characters]"


def one_line(text: str) -> str:
    """A text from outside as one line of Markdown that breaks neither a table nor HTML, and that
    makes no link, no heading and no formula."""
    flat = " ".join(str(visible(text)).split())
    safe = flat.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    signs = re.sub(r"([\\`*_\[\]|#~$!])", r"\\\1", safe)
    # an address is a link even without brackets
    return re.sub(r"(?i):(?=//)|(?<=www)\.|@", r"\\\g<0>", signs)


def looks_local(text: str) -> bool:
    """Whether a text holds a path of somebody's machine."""
    return bool(
        re.search(r"(^|[\s'\"(:=])(/|~|\.{1,2}/|[A-Za-z]:\\)|\.(jsonl?|csv|parquet|txt)\b", text)
    )


def public_text(text: str) -> str:
    """A text as one line; "a local one" if it holds a path."""
    return "a local one" if looks_local(text) else one_line(text)


def csp_hash(text: str) -> str:
    """The source expression of a Content-Security-Policy that allows exactly this inline text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
