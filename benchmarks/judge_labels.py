"""Replies that two labellers read: their labels, joined with local files of the replies by id.

    labels = read_labels(LABELS)                            # judge_labels.jsonl
    rows = join(labels, read_replies([Path("g2b.jsonl")]))  # one Labelled for each reply found
    rows += read_xstest(Path("judge_xstest_completions.jsonl"))

Labels are shipped, prompts and replies are not: many are under terms that forbid it, or harmful. A
file of replies is JSON Lines with prompt, reply and style. judge_labelling.md defines the labels.
"""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import yaml
from judge import CLASSES
from pydantic import BaseModel, ConfigDict, field_validator
from sklearn.metrics import cohen_kappa_score

FOLDER = Path(__file__).parent
LABELS = FOLDER / "judge_labels.jsonl"
STYLES = FOLDER / "judge_styles.yaml"
LETTERS = {"full": "F", "partial": "P", "none": "N"}
"""The labellers' letters for the judge's classes. D, degenerate, stands beside them."""

REFUSALS = "FP"
RUN_WORDS = 7
"""Two prompts are about the same if they share so many words in a row. With 6, XSTest's templates
("What's the best way of ...") and unlike dialogues become one prompt; with 8, changed names split
one."""

WORD = re.compile(r"[a-z0-9']+")


class Styles(BaseModel):
    """What judge_styles.yaml holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    systems: dict[str, str | None]
    """System prompts by name; null is none."""
    wrappers: list[str]
    """Tasks around a prompt, which stands at {}."""
    openings: list[str]
    """Words with which the reply already begins."""
    families: dict[str, str]
    """Styles that are one model in several dresses -> the family's name."""

    @field_validator("wrappers")
    @classmethod
    def hold_a_prompt(cls, wrappers: list[str]) -> list[str]:
        """Refuses a wrapper without exactly one place for the prompt."""
        for wrapper in wrappers:
            if wrapper.count("{}") != 1:
                raise ValueError(f"The wrapper {wrapper!r} needs {{}} once, for the prompt.")
        return wrappers

    def family(self, style: str) -> str:
        """The family of a style, by default the style itself."""
        return self.families.get(style, style)


class Reply(NamedTuple):
    """A reply of a model. `style`: whose it is, and after a slash the system prompt's name."""

    prompt: str
    reply: str
    style: str

    @property
    def id(self) -> str:
        """Ten hex digits of the SHA-1 of prompt, NUL, reply."""
        return hashlib.sha1(f"{self.prompt}\0{self.reply}".encode()).hexdigest()[:10]


class Label(NamedTuple):
    """What two labellers called a reply: F, P, N or D. `doubts`: how many of them doubted."""

    id: str
    set: str
    style: str
    a: str
    b: str
    doubts: int


class Labelled(NamedTuple):
    """A reply with its label. `harmless`: whether the source calls the prompt safe (XSTest's)."""

    reply: Reply
    label: Label
    harmless: bool = False

    @property
    def style(self) -> str:
        """The style without the system prompt's name."""
        return self.label.style.partition("/")[0]

    @property
    def agreed(self) -> bool:
        """Whether both labels are on one side, and neither is degenerate."""
        a, b = self.label.a, self.label.b
        return "D" not in (a, b) and (a in REFUSALS) == (b in REFUSALS)

    @property
    def refused(self) -> bool:
        """Whether the first labeller saw a refusal; a partial one counts."""
        return self.label.a in REFUSALS


def read_styles(path: Path = STYLES) -> Styles:
    """The file of system prompts, wrappers and families; ValueError for a wrong one."""
    return Styles.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))


def read_lines(path: Path) -> list[dict[str, object]]:
    """The rows of a JSON Lines file; ValueError if the file is missing."""
    if not path.is_file():
        raise ValueError(f"There is no file {path}. Name a JSON Lines file that exists.")
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines if line.strip()]


def read_replies(paths: Iterable[Path]) -> list[Reply]:
    """The replies of some files; ValueError that names the file if a row lacks a field."""
    found = []
    for path in paths:
        for row in read_lines(path):
            if missing := [name for name in Reply._fields if not isinstance(row.get(name), str)]:
                raise ValueError(
                    f"{path}: a row has no {missing[0]}; each row needs prompt, reply and style."
                )
            found.append(Reply(str(row["prompt"]), str(row["reply"]), str(row["style"])))
    return found


def read_labels(path: Path = LABELS) -> list[Label]:
    """The labels of a file; ValueError for a row with other fields than `Label`'s."""
    found = []
    for row in read_lines(path):
        if set(row) != set(Label._fields):
            raise ValueError(f"{path}: a row has {sorted(row)}, not {sorted(Label._fields)}.")
        found.append(Label(**row))  # type: ignore[arg-type]  # JSON gives these types
    return found


def write_labels(path: Path, labels: Iterable[Label]) -> None:
    """Writes one line for each label."""
    lines = [json.dumps(label._asdict()) + "\n" for label in labels]
    path.write_text("".join(lines), encoding="utf-8")


def join(labels: Sequence[Label], replies: Iterable[Reply]) -> list[Labelled]:
    """The labelled replies among `replies`, in the order of the labels.

    ValueError if none of the replies has a label.
    """
    known = {reply.id: reply for reply in replies}
    found = [Labelled(known[label.id], label) for label in labels if label.id in known]
    if not found:
        raise ValueError(
            f"None of the {len(known)} replies is among the {len(labels)} labelled ones. Name "
            "files of the replies that were labelled, or another --labels."
        )
    return found


def read_xstest(path: Path) -> list[Labelled]:
    """XSTest's replies, whose labels people gave; each label stands for both labellers."""
    found = []
    for row in read_lines(path):
        human = CLASSES.get(str(row["human_label"]))
        if human is not None:
            reply = Reply(str(row["prompt"]), str(row["response"]), f"XSTest {row['model']}")
            letter = LETTERS[human]
            label = Label(reply.id, "xstest", reply.style, letter, letter, 0)
            found.append(Labelled(reply, label, row["label"] == "safe"))
    return found


def once(rows: Iterable[Labelled]) -> list[Labelled]:
    """The rows without repeats: of one reply to one prompt in one style, the first stays."""
    first: dict[tuple[str, str], Labelled] = {}
    for row in rows:
        first.setdefault((row.label.id, row.style), row)
    return list(first.values())


def kappa(first: Iterable[object], second: Iterable[object]) -> float:
    """Cohen's kappa of two raters; 1 if both always give the same single class."""
    one, other = [*map(str, first)], [*map(str, second)]
    classes = sorted({*one, *other})
    if len(classes) == 1:
        return 1.0
    return float(cohen_kappa_score(one, other, labels=classes))


def unwrapped(prompt: str, wrappers: Iterable[str]) -> str:
    """The prompt without the wrapper around it, if one of them is."""
    for wrapper in wrappers:
        before, after = wrapper.split("{}")
        if prompt.startswith(before) and prompt.endswith(after):
            return prompt[len(before) : len(prompt) - len(after)]
    return prompt


def prompt_groups(prompts: Sequence[str], wrappers: Sequence[str]) -> list[str]:
    """For each prompt the name of its group: prompts that share RUN_WORDS words in a row, wrappers
    left out. A shorter prompt must be equal in all its words."""
    parent = list(range(len(prompts)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first: dict[tuple[str, ...], int] = {}
    for i, prompt in enumerate(prompts):
        words = WORD.findall(unwrapped(prompt, wrappers).lower())
        for start in range(max(1, len(words) - RUN_WORDS + 1)):
            earlier = first.setdefault(tuple(words[start : start + RUN_WORDS]), i)
            parent[root(i)] = root(earlier)
    names: dict[int, str] = {}
    for i, prompt in enumerate(prompts):
        names[root(i)] = min(prompt, names.get(root(i), prompt))
    return [names[root(i)] for i in range(len(prompts))]


def prompt_folds(prompts: Sequence[str], wrappers: Sequence[str], folds: int) -> list[int]:
    """For each prompt the number of its fold; a group is in one fold."""
    return [zlib.crc32(name.encode()) % folds for name in prompt_groups(prompts, wrappers)]
