"""The one way to the hub for sources: a data set's name -> its rows. Every fault is a ValueError
that says what to do.

    for place, row in hub_rows(HubSet("bench-llm/or-bench", "or-bench-toxic", "train")):
        ...

`HF_ENDPOINT` names another hub (a mirror, or one on loopback), `HF_HUB_OFFLINE=1` takes what the
cache holds. No error text carries a token, and none is read here: huggingface_hub finds it by
itself.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from overrefusal_po.records import JsonObject

if TYPE_CHECKING:
    from datasets import Dataset


class HubSet(NamedTuple):
    """A data set on the hub. `file`: one file of it (or a pattern) to read instead of all files of
    the configuration."""

    repo: str
    config: str | None = None
    split: str = "test"
    revision: str | None = None
    file: str | None = None
    tabs: bool = False
    """The files are tab separated, and "None" or an empty cell in them is text."""

    @property
    def place(self) -> str:
        """`walledai/XSTest`, or `allenai/coconot (pref, train)`: rows of two configurations may
        have the same number, and the same id."""
        return f"{self.repo} ({self.config}, {self.split})" if self.config else self.repo


def hub_rows(wanted: HubSet) -> Iterator[tuple[str, JsonObject]]:
    """(place, row) for every row; ValueError if the set cannot be loaded."""
    for number, row in enumerate(load(wanted), 1):
        yield f"{wanted.place}, row {number}", row


def load(wanted: HubSet) -> Dataset:
    """The split. Row counts of the card are not checked: cards lag behind
    their data."""
    from datasets import load_dataset

    files = {wanted.split: wanted.file} if wanted.file else None
    reading: dict[str, Any] = {}  # the keyword arguments of any loader
    if wanted.tabs:
        reading = {"delimiter": "\t", "keep_default_na": False}
    try:
        found: Dataset = load_dataset(
            wanted.repo,
            wanted.config,
            data_files=files,
            split=wanted.split,
            revision=wanted.revision,
            verification_mode="no_checks",
            **reading,
        )
        return found
    except Exception as error:
        # `from None`: a server may echo the request, and a chained traceback would show it with the
        # token
        raise ValueError(why_not(wanted, error)) from None


def why_not(wanted: HubSet, error: Exception) -> str:
    """What went wrong and what to do, in words."""
    if is_refused(error):
        return (
            f"The data set {wanted.repo} is gated, and the hub did not let us in. Accept its terms "
            f"at https://huggingface.co/datasets/{wanted.repo} with your account, log in (`hf auth "
            "login`, or set HF_TOKEN), and run again; or give local files: paths: [...]."
        )
    where = wanted.repo + "".join(
        f", {name} {value}"
        for name, value in (
            ("config", wanted.config),
            ("split", wanted.split),
            ("revision", wanted.revision),
        )
        if value
    )
    return (
        f"The data set {wanted.repo} could not be loaded from the hub ({where}; "
        f"{type(error).__name__}: {without_token(str(error))}). Check the name and the network, "
        "log in if it is private or gated (`hf auth login`), or give local files: paths: [...]."
    )


def is_refused(error: BaseException | None) -> bool:
    """Whether the hub says 401 or 403 for a set that exists (a set that does not exist is 401 too,
    by another class)."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        status = getattr(getattr(error, "response", None), "status_code", None)
        # datasets cuts the chain of causes and leaves only its own sentence
        if "is a gated dataset" in str(error) or type(error).__name__ == "GatedRepoError":
            return True
        if status in (401, 403) and type(error).__name__ != "RepositoryNotFoundError":
            return True
        error = error.__cause__ or error.__context__
    return False


def without_token(text: str) -> str:
    """`text` without the hub token, should a server have echoed it, and without line breaks."""
    from huggingface_hub import get_token

    for secret in {get_token(), os.environ.get("HF_TOKEN")} - {None, ""}:
        text = text.replace(str(secret), "***")
    return " ".join(text.split())[:600]
