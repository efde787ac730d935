"""What a training learns from, made once a run: read, rendered, tokenised, measured and checked.

    source = module.read(recipe)                        # records, from files and sources
    prepared = module.prepare(recipe, source, template)
    prepared.save(run.path)                             # rank 0 writes, the other ranks load
    load_rows(run.path)

`check --data` prints what `Prepared` holds, `train` writes and uses it, and the trainer factories
accept it in place of records.
"""

from __future__ import annotations

import json
import logging
import random
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from overrefusal_po.pairs.findings import WAIVED_FILE, Waived, split_waived
from overrefusal_po.pairs.firewall import benchmark_finding, contamination
from overrefusal_po.recipe.sections import TooLong
from overrefusal_po.records import (
    LabelledResponse,
    PreferencePair,
    Prompt,
    Triple,
    content_id,
    write_atomic,
    write_jsonl,
)
from overrefusal_po.train.lengths import Fitting, fit

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset
    from numpy.typing import NDArray

    from overrefusal_po.pairs.findings import Lint

logger = logging.getLogger(__name__)

TrainingRecord = PreferencePair | Prompt | Triple | LabelledResponse
R = TypeVar("R", PreferencePair, Prompt, Triple)
T = TypeVar("T")
U = TypeVar("U")

NOT_CONTENT: Any = {
    "origin": True,
    "context": True,
    "prompt": {"origin", "context", "unfinished"},
    "verdicts": {"__all__": {"judged"}},
    "unfinished": True,
}
"""Fields that do not decide the order of rows: a file may lie in another folder tomorrow, and a
field that is new in a record must not change the order of known rows."""

ROWS = "rows"
"""The folder of the token rows in a run folder."""

ALIKE_FILE = "equal_openings.json"
"""The pairs that an opening makes alike, in the run folder."""


class Source(NamedTuple):
    """What a recipe names, read once.

    Attributes:
        records: the pairs, triples or prompts that are there already.
        helpful: prompts with references that DeRTa mixes in.
        asked: prompts that the student has to answer before its records can be made.
        samples: how many answers it gives to each of them.
    """

    records: Sequence[TrainingRecord]
    helpful: Sequence[Prompt] = ()
    asked: Sequence[Prompt] = ()
    samples: int = 1

    @property
    def prompts(self) -> list[Prompt]:
        """Every prompt that may be trained on, before limits are drawn."""
        known = [r if isinstance(r, Prompt) else r.prompt for r in self.records]
        return [*known, *self.helpful, *self.asked]


class Prepared(NamedTuple):
    """What a trainer reads, and what is known of it.

    Attributes:
        rows: the columns that the trainer reads, in training order; None while the student has yet
            to answer.
        records: the records behind them; in a loaded `Prepared` there are none.
        helpful: the helpful prompts behind them (DeRTa).
        lengths: (records, columns) tokens: prompt, chosen, rejected of a pair; else the whole row.
        findings: what the linter found; None for what has no linter, or was not linted.
        line: what was found, in words.
        waived: findings that may stand, with the reasons.
        alike: {"left_out": n, "of": n, "opening": n, "ids": [...]} of pairs whose sides begin with
            the same tokens; empty if there are none.
        left_out: {noun: {"left_out": n, "of": n, "max_length": n, "ids": [...]}} of rows too long.
        added: how many tokens the training adds to the vocabulary.
    """

    rows: Dataset | None
    records: Sequence[TrainingRecord] = ()
    helpful: Sequence[Prompt] = ()
    lengths: NDArray[np.int64] = np.zeros((0, 1), dtype=np.int64)
    findings: Lint | None = None
    line: str = ""
    left_out: Mapping[str, Mapping[str, object]] = {}
    waived: Sequence[Waived] = ()
    alike: Mapping[str, object] = {}
    added: int = 0

    def save(self, folder: Path) -> None:
        """Writes data.jsonl, helpful.jsonl, too_long.json, equal_openings.json, waived.json and the
        token rows into a run folder."""
        if self.waived:
            kept = {"waived": waived_rows(self.waived)}
            write_atomic(folder / WAIVED_FILE, json.dumps(kept, indent=1))
        if self.left_out:
            write_atomic(folder / "too_long.json", json.dumps(self.left_out, indent=1))
        if self.alike:
            write_atomic(folder / ALIKE_FILE, json.dumps(self.alike, indent=1))
        if self.helpful:
            write_jsonl(folder / "helpful.jsonl", self.helpful)
        beside = folder / f".{ROWS}.tmp"
        shutil.rmtree(beside, ignore_errors=True)
        assert self.rows is not None, "data without rows are not whole"
        self.rows.save_to_disk(str(beside))
        shutil.rmtree(folder / ROWS, ignore_errors=True)
        beside.replace(folder / ROWS)
        write_jsonl(folder / "data.jsonl", self.records)  # last: it says that the data are whole


def waived_rows(waived: Iterable[Waived]) -> list[dict[str, object]]:
    """The rows of waived.json: findings that may stand, each with the reason."""
    return [{**finding._asdict(), "reason": reason} for finding, reason in waived]


def is_saved(folder: Path) -> bool:
    """Whether a run folder holds the whole data of a training."""
    return (folder / "data.jsonl").is_file() and (folder / ROWS).is_dir()


def load_rows(folder: Path) -> Prepared:
    """The token rows of a run folder, read from disk as they are needed."""
    from datasets import Dataset

    return Prepared(Dataset.load_from_disk(str(folder / ROWS)))


def as_dataset(table: pa.Table) -> Dataset:
    """A pyarrow table as a Dataset, without a copy."""
    from datasets import Dataset
    from datasets.table import InMemoryTable

    return Dataset(InMemoryTable(table))


def highest_id(rows: Dataset) -> int:
    """The highest token id in the columns of rows; -1 without one."""
    import pyarrow.compute as pc

    names = [n for n in rows.column_names if n.endswith("_ids") or n == "input_ids"]
    found = [pc.max(pc.list_flatten(rows.data[name])).as_py() for name in names]
    if "branches" in rows.column_names:  # DeRTa's trees
        trees = rows["branches"]
        found += [max(branch["input_ids"]) for tree in trees for branch in tree]
    return max((highest for highest in found if highest is not None), default=-1)


def draw_order(records: Iterable[TrainingRecord], seed: int) -> list[float]:
    """A number for each record that follows from seed and content alone: what it is drawn by."""
    return [
        random.Random(
            content_id(seed, record.model_dump(mode="json", exclude=NOT_CONTENT))
        ).random()
        for record in records
    ]


def drawn_places(records: Sequence[TrainingRecord], limit: int | None, seed: int) -> list[int]:
    """Places of at most `limit` records (None: all) in the order that they are drawn in."""
    found: list[int] = np.argsort(draw_order(records, seed), kind="stable")[:limit].tolist()
    return found


def drawn(records: Sequence[R], limit: int | None, seed: int) -> list[R]:
    """At most `limit` records (None: all) in an order that follows from seed and content alone."""
    return [records[at] for at in drawn_places(records, limit, seed)]


class Used(NamedTuple):
    """Which records a training uses: places in training order, and what fits."""

    places: list[int]
    fitting: Fitting

    def taken(self, items: Sequence[T]) -> list[T]:
        """What stands at the places: records, or something made of each."""
        return [items[at] for at in self.places]


def used_records(
    records: Sequence[R],
    lengths: Sequence[int],
    *,
    max_length: int | None,
    too_long: TooLong,
    limit: int | None = None,
    seed: int | None = None,
) -> Used:
    """The records that fit; with a seed in drawn order, at most `limit` of them.

    Raises what `lengths.fit` raises.
    """
    fitting = fit(records, lengths, max_length=max_length, too_long=too_long)
    if seed is None:
        return Used(fitting.kept, fitting)
    order = drawn_places([records[at] for at in fitting.kept], limit, seed)
    return Used([fitting.kept[at] for at in order], fitting)


def as_column(lengths: Sequence[int]) -> NDArray[np.int64]:
    """(records, 1): tokens of whole rows, as `Prepared` has them."""
    return np.array(lengths, dtype=np.int64).reshape(-1, 1)


def rendered(
    items: Sequence[T], names: Sequence[str], render: Callable[[Sequence[T]], list[U]]
) -> list[U]:
    """`render(items)`; a ValueError names the first item that has it, by its name in `names`."""
    try:
        return render(items)
    except ValueError:
        for name, item in zip(names, items, strict=True):
            try:
                render([item])
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
        raise


def check_rendered(prompts: Iterable[Prompt], *, begun: bool) -> None:
    """Raises ValueError for a prompt that a chat template does not render as it is asked.

    `begun`: whether an `assistant_prefix` is trained behind.
    """
    for prompt in prompts:
        if prompt.raw_text is not None:
            raise ValueError(
                f"Prompt {prompt.label}: it has a raw_text ({prompt.raw_text[:40]!r}), which goes "
                "to a model without a chat template. A training renders `messages` by the "
                "template. Write what is asked into messages, and delete raw_text."
            )
        if prompt.assistant_prefix and not begun:
            raise ValueError(
                f"Prompt {prompt.label}: it has an assistant_prefix "
                f"({prompt.assistant_prefix[:40]!r}), and only pairs (DPO, ORPO, KTO) are trained "
                "behind one. Write it into the response, and delete assistant_prefix."
            )


def check_firewall(prompts: Sequence[Prompt], waive: Mapping[str, str]) -> list[Waived]:
    """The waived findings of the firewall, with their reasons. Raises ValueError if prompts that
    are trained on are a benchmark's, or nearly, and that is not waived."""
    by_id = {prompt.id: prompt for prompt in prompts}
    found = []
    for hit in contamination(by_id.values()):
        origin = by_id[hit.id].origin
        own = (origin.id if origin else None) or hit.id
        found.append(benchmark_finding(hit, own, origin))
    count, waived = split_waived(found, waive)
    errors = [finding for finding in count if finding.severity == "error"]
    if errors:
        raise ValueError(
            f"{len({f.id for f in errors})} of the {len(prompts)} prompts to train on are a "
            f"benchmark's. The first: {errors[0].words}. Delete these rows, or have their source "
            "leave them out: {name: SOURCE, without_benchmarks: true}. If you never measure the "
            f"benchmark, waive it with a reason: data.waive: {{{errors[0].group}: reason}}."
        )
    for finding in count:
        logger.warning("data.waive: %s %s", finding.id, finding.message)
    return waived
