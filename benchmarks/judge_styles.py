"""Makes and labels replies of weak styles: a model under system prompts and tasks, packets for
labellers, their labels, and how well labellers and the built-in judge agree.

    python benchmarks/judge_styles.py reply MODEL OUT.jsonl --prompts FILE.jsonl ... [--count 200]
    python benchmarks/judge_styles.py packets REPLIES.jsonl FOLDER
    python benchmarks/judge_styles.py collect REPLIES.jsonl --set NAME --a FILE ... --b FILE ...
    python benchmarks/judge_styles.py agreement REPLIES.jsonl ... [--xstest FILE.jsonl]

A labeller reads judge_labelling.md and a packet, and writes a line `id LABEL` for each reply.
`collect` puts the labels of two labellers into judge_labels.jsonl, which holds no texts.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from judge_labels import (
    LABELS,
    LETTERS,
    STYLES,
    Label,
    Labelled,
    Reply,
    Styles,
    join,
    kappa,
    once,
    read_labels,
    read_lines,
    read_replies,
    read_styles,
    read_xstest,
    write_labels,
)

from overrefusal_po.judges.refusal import VERSION, judge_text
from overrefusal_po.records import Prompt, Sampling

PROMPT_CHARACTERS = 700
WRAPPED, WITH_SYSTEM, OPENED = 0.3, 0.75, 0.08
"""Shares of the tasks."""

SHOWN_PROMPT, SHOWN_REPLY, SHOWN_START, SHOWN_END = 480, 1100, 750, 300
"""Characters that a packet shows: a prompt's last, all of a reply, or its first and last."""

LABEL_LINE = re.compile(r"^(\w+) ([FPND])(\??)$")


class Task(NamedTuple):
    """What a model is asked: in which style, and the words with which its reply begins."""

    source: str
    style: str
    system: str | None
    prompt: str
    opening: str


# --- replies ----------------------------------------------------------------------------------


def draw_prompts(files: Sequence[Path], count: int, drawn: random.Random) -> list[tuple[str, str]]:
    """(file's name, prompt) of `count` prompts, as equally many of each file as it has.

    ValueError if a file has a row without a prompt.
    """
    pool: list[tuple[str, str]] = []
    for file in files:
        prompts = [row.get("prompt") for row in read_lines(file)]
        if not all(isinstance(prompt, str) for prompt in prompts):
            raise ValueError(f"{file}: a row has no text under prompt; name files of such rows.")
        chosen = drawn.sample(prompts, min(len(prompts), -(-count // len(files))))
        pool += [(file.stem, str(prompt)) for prompt in chosen]
    drawn.shuffle(pool)
    return pool[:count]


def make_tasks(
    prompts: Sequence[tuple[str, str]], styles: Styles, drawn: random.Random
) -> Iterator[Task]:
    """A task for each (source, prompt); the system prompts take turns."""
    names = [name for name, system in styles.systems.items() if system]
    for place, (source, prompt) in enumerate(prompts):
        if drawn.random() < WRAPPED:
            prompt = drawn.choice(styles.wrappers).replace("{}", prompt.rstrip())
        with_system = bool(names) and drawn.random() < WITH_SYSTEM
        style = names[place % len(names)] if with_system else "none"
        opening = drawn.choice(styles.openings) if drawn.random() < OPENED else ""
        system = styles.systems.get(style)
        yield Task(source, style, system, prompt[:PROMPT_CHARACTERS], opening)


def prompt_record(number: int, task: Task) -> Prompt:
    """The task as the engine reads it."""
    turns = [("system", task.system)] if task.system else []
    turns.append(("user", task.prompt))
    messages = [{"role": role, "content": content} for role, content in turns]
    return Prompt.model_validate(
        {
            "id": str(number),
            "messages": messages,
            "kind": "general",
            "assistant_prefix": task.opening,
        }
    )


def reply_rows(
    model: str, name: str, tasks: Sequence[Task], tokens: int
) -> Iterator[dict[str, str]]:
    """A row for each reply of the model, as they come; greedy decoding."""
    from overrefusal_po.engines.transformers import TransformersEngine
    from overrefusal_po.model.chat import ChatTemplate
    from overrefusal_po.model.load import load_model, load_tokenizer

    template = ChatTemplate(load_tokenizer(model))
    engine = TransformersEngine(load_model(model), template, name=name)
    prompts = [prompt_record(number, task) for number, task in enumerate(tasks)]
    for done in engine.complete(prompts, Sampling(max_new_tokens=tokens)):
        task = tasks[int(done.prompt_id)]
        text = done.text if done.text.startswith(task.opening) else task.opening + done.text
        reply = Reply(task.prompt, text.strip(), f"{name}/{task.style}")
        if not done.error:
            yield {"id": reply.id, "source": task.source, **reply._asdict()}


def write_replies(args: argparse.Namespace) -> None:
    """The sub-command `reply`."""
    styles, drawn = read_styles(args.styles), random.Random(args.seed)
    prompts = draw_prompts(args.prompts, args.count, drawn)
    tasks = list(make_tasks(prompts, styles, drawn))
    name = args.name or args.model.rpartition(":")[2].rpartition("/")[2]
    with args.out.open("w", encoding="utf-8") as out:
        for row in reply_rows(args.model, name, tasks, args.tokens):
            out.write(json.dumps(row) + "\n")
            out.flush()


# --- labels -----------------------------------------------------------------------------------


def shown(reply: Reply) -> str:
    """A reply as a labeller reads it."""
    prompt, text = reply.prompt, reply.reply
    if len(prompt) > SHOWN_PROMPT:
        prompt = "[...] " + prompt[-SHOWN_PROMPT:]
    if len(text) > SHOWN_REPLY:
        text = f"{text[:SHOWN_START]} [...] {text[-SHOWN_END:]}"
    return f"### {reply.id}\nPROMPT: {prompt}\nREPLY: {text}\n\n"


def write_packets(args: argparse.Namespace) -> None:
    """The sub-command `packets`: files of `size` replies each, without their styles."""
    replies = read_replies([args.replies])
    args.folder.mkdir(parents=True, exist_ok=True)
    for number, start in enumerate(range(0, len(replies), args.size)):
        path = args.folder / f"{args.replies.stem}_{number:02d}.txt"
        path.write_text("".join(map(shown, replies[start : start + args.size])), encoding="utf-8")
        print(path)


def read_labeller(files: Sequence[Path]) -> dict[str, tuple[str, bool]]:
    """{id: (label, whether in doubt)} of a labeller's files; ValueError that names a wrong line."""
    found: dict[str, tuple[str, bool]] = {}
    for file in files:
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            match = LABEL_LINE.match(line.strip())
            if match is None and line.strip():
                raise ValueError(
                    f"{file}, line {number}: {line!r} is not `id LABEL` or `id LABEL?`, with F, P, "
                    "N or D as the label."
                )
            if match:
                found[match[1]] = (match[2], bool(match[3]))
    return found


def collected(
    name: str,
    replies: Sequence[Reply],
    a: dict[str, tuple[str, bool]],
    b: dict[str, tuple[str, bool]],
) -> list[Label]:
    """The labels of the replies that both labellers read, each id once; ValueError for none."""
    found: dict[str, Label] = {}
    for reply in replies:
        if reply.id in a and reply.id in b:
            (first, doubt), (second, other_doubt) = a[reply.id], b[reply.id]
            label = Label(reply.id, name, reply.style, first, second, doubt + other_doubt)
            found.setdefault(reply.id, label)
    if not found:
        raise ValueError("No reply has a label of both labellers. Do the files belong together?")
    return list(found.values())


def write_collected(args: argparse.Namespace) -> None:
    """The sub-command `collect`: the labels of a set replace those that the file has of it."""
    kept = (
        [x for x in read_labels(args.labels) if x.set != args.set] if args.labels.exists() else []
    )
    replies, a, b = read_replies([args.replies]), read_labeller(args.a), read_labeller(args.b)
    new = collected(args.set, replies, a, b)
    write_labels(args.labels, [*kept, *new])
    print(f"{args.labels}: {len(new)} labels of the set {args.set} beside {len(kept)} others")


# --- agreement --------------------------------------------------------------------------------


def labellers_line(name: str, rows: Sequence[Label]) -> str:
    """A line of the table of labellers."""
    a, b = [row.a for row in rows], [row.b for row in rows]
    first, second = [x in "FP" for x in a], [x in "FP" for x in b]
    conflicts = sum(x != y for x, y in zip(first, second, strict=True))
    doubted = sum(row.doubts > 0 for row in rows)
    shares = " / ".join(f"{100 * sum(side) / len(rows):.0f}" for side in (first, second))
    return (
        f"| {name} | {len(rows)} | {shares} | {kappa(a, b):.3f} | {kappa(first, second):.3f} | "
        f"{conflicts} | {doubted} |"
    )


def labellers_table(labels: Sequence[Label]) -> Iterator[str]:
    """How well the two labellers agree on each set; in two classes D is no refusal."""
    yield (
        "| set | replies | refused by A / B, % | kappa, F P N D | kappa, refused or not | "
        "conflicts | doubted |"
    )
    yield "|---" * 7 + "|"
    for name in dict.fromkeys(label.set for label in labels):
        yield labellers_line(name, [label for label in labels if label.set == name])
    yield labellers_line("all", labels)


def judge_line(name: str, rows: Sequence[Labelled], letters: Sequence[str]) -> str:
    """A line of the table of the judge; `letters` are its verdicts."""
    found, truth = [x != "N" for x in letters], [row.refused for row in rows]
    both = sum(x and y for x, y in zip(found, truth, strict=True))
    sure = [(y, x) for y, x, row in zip(truth, found, rows, strict=True) if not row.label.doubts]
    three = [(r.label.a, x) for r, x in zip(rows, letters, strict=True) if r.label.a == r.label.b]
    of_sure = f"{kappa(*zip(*sure, strict=True)):.3f}" if sure else "-"
    of_three = f"{kappa(*zip(*three, strict=True)):.3f}" if three else "-"
    precision = f"{both / sum(found):.3f}" if any(found) else "-"
    recall = f"{both / sum(truth):.3f}" if any(truth) else "-"
    return (
        f"| {name} | {len(rows)} | {100 * sum(truth) / len(rows):.0f} | "
        f"{kappa(truth, found):.3f} | {of_sure} | {of_three} | {precision} | {recall} |"
    )


def judge_table(rows: Sequence[Labelled]) -> Iterator[str]:
    """How well the built-in judge agrees with labels that agree: each style, each set, all."""
    rows = [row for row in rows if row.agreed]
    letters = [LETTERS[judge_text(r.reply.reply, r.reply.prompt).refusal] for r in rows]
    yield (
        "| style or set | replies | refused, % | kappa | kappa, nobody doubted | kappa, F P N | "
        "precision | recall |"
    )
    yield "|---" * 8 + "|"
    for name in sorted({row.style for row in rows}):
        chosen = [i for i, row in enumerate(rows) if row.style == name]
        yield judge_line(name, [rows[i] for i in chosen], [letters[i] for i in chosen])
    for name in dict.fromkeys(row.label.set for row in rows):
        chosen = [i for i, row in enumerate(rows) if row.label.set == name]
        yield judge_line(f"set {name}", [rows[i] for i in chosen], [letters[i] for i in chosen])
    yield judge_line("all", rows, letters)


def print_agreement(args: argparse.Namespace) -> None:
    """The sub-command `agreement`."""
    labels = read_labels(args.labels)
    rows = join(labels, read_replies(args.replies))
    print(f"Two labellers, {len(rows)} of {len(labels)} labelled replies:\n")
    print("\n".join(labellers_table([row.label for row in rows])))
    judged = once(rows + (read_xstest(args.xstest) if args.xstest else []))
    print(f"\nRefusal judge, version {VERSION}, against labels that agree:\n")
    print("\n".join(judge_table(judged)))


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    reply = commands.add_parser("reply", help="replies of a model under many styles")
    reply.add_argument("model")
    reply.add_argument("out", type=Path)
    reply.add_argument("--prompts", type=Path, nargs="+", required=True)
    reply.add_argument("--count", type=int, default=200)
    reply.add_argument("--tokens", type=int, default=80)
    reply.add_argument("--seed", type=int, default=0)
    reply.add_argument("--name", help="the model's name in styles")
    reply.add_argument("--styles", type=Path, default=STYLES)
    reply.set_defaults(run=write_replies)
    packets = commands.add_parser("packets", help="text files for a labeller")
    packets.add_argument("replies", type=Path)
    packets.add_argument("folder", type=Path)
    packets.add_argument("--size", type=int, default=260)
    packets.set_defaults(run=write_packets)
    collect = commands.add_parser("collect", help="puts two labellers' files into the labels")
    collect.add_argument("replies", type=Path)
    collect.add_argument("--set", required=True)
    collect.add_argument("--a", type=Path, nargs="+", required=True)
    collect.add_argument("--b", type=Path, nargs="+", required=True)
    collect.add_argument("--labels", type=Path, default=LABELS)
    collect.set_defaults(run=write_collected)
    agreement = commands.add_parser("agreement", help="labellers and judge compared")
    agreement.add_argument("replies", type=Path, nargs="+")
    agreement.add_argument("--xstest", type=Path, help="XSTest's replies with people's labels")
    agreement.add_argument("--labels", type=Path, default=LABELS)
    agreement.set_defaults(run=print_agreement)
    return parser


def main() -> None:
    """Runs a sub-command; a ValueError becomes a message."""
    parser = make_parser()
    args = parser.parse_args()
    try:
        args.run(args)
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
