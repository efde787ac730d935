"""What an engine gives, and what a completions file holds -> completions that were asked for, each
once, with the id of its content.

    asked = Asked(engine, work)
    for row in engine.complete(asked.prompts(), sampling):
        file.add(asked.taken(row))
    asked.check_all_given()
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from overrefusal_po.engines import Engine, SampleKey
from overrefusal_po.records import Completion, Origin, Prompt, Sampling, first_fault
from overrefusal_po.run.appender import numbered_rows


class Work(NamedTuple):
    """What to draw: `samples` of each prompt, without those that earlier runs had."""

    prompts: Iterable[Prompt]
    sampling: Sampling
    samples: int
    had: set[SampleKey]


class Asked:
    """The prompts that an engine was given, and the completions that it has yet to give."""

    def __init__(self, engine: Engine, work: Work) -> None:
        self.work = work
        self.open: set[SampleKey] = set()
        self.origins: dict[str, Origin] = {}
        self.where = f"engine {engine.name!r} (of {type(engine).__module__})"

    def prompts(self) -> Iterator[Prompt]:
        """The prompts of the work, each noted as the engine takes it."""
        for prompt in self.work.prompts:
            keys = {(prompt.id, number) for number in range(self.work.samples)}
            self.open |= keys - self.work.had
            if prompt.origin is not None:
                self.origins[prompt.id] = prompt.origin.model_copy(update={"meta": {}})
            yield prompt

    def taken(self, row: Completion) -> Completion:
        """The completion with the id of its content, and the user's row that it answers.

        ValueError if it was not asked for, came twice, or cannot be one.
        """
        if not isinstance(row, Completion):
            raise ValueError(
                f"{self.where} gave a {type(row).__name__}. Completions of overrefusal_po.records "
                "are needed."
            )
        what = f"{self.where}: the completion of prompt {row.prompt_id!r}, sample {row.sample},"
        if (fault := completion_fault(row, self.work.sampling)) is not None:
            raise ValueError(f"{what} {fault}")
        if (row.prompt_id, row.sample) not in self.open:
            raise ValueError(f"{what} was not asked for, or is there already.")
        self.open.discard((row.prompt_id, row.sample))
        origin = self.origins.get(row.prompt_id)
        return row.model_copy(update={"id": row.content_id, "origin": origin})

    def check_all_given(self) -> None:
        """Raises ValueError if the engine ended without some completion."""
        if self.open:
            prompt_id, number = min(self.open)
            raise ValueError(
                f"{self.where} ended without {len(self.open)} completions, the first of prompt "
                f"{prompt_id!r}, sample {number}. An engine gives one for each, with `error` if "
                "there is no response."
            )


def completion_fault(row: Completion, sampling: Sampling) -> str | None:
    """What is wrong with a completion that an engine gave; None if nothing is."""
    try:
        # a copy or a subclass may have left the checks out
        Completion.model_validate(
            row.model_dump(include=set(Completion.model_fields), warnings=False)
        )
    except ValidationError as error:
        return f"is none: {first_fault(error)}."
    if row.sampling != sampling:
        return f"has other sampling than was asked for ({row.sampling})."
    if (row.error is not None) != (row.finish_reason == "error"):
        return f"has finish_reason {row.finish_reason!r} and error {row.error!r}."
    if row.error is not None and (row.text or not row.error):
        return "has an error and a text." if row.text else "has an error without words."
    return None


def read_drawn(paths: Iterable[Path], sampling: Sampling) -> dict[SampleKey, Completion]:
    """The completions of the files that have this sampling, by prompt id and sample number.

    ValueError names file and line if a row is no completion, does not have the id of its content,
    or if there are two of one prompt and sample.
    """
    wanted = sampling.model_dump(exclude_defaults=True)
    found: dict[SampleKey, Completion] = {}
    for path in paths:
        for number, values in numbered_rows(path):
            if values.get("sampling") == wanted:
                row = kept_completion(values, f"{path}, line {number}")
                if found.setdefault((row.prompt_id, row.sample), row) is not row:
                    raise ValueError(
                        f"{path}, line {number}: prompt {row.prompt_id!r} has a completion with "
                        f"sample number {row.sample} already. Delete one of both lines."
                    )
    return found


def kept_completion(values: object, where: str) -> Completion:
    """A line of a completions file. ValueError if it is none, or if its id belongs to another
    content."""
    try:
        row = Completion.model_validate(values)
    except ValidationError as error:
        raise ValueError(
            f"{where}: not a Completion: {first_fault(error)}. Delete the line to ask again."
        ) from None
    if row.id != row.content_id:
        raise ValueError(
            f"{where}: the id {row.id} is not that of the text ({row.content_id} is). The line was "
            "changed after it was written. Delete it to ask again."
        )
    return row
