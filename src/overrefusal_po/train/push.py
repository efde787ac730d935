"""`push_to_hub`: the trained model in a repository of the user, instead of TRL's checkpoints.

    push = push_of(recipe)                   # None if the recipe does not ask for it
    check_push(push)                         # before any weight is loaded
    push_run(push, run.path)                 # model/ as the repository, adapter/ beside it

The token comes from the environment (HF_TOKEN, or what `hf auth login` keeps). It stands in no log,
no error and no file: of what a server answers, only the status code is shown.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from overrefusal_po.recipe.schema import TrainRecipe
from overrefusal_po.records import write_atomic

if TYPE_CHECKING:
    from huggingface_hub import HfApi

T = TypeVar("T")
logger = logging.getLogger(__name__)

OURS = ("push_to_hub", "hub_model_id", "hub_private_repo", "hub_revision")
"""The trainer's keys that this module reads. TRL's trainer never sees them."""

NOT_OURS = ("hub_strategy", "hub_always_push")
"""Keys that say when TRL pushes checkpoints. Here the model is pushed once, at the end."""

NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]{0,95}")
DONE = "pushed.json"
"""The file of a run folder that says that its model was pushed."""


class Push(NamedTuple):
    """Where a model goes."""

    repository: str
    private: bool | None
    revision: str | None


def push_of(recipe: TrainRecipe) -> Push | None:
    """What the recipe asks for; ValueError for a missing or a wrong name, and for other keys."""
    trainer = recipe.trainer
    if not trainer.get("push_to_hub"):
        return None
    for key in NOT_OURS:
        if key in trainer:
            raise ValueError(
                f"trainer.{key} says when checkpoints are pushed, and here model/ is pushed once, "
                "at the end. Take it out."
            )
    name = str(trainer.get("hub_model_id") or "")
    if not NAME.fullmatch(name):
        raise ValueError(
            f"trainer.push_to_hub is true, and trainer.hub_model_id is {name!r}. Give the "
            "repository's whole name: your user or organisation, a slash, the model's name."
        )
    return Push(name, trainer.get("hub_private_repo"), trainer.get("hub_revision"))


def check_places(trainings: Mapping[str, TrainRecipe]) -> None:
    """Raises ValueError if several stages of a pipeline push to one place: the model of one would
    overwrite that of another. Rounds of a stage do so, if its keys name a repository."""
    places: dict[tuple[str, str], list[str]] = {}
    for stage, recipe in trainings.items():
        if recipe.trainer.get("push_to_hub"):
            name, branch = (recipe.trainer.get(key) for key in ("hub_model_id", "hub_revision"))
            places.setdefault((str(name), str(branch or "main")), []).append(stage)
    for (name, branch), stages in places.items():
        if len(stages) > 1:
            raise ValueError(
                f"stages {', '.join(stages)} all push to {name} (branch {branch}), so each would "
                "overwrite the model of the one before. To push one of them, give "
                f"trainer.push_to_hub and hub_model_id to it alone (stages.{stages[-1]}.trainer). "
                "To push each, give each its own hub_model_id or hub_revision."
            )


def without_push(settings: Mapping[str, object]) -> dict[str, object]:
    """The trainer's settings without the keys of a push: TRL would push its checkpoints."""
    return {key: value for key, value in settings.items() if key not in (*OURS, *NOT_OURS)}


def check_push(push: Push | None) -> None:
    """Makes the repository, if it is not there. ValueError if the hub does not let us write."""
    if push is None:
        return
    from huggingface_hub import HfApi, get_token

    if not get_token():
        raise ValueError(
            f"trainer.push_to_hub: there is no hub token, so {push.repository} cannot be written. "
            "Log in (`hf auth login`), or set the environment variable HF_TOKEN."
        )
    api = HfApi()
    asked(push, lambda: api.create_repo(push.repository, private=push.private, exist_ok=True))


def push_run(push: Push | None, run: Path) -> None:
    """Pushes a finished run's model, unless it was pushed before; the card goes with it.

    Raises ValueError in a sentence that says where the model is. The same command tries again.
    """
    if push is None or (run / DONE).is_file():
        return
    from huggingface_hub import HfApi

    logger.info("pushing %s to %s", run / "model", push.repository)
    try:
        upload(HfApi(), push, run)
    except ValueError as error:
        raise ValueError(
            f"{error} The model itself is saved in {run / 'model'}; the same command pushes again."
        ) from None
    write_atomic(run / DONE, json.dumps({"repository": push.repository}))


def upload(api: HfApi, push: Push, run: Path) -> None:
    """Uploads model/ as the repository, and adapter/ into its folder adapter/."""
    if push.revision is not None:
        branch = push.revision
        asked(push, lambda: api.create_branch(push.repository, branch=branch, exist_ok=True))
    for name, inside in (("model", None), ("adapter", "adapter")):
        folder = run / name
        if folder.is_dir():
            message = f"{name} by overrefusal-po"
            asked(
                push,
                lambda folder=folder, inside=inside, message=message: api.upload_folder(  # type: ignore[misc]
                    repo_id=push.repository,
                    folder_path=folder,
                    path_in_repo=inside,
                    revision=push.revision,
                    commit_message=message,
                ),
            )


def asked(push: Push, question: Callable[[], T]) -> T:
    """What the hub answers; ValueError in a sentence. A chained error would show the request."""
    try:
        return question()
    except Exception as error:
        raise ValueError(
            f"trainer.push_to_hub: {push.repository} could not be written ({reason(error)})."
        ) from None


def reason(error: Exception) -> str:
    """What went wrong, without a word of the server, which may echo the request."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    words = {
        401: "the hub does not know this token: log in again",
        403: "this token may not write there: use one with write access, or another name",
        404: "there is no such repository or branch",
        409: "the repository was changed at the same time: run the command again",
        413: "the hub says that a file is too large",
    }
    if status is None:
        return f"{type(error).__name__}: is the hub reachable?"
    return f"status {status}: {words.get(status, 'the hub refuses')}"
