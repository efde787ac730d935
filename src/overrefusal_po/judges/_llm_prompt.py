r"""Prompt files -> the text that a judge model gets: read and checked once, filled in one pass for
each item.

    prompt = read_prompt("refusal")
    # the newest refusal.vN.txt beside this file, or a user's .txt
    prompt.filled(unique_mark(0, "id", texts), asked="...", response="...")

A prompt file begins with lines that start with `#`: notes, which are not sent, one of them `#
scale: refusal` (`strongreject`, `derta`), which says how the reply is read. The rest is the
template with `{{prompt}}` and `{{response}}` once each, and `{{mark}}` where the text speaks of the
marked lines.

The judged texts are hostile. So the template is filled by a single substitution whose result is
never looked at again. Each text stands between two lines with a mark that it cannot know. Control
tokens of chat templates in it are broken up: a local server would read them as the end of the
user's turn.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from overrefusal_po.fences import FIELD, fenced, filled
from overrefusal_po.fences import unique_mark as unique_mark
from overrefusal_po.recipe.words import unknown_key
from overrefusal_po.records import Message

FOLDER = Path(__file__).parent / "prompts"
SCALES = ("refusal", "strongreject", "derta")
NEEDED_FIELDS = ("prompt", "response")
FILE_NAME = re.compile(r"(?P<name>.+?)(?:\.v(?P<version>\d+))?\.txt")


class JudgePrompt(NamedTuple):
    """A checked prompt file. `name` is the file's without version and ending; `version` ends in a
    hash of the text."""

    name: str
    version: str
    scale: str
    template: str

    def filled(self, mark: str, *, asked: str, response: str) -> str:
        """The template with both texts fenced; what stands in a text is never expanded."""
        values = {
            "mark": mark,
            "prompt": fenced("request", asked, mark),
            "response": fenced("response", response, mark),
        }
        return filled(self.template, values)


def marked_turns(turns: Sequence[Message], mark: str) -> str:
    """A single user turn unchanged; else all turns, each under a line with its role and `mark`,
    which no text can forge."""
    if len(turns) == 1 and turns[0].role == "user":
        return turns[0].content
    return "\n".join(f"<<<{turn.role} {mark}>>>\n{turn.content}" for turn in turns)


def read_prompt(spec: str) -> JudgePrompt:
    """The prompt behind a name (`refusal`: its newest version; `refusal.v1`: that one) or the path
    of a .txt file.

    Raises ValueError for an unknown name, and for a file that cannot be read or is no prompt file.
    """
    file = Path(spec).expanduser() if spec.endswith(".txt") else built_in(spec)
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"judge.prompt {spec!r} cannot be read ({type(error).__name__}). Give one of "
            f"{', '.join(known())}, or the "
            "path of a UTF-8 text file."
        ) from None
    found = FILE_NAME.fullmatch(file.name)
    assert found is not None, "both ways end in .txt"
    scale, template = checked(text, spec)
    short = hashlib.sha256(text.encode()).hexdigest()[:8]
    return JudgePrompt(found["name"], f"v{found['version'] or 0}-{short}", scale, template)


def known() -> list[str]:
    """The names of the built-in prompts, without versions."""
    return sorted({file.name.partition(".v")[0] for file in FOLDER.glob("*.v*.txt")})


def built_in(name: str) -> Path:
    """The file of a built-in prompt; ValueError that names the nearest if there is none."""
    files = {file.stem: file for file in FOLDER.glob("*.v*.txt")}
    if name in files:
        return files[name]
    versions = [stem for stem in files if stem.rpartition(".v")[0] == name]
    if not versions:
        hint = unknown_key(name, [*known(), *files], "judge.prompt")
        raise ValueError(f"{hint} A file of your own is a path that ends in .txt.")
    return files[max(versions, key=lambda stem: int(stem.rpartition(".v")[2]))]


def checked(text: str, where: str) -> tuple[str, str]:
    """(scale, template) of a prompt file's text; ValueError if the scale or a placeholder is
    missing or unknown."""
    lines = text.splitlines()
    notes = next(
        (number for number, line in enumerate(lines) if not line.startswith("#")), len(lines)
    )
    scales = [
        line.lstrip("# ").removeprefix("scale:").strip()
        for line in lines[:notes]
        if "scale:" in line[:10]
    ]
    if len(scales) != 1 or scales[0] not in SCALES:
        raise ValueError(
            f"judge.prompt {where!r}: the scale is {' and '.join(map(repr, scales)) or 'missing'}. "
            "One of the first lines must be `# scale: NAME` with a name out of "
            f"{', '.join(SCALES)}; it says how the reply is read."
        )
    template = "\n".join(lines[notes:]).strip() + "\n"
    names = FIELD.findall(template)
    unknown = sorted(set(names) - {*NEEDED_FIELDS, "mark"})
    wrong = [
        f"{{{{{name}}}}} stands in it {names.count(name)} times"
        for name in NEEDED_FIELDS
        if names.count(name) != 1
    ]
    if unknown or wrong:
        raise ValueError(
            f"judge.prompt {where!r}: "
            f"{'; '.join([f'{{{{{name}}}}} is not known' for name in unknown] + wrong)}. A prompt "
            "holds {{prompt}} and {{response}} once each, and {{mark}} where it speaks of the "
            "marked lines."
        )
    return scales[0], template
