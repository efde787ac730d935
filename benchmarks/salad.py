"""How much of what people and models wrote does the judge take for word salad, and how much of what
random tokens make does it miss?

    python benchmarks/salad.py REPLIES.jsonl ... [--locale /usr/share] [--code src] [--model NAME]

REPLIES: rows whose response, safe_response, harmful_response, chosen and rejected are read.
--locale: messages of 60 characters and more in the gettext catalogues (.mo) below a folder, which
Linux has in a hundred languages. --code: pieces of 3 to 40 lines of the source files below a
folder. --model: texts of random tokens of its vocabulary. Of every reply a piece of 30 to 300
characters is tried too, as if the limit of tokens had cut it.
"""

from __future__ import annotations

import argparse
import gettext
import json
import random
from collections.abc import Iterator
from pathlib import Path

from overrefusal_po.judges._refusal_text import plain
from overrefusal_po.judges._salad import salad

FIELDS = ("response", "safe_response", "harmful_response", "chosen", "rejected")
PER_LANGUAGE = 250
LENGTHS = (12, 16, 24, 32, 48, 64, 128)
ENDINGS = {".py", ".c", ".h", ".js", ".json", ".css", ".pm", ".sh", ".md"}
Texts = Iterator[tuple[str, str]]
"""(group, text)"""


def replies(files: list[Path], drawn: random.Random) -> Texts:
    """The responses of the files, and pieces of them."""
    for file in files:
        for line in file.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            for text in (row[key] for key in FIELDS if isinstance(row.get(key), str)):
                yield "replies", text
                yield "replies, cut", text[: drawn.randrange(30, 300)]


def messages(folder: Path, drawn: random.Random) -> Texts:
    """Translated messages, at most so many of a language."""
    found: dict[str, set[str]] = {}
    for file in folder.rglob("*.mo"):
        try:
            with file.open("rb") as binary:
                catalog = vars(gettext.GNUTranslations(binary))["_catalog"]
        except (OSError, ValueError, IndexError):  # a broken catalogue
            continue
        long = {v for k, v in catalog.items() if k and isinstance(v, str) and 60 <= len(v) <= 1500}
        found.setdefault(file.parts[-3], set()).update(long)
    for texts in found.values():
        for text in drawn.sample(sorted(texts), min(PER_LANGUAGE, len(texts))):
            yield f"messages in {len(found)} languages", text


def code(folder: Path, drawn: random.Random) -> Texts:
    """Pieces of source files."""
    for file in sorted(folder.rglob("*")):
        if file.suffix in ENDINGS and file.is_file():
            lines = file.read_text(encoding="utf-8", errors="ignore").splitlines()
            for start in range(0, len(lines), 40):
                yield "code", "\n".join(lines[start : start + drawn.randrange(3, 40)])


def random_texts(model: str, drawn: random.Random) -> Texts:
    """Random tokens of a vocabulary."""
    from overrefusal_po.model.load import load_tokenizer

    tokenizer = load_tokenizer(model)
    for length in LENGTHS:
        for _ in range(100):
            ids = [drawn.randrange(17, len(tokenizer)) for _ in range(length)]
            yield f"{length} random tokens", str(tokenizer.decode(ids, skip_special_tokens=True))


def main() -> None:
    """Prints a line for each group: how many texts, and how many are salad."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--locale", type=Path)
    parser.add_argument("--code", type=Path)
    parser.add_argument("--model")
    args = parser.parse_args()
    drawn = random.Random(0)
    parts = [replies(args.files, drawn)]
    parts += [messages(args.locale, drawn)] if args.locale else []
    parts += [code(args.code, drawn)] if args.code else []
    parts += [random_texts(args.model, drawn)] if args.model else []
    counts: dict[str, list[int]] = {}
    for part in parts:
        for group, text in part:
            seen = counts.setdefault(group, [0, 0])
            seen[0] += 1
            seen[1] += salad(plain(text))
    for group, (texts, flagged) in counts.items():
        print(f"{group}: {flagged} of {texts}")


if __name__ == "__main__":
    main()
