"""A `model:` section with `remedy` -> what is wrong with it, before any weight is loaded.

check_remedy({"model_name_or_path": "my/model", "remedy": "run/remedy"}, "transformers")
remedy_name(section)        # "steering-1a2b3c4d"; None without a remedy
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

from overrefusal_po.engines._remedied import CONTINUOUS
from overrefusal_po.engines.transformers import Settings
from overrefusal_po.model import generation
from overrefusal_po.model import load as models
from overrefusal_po.model.remedied import check_generation
from overrefusal_po.model.remedy import Form, load_remedy
from overrefusal_po.model.remedy_facts import remedy_head
from overrefusal_po.plugins import find_plug, split_spec
from overrefusal_po.recipe.sections import Engine as EngineSpec
from overrefusal_po.run.complete import in_process

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def put_on(section: Mapping[str, object]) -> Path | None:
    """The folder of the remedy that a `model:` section puts on its model; None without one."""
    given = section.get("remedy")
    return None if given is None else Path(str(given))


def remedy_name(section: Mapping[str, object]) -> str | None:
    """The id of the remedy of a `model:` section; None without one."""
    folder = put_on(section)
    if folder is None:
        return None
    known = remedy_head(folder)
    return str(known.get("id", known["name"]))


def remedy_form(section: Mapping[str, object]) -> Form | None:
    """The form of the remedy of a `model:` section; None without one, or if an earlier stage will
    make it (`@...`)."""
    folder = put_on(section)
    if folder is None or str(folder).startswith("@"):
        return None
    return cast("Form | None", remedy_head(folder).get("form"))


def check_remedy(section: Mapping[str, object], engine: EngineSpec) -> None:
    """Raises ValueError if a remedy cannot be put on its model, or if the engine cannot serve it.

    Reads the remedy and the model's config. What an earlier stage makes (`@...`) is not there yet.
    """
    folder = put_on(section)
    if folder is None:
        return
    if not in_process(engine):
        raise ValueError(elsewhere(folder, split_spec(engine, "engines")[0]))
    settings = find_plug("engines", engine).settings
    assert isinstance(settings, Settings), "it is the engine in process"
    if settings.continuous_batching:
        raise ValueError(CONTINUOUS)
    made_here = not str(section["model_name_or_path"]).startswith("@")
    if isinstance(settings.generation_config, dict):
        check_generation(settings.generation_config)
    elif made_here:
        check_generation(generation.own_settings(section))
    if not str(folder).startswith("@"):
        load_remedy(folder, config_of(section) if made_here else None)


def config_of(section: Mapping[str, object]) -> PretrainedConfig:
    """The config of a `model:` section's model."""
    name, revision = str(section["model_name_or_path"]), str(section.get("model_revision", "main"))
    trust = bool(section.get("trust_remote_code", False))
    models.check_available(name, revision=revision, trust_remote_code=trust)
    return models.load_config(name, revision=revision, trust_remote_code=trust)


def elsewhere(folder: Path, engine: str) -> str:
    """Why a remedy cannot be served by an engine outside of this process, and what to do."""
    fault = (
        f"model.remedy ({folder}) works where this program runs the model, and the engine is "
        f"{engine}. "
    )
    model = folder.parent / "model"
    if not str(folder).startswith("@") and remedy_head(folder).get("form") == "weights":
        return (
            f"{fault}This remedy is also plain weights: serve {model}, and take model.remedy out."
        )
    return (
        f"{fault}Take engine: transformers. Only a remedy that becomes weights (its form is "
        "`weights`) can be served elsewhere, as the folder model/ beside it."
    )
