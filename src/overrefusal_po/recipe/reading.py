"""Which files of rows a recipe's `data` reads, and how: names of columns, bad rows, limits.

    {"sets": ["x.jsonl"], "columns": {"prompt": "question"}}
    # becomes {"sets": [{"name": "file", "path": "x.jsonl", "columns": ...}], ...}

The keys of ReadingSection stand in every `data` section, and hold for each of its files and hub
sets. If a source gives such a key itself, that one counts. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

FILE_ENDINGS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
"""The endings of files of rows. A source that ends so is short for `{name: file, path: ...}`."""

READERS = ("file", "hub")
"""The sources that take the keys of ReadingSection."""

SEED_MAX = 2**32 - 1
"""The greatest seed that numpy, and so transformers, takes."""

BadRows = Literal["error", "drop"]
"""What happens to a row that cannot be read."""


class Section(BaseModel):
    """Frozen and closed: an unknown key is an error. The docstring under a field is its text."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        protected_namespaces=(),
        use_attribute_docstrings=True,
        allow_inf_nan=False,
    )


class ReadingSection(Section):
    """What every `data` section says of its files and hub sets."""

    sources: ClassVar[tuple[str, ...]] = ()
    """The keys of this section that name sources."""

    columns: dict[str, str] = {}
    """{our name: the column in your files and hub sets}, for example {prompt: question, chosen:
    better, rejected: worse}."""
    ignore: tuple[str, ...] = ()
    """Columns that are left out on purpose, also if they carry text of the conversation."""
    bad_rows: BadRows = "error"
    """What happens to a row that cannot be read as it is.

    - `error`: the run stops, counts such rows and names the first ones.
    - `drop`: they are left out and counted in the log."""
    limit_rows: int = Field(default=1_000_000, gt=0)
    """Rows of a file, at most. More are an error."""
    limit_row_mb: float = Field(default=16, gt=0)
    """Size of a row (a line, a cell), at most. A longer one is an error."""
    limit_mb: float = Field(default=1024, gt=0)
    """Size of a file when it is unpacked, at most. A larger one is an error."""

    @model_validator(mode="before")
    @classmethod
    def hand_on(cls, values: Any) -> Any:
        """The section with its reading keys in each of its files and hub sets.

        Any: what a recipe holds, unchecked. ValueError if no source takes them.
        """
        if not isinstance(values, Mapping):
            return values
        given = {
            key: values[key]
            for key, field in ReadingSection.model_fields.items()
            if key in values and values[key] != field.default and values[key] not in ([], {})
        }
        if not given:
            return values
        changed = {k: with_keys(values[k], given) for k in cls.sources if values.get(k) is not None}
        if not any(map(takes_keys, changed.values())):
            raise ValueError(
                f"{', '.join(given)} is given under data, but no source there reads a file. These "
                f"keys are for paths ({', '.join(FILE_ENDINGS)}) and for {{name: file, ...}} and "
                "{name: hub, ...}."
            )
        return {**values, **changed}


def with_keys(spec: Any, given: Mapping[str, Any]) -> Any:
    """A source, or each of several, with the given keys if it reads a file or a hub set."""
    if isinstance(spec, list | tuple):
        return [with_keys(one, given) for one in spec]
    if is_path(spec):
        return {"name": "file", "path": spec, **given}
    if isinstance(spec, Mapping) and spec.get("name") in READERS:
        return {**given, **spec}
    return spec


def takes_keys(spec: Any) -> bool:
    """Whether a source, or one of several, takes the keys; what a stage will make may do so."""
    if isinstance(spec, list | tuple):
        return any(map(takes_keys, spec))
    if isinstance(spec, str):
        return spec.startswith("@")
    return isinstance(spec, Mapping) and spec.get("name") in READERS


def is_path(spec: Any) -> bool:
    """Whether a source is the path of a file of rows."""
    return (
        isinstance(spec, str) and not spec.startswith("@") and spec.lower().endswith(FILE_ENDINGS)
    )
