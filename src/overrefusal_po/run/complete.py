"""Prompts + engine -> completions.jsonl, which grows row by row and goes on after a kill.

    make = lambda: engine_for(section, template, generation)
    completions = complete(folder / "completions.jsonl", prompts, sampling, make, "base: answers")
    tally = draw(folder / "completions.jsonl", prompts, sampling, make, samples=8)
    # the same file, but no completion stays in memory

| file beside completions.jsonl | holds |
|---|---|
| completions.failed.jsonl | prompts without a completion, with its `error`; delete it to retry |
| completions.ledger.jsonl | costs of each completion of a paid engine: requests, faults, tokens |
| completions.tally.json | the sums of these |
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast

from overrefusal_po.engines import (
    Engine,
    EnginePlug,
    check_engine_made,
    check_engine_plug,
)
from overrefusal_po.engines._costs import Cost
from overrefusal_po.identity import unique_prompts
from overrefusal_po.model import load as models
from overrefusal_po.model.chat import ChatTemplate
from overrefusal_po.model.frame import read_chat_template
from overrefusal_po.model.generation import settings_words
from overrefusal_po.model.quantised import check_quantiser
from overrefusal_po.plugins import find_plug, split_spec
from overrefusal_po.recipe.sections import Chat, Generation
from overrefusal_po.recipe.sections import Engine as EngineSpec
from overrefusal_po.records import Completion, Prompt, Sampling, write_atomic
from overrefusal_po.run.appender import Appender, cut_torn_line, numbered_rows
from overrefusal_po.run.drawn import Asked, Work, read_drawn
from overrefusal_po.run.folder import Run
from overrefusal_po.run.ledger import VERDICTS_LEDGER, LedgerSums, sum_ledger
from overrefusal_po.run.pace import spoken

logger = logging.getLogger(__name__)
MakeEngine = Callable[[], Engine]


def recipe_sampling(generation: Generation, seed: int) -> Sampling:
    """The sampling that a recipe's `generation:` section asks for."""
    return Sampling(
        max_new_tokens=generation.max_new_tokens,
        temperature=generation.temperature,
        top_p=generation.top_p,
        seed=seed,
    )


def load_template(section: Mapping[str, object], chat: Chat) -> ChatTemplate:
    """The chat template of a `model:` section with the recipe's chat options. Loads no weights."""
    check_quantiser(section)
    trust = bool(section.get("trust_remote_code", False))
    revision = str(section.get("model_revision", "main"))
    name = str(section["model_name_or_path"])
    models.check_available(name, revision=revision, trust_remote_code=trust)
    tokenizer = models.load_tokenizer(name, revision=revision, trust_remote_code=trust)
    if chat.template is not None:
        tokenizer.chat_template = read_chat_template(chat.template)
    return ChatTemplate(
        tokenizer, system_prompt=chat.system_prompt, template_kwargs=chat.chat_template_kwargs
    )


def in_process(engine: EngineSpec) -> bool:
    """Whether an engine loads the weights itself, and so needs the chat template here."""
    return split_spec(engine, "engines")[0] == "transformers"


def continues_prefix(engine: EngineSpec) -> bool:
    """Whether an engine continues an answer that the prompt begins. Not all servers do."""
    return bool(getattr(find_plug("engines", engine)[1], "continue_final_message", True))


def engine_for(
    section: Mapping[str, object],
    template: ChatTemplate | None,
    generation: Generation,
    name: str | None = None,
    *,
    engine: EngineSpec = "transformers",
    chat: Chat | None = None,
) -> Engine:
    """The engine that a recipe names, for the model of a `model:` section. An engine in process
    loads the weights.

    Args:
        section: the `model:` section.
        template: the model's chat template; may be None for an engine over HTTP.
        generation: for the batch size.
        name: the model's name in completions; None: the section's name.
        engine: the recipe's `engine:`.
        chat: the recipe's `chat:`, for an engine over HTTP.
    """
    module, settings = find_plug("engines", engine)
    chat = chat or Chat()
    check_template_engine(engine, chat)
    check_engine_plug(module)
    made = cast(EnginePlug, module).engine(
        settings,
        section,
        template,
        name=name or str(section["model_name_or_path"]),
        system_prompt=chat.system_prompt,
        template_kwargs=chat.chat_template_kwargs,
        batch_size=generation.batch_size,
    )
    check_engine_made(made, module)
    return made


def note_left_out(
    run: Run,
    section: Mapping[str, object],
    engine: EngineSpec = "transformers",
    *,
    name: str | None = None,
) -> str | None:
    """What of the model's own generation_config.json is not used, in words; None if nothing is.

    It goes into the log and the run's manifest.
    """
    module, settings = find_plug("engines", engine)
    if not hasattr(module, "left_out"):
        return None
    found = module.left_out(settings, section)
    if not found:
        return None
    facts = run.facts.setdefault("generation_config_left_out", {})
    assert isinstance(facts, dict)
    name = name or str(section["model_name_or_path"])
    facts[name] = found
    words = (
        f"The settings of {name}'s own generation_config.json are not used: "
        f"{settings_words(found)}. To use them: engine: {{name: transformers, generation_config: "
        "model}."
    )
    logger.warning("%s", words)
    return words


def check_template_engine(engine: EngineSpec, chat: Chat) -> None:
    """Raises ValueError for a chat template of the recipe that the engine would not use."""
    if chat.template is not None and not in_process(engine):
        raise ValueError(
            f"chat.template is {chat.template}, but the engine "
            f"{split_spec(engine, 'engines')[0]!r} does not render conversations here: its server "
            "has a template of its own. Take chat.template out, and start the server with that "
            "file (vllm serve --chat-template FILE)."
        )


class Tally(NamedTuple):
    """The counts of a completions file and the files beside it."""

    completed: int
    failed: int
    reasons: dict[str, int]
    """{error: prompts without a completion}."""
    ledger: LedgerSums
    """Zeros if the engine is not paid."""
    truncated: int = 0
    """Completions that ended at the limit of new tokens."""


def file_beside(path: Path, ending: str) -> Path:
    """completions.jsonl -> completions.<ending>."""
    return path.with_name(f"{path.name.removesuffix('.jsonl')}.{ending}")


def drop_completions(path: Path) -> None:
    """Deletes a completions file and those beside it, so that everything is asked again."""
    for ending in ("jsonl", "failed.jsonl", "ledger.jsonl", "tally.json"):
        file_beside(path, ending).unlink(missing_ok=True)


def draw(
    path: Path,
    prompts: Iterable[Prompt],
    sampling: Sampling,
    make_engine: MakeEngine,
    *,
    samples: int = 1,
    label: str = "",
    total: int | None = None,
) -> Tally:
    """Draws `samples` completions of each prompt into `path`, and counts them.

    What is in the files already, completed or failed, is not drawn again. Prompts are read as they
    are needed, and only their ids are kept. So there may be more than memory holds.

    Args:
        path: the completions file.
        prompts: a sequence, or a stream.
        sampling: how to draw.
        make_engine: makes the engine; not called if nothing is missing.
        samples: completions of each prompt.
        label: names the work in the log.
        total: the number of a stream's prompts, for the log's lines on progress; None if unknown.
    """
    failed = file_beside(path, "failed.jsonl")
    for file in (path, failed, file_beside(path, "ledger.jsonl")):
        cut_torn_line(file)
    had = {(row["prompt_id"], row.get("sample", 0)) for row in drawn_rows((path, failed), sampling)}
    if isinstance(prompts, Sequence):  # a file may hold completions of other prompts, too
        missing: int | None = len({(p.id, n) for p in prompts for n in range(samples)} - had)
    else:  # looking through an iterator would use it up
        missing = None if total is None else max(total * samples - len(had), 0)
    if missing or not isinstance(prompts, Sequence):
        work = Work(unique_prompts(prompts), sampling, samples, had)
        _draw_missing(make_engine(), path, work, label=label, total=missing)
    tally = count_drawn(path, sampling)
    write_atomic(file_beside(path, "tally.json"), json.dumps(tally._asdict(), indent=1) + "\n")
    if tally.truncated:
        logger.info(
            "%s: %d of %d ended at the limit of %d tokens",
            label or path.name,
            tally.truncated,
            tally.completed,
            sampling.max_new_tokens,
        )
    if tally.failed:
        reasons = Counter(tally.reasons).most_common(3)
        logger.warning(
            "%s: %d of %d have no completion (%s); delete %s to ask for them again",
            label or path.name,
            tally.failed,
            tally.failed + tally.completed,
            "; ".join(f"{count} x {reason}" for reason, count in reasons),
            failed,
        )
    return tally


def _draw_missing(engine: Engine, path: Path, work: Work, *, label: str, total: int | None) -> None:
    """Completions go to `path`, failures and costs beside it, each as soon as it comes.

    A cost is written before its completion. If a kill comes between the two, that completion is
    asked for and paid twice. What the engine gives is checked (`drawn`).
    """
    with (
        Appender(path, Completion, keep=False) as good,
        Appender(file_beside(path, "failed.jsonl"), Completion, keep=False) as bad,
        Appender(file_beside(path, "ledger.jsonl"), Cost, keep=False) as ledger,
    ):
        asked = Asked(engine, work)
        stream = engine.complete(
            asked.prompts(),
            work.sampling,
            samples=work.samples,
            had=work.had,
            spent_tokens=spent_tokens(path.parent, engine.name),
            spend=ledger.add,
        )
        if label:
            logger.info("%s", label)
        with closed_at_end(stream):
            for completion in spoken(stream, label or path.name, total=total):
                row = asked.taken(completion)
                (good if row.error is None else bad).add(row)
        asked.check_all_given()


@contextmanager
def closed_at_end(stream: Iterator[Completion]) -> Iterator[None]:
    """Within, a fault or Ctrl-C also ends what the engine began: requests, an adapter at a
    server."""
    try:
        yield
    finally:
        if isinstance(stream, Generator):
            stream.close()


def spent_tokens(folder: Path, model: str) -> int:
    """The tokens of one model in all ledgers of a folder but the judges'."""
    ledgers = (p for p in folder.glob("*.ledger.jsonl") if p.name != VERDICTS_LEDGER)
    return sum(sum_ledger(path, model)["tokens"] for path in ledgers)


# Any: rows as plain JSON; validating each would be slow
def drawn_rows(paths: Iterable[Path], sampling: Sampling) -> Iterator[dict[str, Any]]:
    """The rows of completions files with this sampling, as plain data, one at a time. ValueError
    for a row that does not say its prompt or its sampling."""
    wanted = sampling.model_dump(exclude_defaults=True)
    for path in paths:
        for number, row in numbered_rows(path):
            if missing := {"prompt_id", "sampling"} - row.keys():
                raise ValueError(
                    f"{path}, line {number}: not a Completion: there is no {min(missing)}. Delete "
                    "the line to ask again."
                )
            if row["sampling"] == wanted:
                yield row


def count_drawn(path: Path, sampling: Sampling) -> Tally:
    """The counts of `path` and the files beside it."""
    # rows leave out their defaults, and "stop" is one
    ends = Counter(row.get("finish_reason", "stop") for row in drawn_rows((path,), sampling))
    failed = drawn_rows((file_beside(path, "failed.jsonl"),), sampling)
    reasons = Counter(str(row.get("error")) for row in failed)
    ledger = sum_ledger(file_beside(path, "ledger.jsonl"))
    return Tally(ends.total(), reasons.total(), dict(reasons), ledger, ends["length"])


def complete(
    path: Path,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    make_engine: MakeEngine,
    label: str,
    *,
    samples: int = 1,
) -> list[Completion]:
    """`draw`, then the completions in the prompts' order, each prompt's samples together.

    A prompt that got none has a completion with `error`; judges never see it (`judged`). ValueError
    for a row that is damaged or changed (`drawn.read_drawn`).
    """
    draw(path, prompts, sampling, make_engine, samples=samples, label=label, total=len(prompts))
    found = read_drawn((path, file_beside(path, "failed.jsonl")), sampling)
    return [found[p.id, n] for p in prompts for n in range(samples)]
