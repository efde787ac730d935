"""Every source that pages and recipes name for a training may be trained on: it has a train part."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from test_docs import PAGES, ROOT, blocks

from overrefusal_po.plugins import split_spec
from overrefusal_po.prompts import read_source
from overrefusal_po.recipe.load import load_recipe
from overrefusal_po.recipe.overrides import parse_overrides
from overrefusal_po.recipe.schema import PipelineRecipe
from overrefusal_po.records import Split
from overrefusal_po.stage_recipes import stage_bodies

RECIPES = sorted(
    path for path in (ROOT / "recipes").rglob("*.yaml") if "\nlaunch:" in path.read_text()
)
KEYS = ("benign", "harmful", "ordinary", "helpful_from")
"""The keys of `data` that name prompts to train on."""

OVERRIDE = re.compile(
    rf'(?:"(--[\w.]*\bdata\.(?:{"|".join(KEYS)})=[^"]*)"|'
    rf'(--[\w.]*\bdata\.(?:{"|".join(KEYS)})=[^\s"`]+))'
)


class Named(NamedTuple):
    """A source for a training, the split that it is read in, and where it is named."""

    where: str
    spec: Any
    split: Split | None


def specs_of(value: Any) -> Iterator[Any]:
    """The sources of a key: one, a list of them, or none."""
    yield from value if isinstance(value, list | tuple) else [] if value is None else [value]


def in_data(where: str, data: Any) -> Iterator[Named]:
    """The sources of a section `data` of a curation, a fit or a training."""
    split = data.get("split", "train")
    for key in KEYS:
        yield from (Named(f"{where}, data.{key}", spec, split) for spec in specs_of(data.get(key)))


def in_overrides(where: str, text: str) -> Iterator[Named]:
    """The sources that overrides in a text name."""
    for quoted, bare in OVERRIDE.findall(text):
        (_, value), *_ = parse_overrides([quoted or bare])
        yield from (Named(f"{where}, {quoted or bare}", spec, "train") for spec in specs_of(value))


def in_yaml(where: str, values: Any) -> Iterator[Named]:
    """The sources in every section `data` of a block of YAML."""
    for key, value in values.items() if isinstance(values, dict) else ():
        if key == "data" and isinstance(value, dict):
            yield from in_data(where, value)
        yield from in_yaml(where, value)


def in_recipe(path: Path) -> Iterator[Named]:
    """The sources of a shipped recipe's stages, and of the commands in its comments."""
    recipe = load_recipe(path)
    pipeline = isinstance(recipe.body, PipelineRecipe)
    for body in stage_bodies(recipe).values() if pipeline else [recipe.body]:
        yield from in_data(path.name, body.model_dump(mode="json").get("data") or {})
    yield from in_overrides(path.name, path.read_text())


def named_sources() -> dict[str, Named]:
    """Every source once, by what is asked of it."""
    found = [named for path in RECIPES for named in in_recipe(path)]
    for page in PAGES:
        found += in_overrides(page.name, page.read_text())
        found += [
            n for block in blocks(page, "yaml") for n in in_yaml(page.name, yaml.safe_load(block))
        ]
    return {f"{n.spec} {n.split}": n for n in reversed(found)}


SOURCES = named_sources()


def test_the_pages_and_the_recipes_name_sources() -> None:
    names = {split_spec(named.spec, "sources")[0] for named in SOURCES.values()}
    assert {"starter", "contrasts", "coconot", "orbench", "table", "beavertails", "file"} <= names
    places = {named.where.partition(",")[0] for named in SOURCES.values()}
    assert {"faq.md", "other_hands.yaml"} <= places


@pytest.mark.parametrize("named", SOURCES.values(), ids=SOURCES)
def test_a_source_that_is_named_for_a_training_has_a_train_part(named: Named) -> None:
    """It gives prompts, or would if the hub, or the user's file, were there."""
    try:
        assert read_source(named.spec, named.split), named.where
    except ValueError as error:
        lacking = ("could not be loaded from the hub", "no such file", "there is no file")
        assert any(words in str(error) for words in lacking), f"{named.where}: {error}"
