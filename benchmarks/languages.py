"""How well the built-in refusal judge reads each language: replies of authors who had not read its
rules.

    python benchmarks/languages.py [FILE] [--errors]

FILE is tests/data/second_author.yaml if none is given; tests/data/third_author.yaml is the other.
Each holds ten refusals and ten answers for each language. In a language that the judge does not read, the right verdict is unscored.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import yaml

from overrefusal_po.judges.refusal import RefusalJudge
from overrefusal_po.records import Completion, Prompt, Sampling, Verdict

FILE = Path(__file__).parents[1] / "tests" / "data" / "second_author.yaml"
NOT_READ = {
    "da": "Danish",
    "no": "Norwegian",
    "fi": "Finnish",
    "hu": "Hungarian",
    "bg": "Bulgarian",
    "he": "Hebrew",
    "fa": "Persian",
    "bn": "Bengali",
    "ta": "Tamil",
    "sw": "Swahili",
}
HEADER = (
    "| language | refusals recognised | answers recognised | unscored | another language named |"
)


class Reply(NamedTuple):
    """A reply of the file. `label` is full, partial or none."""

    language: str
    prompt: str
    reply: str
    label: str

    @property
    def refuses(self) -> bool:
        """Whether the author wrote it as a refusal; a partial one counts."""
        return self.label != "none"


class Judged(NamedTuple):
    """A reply and the judge's verdict."""

    row: Reply
    verdict: Verdict

    @property
    def recognised(self) -> bool:
        """Whether it is scored, and its side is the author's."""
        return self.verdict.unscored is None and self.verdict.refused == self.row.refuses

    @property
    def wrong(self) -> bool:
        """Whether the verdict is not the right one: unscored if the language is not read."""
        if self.row.language in NOT_READ:
            return self.verdict.unscored is None
        return not self.recognised

    @property
    def misnamed(self) -> bool:
        """Whether the judge says that it does not read some other language than the reply's."""
        reason, name = self.verdict.unscored, NOT_READ.get(self.row.language)
        return reason is not None and (name is None or name not in reason)


class Count(NamedTuple):
    """The counts of one line of the table."""

    name: str
    refusals: int
    refusals_recognised: int
    answers: int
    answers_recognised: int
    unscored: int
    misnamed: int

    def cells(self) -> str:
        """The counts as a Markdown row."""
        return (
            f"| {self.name} | {self.refusals_recognised} of {self.refusals} | "
            f"{self.answers_recognised} of {self.answers} | "
            f"{self.unscored} of {self.refusals + self.answers} | {self.misnamed} |"
        )


def read_replies(file: Path) -> list[Reply]:
    """The replies of the file, in its order."""
    languages = yaml.safe_load(file.read_text(encoding="utf-8"))
    return [Reply(code, **row) for code, rows in languages.items() for row in rows]


def judge(rows: list[Reply]) -> list[Judged]:
    """The built-in judge's verdict on each reply. It does not know the labels."""
    prompts = [Prompt.of(row.prompt, kind="general") for row in rows]
    completions = [
        Completion(
            id=str(number),
            prompt_id=prompt.id,
            text=row.reply,
            model="second author",
            engine="by hand",
            sampling=Sampling(),
        )
        for number, (row, prompt) in enumerate(zip(rows, prompts, strict=True))
    ]
    verdicts = RefusalJudge().score(prompts, completions)
    return [Judged(row, verdict) for row, verdict in zip(rows, verdicts, strict=True)]


def count(name: str, judged: Iterable[Judged]) -> Count:
    """What the judge recognises of these replies."""
    found = list(judged)
    refusals = [one for one in found if one.row.refuses]
    answers = [one for one in found if not one.row.refuses]
    return Count(
        name,
        len(refusals),
        sum(one.recognised for one in refusals),
        len(answers),
        sum(one.recognised for one in answers),
        sum(one.verdict.unscored is not None for one in found),
        sum(one.misnamed for one in found),
    )


def counts(judged: list[Judged]) -> list[Count]:
    """A line for each language, then one for those that the judge reads, one for the others."""
    codes = dict.fromkeys(one.row.language for one in judged)
    return [
        *(count(code, (one for one in judged if one.row.language == code)) for code in codes),
        count("read", (one for one in judged if one.row.language not in NOT_READ)),
        count("not read", (one for one in judged if one.row.language in NOT_READ)),
    ]


def error_lines(judged: list[Judged]) -> list[str]:
    """The replies with a wrong verdict, and those whose language got another's name."""
    return [
        f"\n{one.row.language}: author {one.row.label}, judge "
        f"{one.verdict.unscored or one.verdict.refusal}"
        f"{' and degenerate' if one.verdict.degenerate else ''}\n"
        f"  {one.row.prompt}\n  {one.row.reply}"
        for one in judged
        if one.wrong or one.misnamed
    ]


def main() -> None:
    """Prints the table and, on demand, the replies with a wrong verdict."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", nargs="?", type=Path, default=FILE)
    parser.add_argument("--errors", action="store_true", help="print the wrong rows")
    args = parser.parse_args()
    judged = judge(read_replies(args.file))
    print(HEADER + "\n" + "|---" * 5 + "|")
    for line in counts(judged):
        print(line.cells())
    for text in error_lines(judged) if args.errors else ():
        print(text)


if __name__ == "__main__":
    main()
