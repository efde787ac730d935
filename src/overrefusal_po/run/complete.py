"""Prompts + engine -> completions.jsonl that grows as they come, and goes on where a killed run
stopped.

    completions = complete(folder / "completions.jsonl", prompts, sampling, make_engine, "base: answers")
    tally = draw(folder / "completions.jsonl", prompts, sampling, make_engine, samples=8)
    # holds none in memory

| file beside completions.jsonl | holds |
|---|---|
| completions.failed.jsonl | prompts without a completion, each with its `error`; delete it, and they are asked again |
| completions.ledger.jsonl | what each completion cost, where the engine is paid: requests, faults, tokens |
| completions.tally.json | the sums of these |
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from overrefusal_po.engines._costs import Cost
from overrefusal_po.model import load as models
from overrefusal_po.model.chat import ChatTemplate
from overrefusal_po.plugins import find_plug, split_spec
from overrefusal_po.recipe.sections import Chat, Generation
from overrefusal_po.records import Completion, Prompt, Sampling, read_objects, write_atomic
from overrefusal_po.run.folder import Appender, mend

logger = logging.getLogger(__name__)
Key = tuple[str, int]
"""(prompt id, sample number): what is drawn once."""


class Engine(Protocol):
    """What engines/ hold: something that completes prompts, in any order."""

    name: str
    """What completions name as their model."""

    def complete(
        self,
        prompts: Iterable[Prompt],
        sampling: Sampling,
        *,
        samples: int = 1,
        had: Container[Key] = frozenset(),
        spent_tokens: int = 0,
        spend: Callable[[Cost], None] | None = None,
    ) -> Iterator[Completion]:
        """One completion for each prompt and sample number that is not in `had`."""


def sampling_of(generation: Generation, seed: int) -> Sampling:
    """The sampling of a recipe's `generation:` section."""
    return Sampling(
        max_new_tokens=generation.max_new_tokens,
        temperature=generation.temperature,
        top_p=generation.top_p,
        seed=seed,
    )


def load_template(section: dict[str, Any], chat: Chat) -> ChatTemplate:
    """The tokenizer of a `model:` section with the recipe's chat options; no weights are loaded."""
    trust = bool(section.get("trust_remote_code", False))
    revision = section.get("model_revision", "main")
    name = section["model_name_or_path"]
    models.check_available(name, revision=revision, trust_remote_code=trust)
    tokenizer = models.load_tokenizer(name, revision=revision, trust_remote_code=trust)
    return ChatTemplate(
        tokenizer, system_prompt=chat.system_prompt, template_kwargs=chat.chat_template_kwargs
    )


def in_process(engine: str | Mapping[str, Any]) -> bool:
    """Whether an engine loads the weights itself, and so needs the tokenizer and its template
    here."""
    return split_spec(engine, "engines")[0] == "transformers"


def engine_for(
    section: dict[str, Any],
    template: ChatTemplate | None,
    generation: Generation,
    name: str | None = None,
    *,
    engine: str | Mapping[str, Any] = "transformers",
    chat: Chat | None = None,
) -> Engine:
    """The engine of a recipe's `engine:` for the model of a `model:` section; weights are loaded
    where it is in process.

    `name` is what completions name as their model (None: as the section does). `template` may be
    None for an engine over HTTP, which alone reads `chat`.
    """
    module, settings = find_plug("engines", engine)
    chat = chat or Chat()
    made: Engine = module.engine(
        settings,
        section,
        template,
        name=name or str(section["model_name_or_path"]),
        system_prompt=chat.system_prompt,
        template_kwargs=chat.chat_template_kwargs,
        batch_size=generation.batch_size,
    )
    return made


class Tally(NamedTuple):
    """What lies in a completions file and the files beside it."""

    completed: int
    failed: int
    reasons: dict[str, int]
    """{error: prompts without a completion}."""
    ledger: dict[str, Any]
    """`ledger_of` the file; zeros where the engine is not paid."""


def beside(path: Path, what: str) -> Path:
    """completions.jsonl -> completions.<what>."""
    return path.with_name(f"{path.name.removesuffix('.jsonl')}.{what}")


def draw(
    path: Path,
    prompts: Iterable[Prompt],
    sampling: Sampling,
    make_engine: Callable[[], Engine],
    *,
    samples: int = 1,
    label: str = "",
    total: int | None = None,
) -> Tally:
    """`samples` completions of each prompt in `path`; none that is there, or failed for good, is
    made again.

    Prompts are read as they are needed and nothing is kept but their ids, so there may be more than
    memory holds. `total` is the number of prompts, for the progress bar; None where nobody knows
    it.
    """
    failed = beside(path, "failed.jsonl")
    for file in (path, failed, beside(path, "ledger.jsonl")):
        mend(file)
    had = {(row["prompt_id"], row.get("sample", 0)) for row in drawn_rows((path, failed), sampling)}
    # an iterator cannot be looked through without using it up
    if not isinstance(prompts, Sequence) or any(
        (p.id, n) not in had for p in prompts for n in range(samples)
    ):
        missing = None if total is None else max(total * samples - len(had), 0)
        _append(
            make_engine(),
            path,
            unique(prompts),
            sampling,
            samples,
            had=had,
            label=label,
            total=missing,
        )
    tally = tally_of(path, sampling)
    write_atomic(beside(path, "tally.json"), json.dumps(tally._asdict(), indent=1) + "\n")
    if tally.failed:
        logger.warning(
            "%s: %d of %d have no completion (%s); delete %s to ask for them again",
            label or path.name,
            tally.failed,
            tally.failed + tally.completed,
            "; ".join(
                f"{count} x {reason}" for reason, count in Counter(tally.reasons).most_common(3)
            ),
            failed,
        )
    return tally


def _append(
    engine: Engine,
    path: Path,
    prompts: Iterable[Prompt],
    sampling: Sampling,
    samples: int,
    *,
    had: set[Key],
    label: str,
    total: int | None,
) -> None:
    """Completions to `path`, failures and costs beside it, each handed to the operating system as
    it comes.

    A cost is written before its completion: what a kill takes between the two is asked for, and
    paid, twice.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import track

    with (
        Appender(path, Completion, keep=False) as good,
        Appender(beside(path, "failed.jsonl"), Completion, keep=False) as bad,
        Appender(beside(path, "ledger.jsonl"), Cost, keep=False) as ledger,
    ):
        stream = engine.complete(
            prompts,
            sampling,
            samples=samples,
            had=had,
            spent_tokens=sum(
                ledger_of(p, engine.name)["tokens"] for p in path.parent.glob("*.ledger.jsonl")
            ),
            spend=ledger.add,
        )
        for completion in track(
            stream, description=escape(label), total=total, console=Console(stderr=True)
        ):
            (good if completion.error is None else bad).add(completion)


def unique(prompts: Iterable[Prompt]) -> Iterator[Prompt]:
    """The prompts, each id once."""
    seen: set[str] = set()
    for prompt in prompts:
        if prompt.id not in seen:
            seen.add(prompt.id)
            yield prompt


def drawn_rows(paths: Iterable[Path], sampling: Sampling) -> Iterator[dict[str, Any]]:
    """The rows of completions files that were drawn so, as plain data, one at a time."""
    wanted = sampling.model_dump(exclude_defaults=True)
    for path in paths:
        for row in rows_of(path):
            if row["sampling"] == wanted:
                yield row


def rows_of(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file that may be empty or not be there."""
    if path.is_file() and path.stat().st_size:
        yield from (row for _, row in read_objects(path))


def tally_of(path: Path, sampling: Sampling) -> Tally:
    """Counts what lies in `path` and beside it."""
    completed = sum(1 for _ in drawn_rows((path,), sampling))
    reasons = Counter(
        str(row["error"]) for row in drawn_rows((beside(path, "failed.jsonl"),), sampling)
    )
    return Tally(completed, reasons.total(), dict(reasons), ledger_of(beside(path, "ledger.jsonl")))


def ledger_of(path: Path, model: str | None = None) -> dict[str, Any]:
    """The sums of a ledger (of one model's rows): requests = answers + faults, in all and at each
    endpoint."""
    found: dict[str, Any] = {"rows": 0, "requests": 0, "answers": 0, "faults": 0, "tokens": 0}
    found |= {"prompt_tokens": 0, "completion_tokens": 0, "endpoints": {}}
    for row in rows_of(path):
        if model is not None and row["model"] != model:
            continue
        found["rows"] += 1
        for kind in ("prompt_tokens", "completion_tokens"):
            found[kind] += row.get(kind, 0)
        for url, requests in row["requests"].items():
            place = found["endpoints"].setdefault(url, {"requests": 0, "answers": 0, "faults": {}})
            place["requests"] += requests
            place["answers"] += row.get("answered_by") == url
            for kind, count in row.get("faults", {}).get(url, {}).items():
                place["faults"][kind] = place["faults"].get(kind, 0) + count
    places = found["endpoints"].values()
    found["tokens"] = found["prompt_tokens"] + found["completion_tokens"]
    found["requests"] = sum(place["requests"] for place in places)
    found["answers"] = sum(place["answers"] for place in places)
    found["faults"] = sum(sum(place["faults"].values()) for place in places)
    return found


def complete(
    path: Path,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    make_engine: Callable[[], Engine],
    label: str,
    *,
    samples: int = 1,
) -> list[Completion]:
    """`draw`, then the completions in the prompts' order, each prompt's samples in a row.

    Where a prompt got none there stands one with `error`: `scored` keeps it from the judges.
    """
    draw(path, prompts, sampling, make_engine, samples=samples, label=label, total=len(prompts))
    rows = [
        Completion.model_validate(row)
        for row in drawn_rows((path, beside(path, "failed.jsonl")), sampling)
    ]
    found = {(c.prompt_id, c.sample): c for c in rows}
    return [found[p.id, n] for p in prompts for n in range(samples)]
