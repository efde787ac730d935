"""A recipe's file and its bases -> plain data, and where each key came from. Imports no torch.

    given = read_recipe(Path("recipes/mistral-7b/dpo.yaml"))
    given.values["trainer"], given.origin["trainer.beta"]   # {...}, "base (../base/qlora_dpo.yaml)"

`base: other.yaml` takes the keys of another file first. Its path is relative to the file that names
it, and that file may have a base too.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from overrefusal_po.json_files import is_file, is_too_long
from overrefusal_po.recipe.model_names import with_model_sections
from overrefusal_po.recipe.overrides import Values, dotted, merged_values
from overrefusal_po.recipe.reading import FILE_ENDINGS


class Given(NamedTuple):
    """What a recipe's files say, unchecked.

    Attributes:
        values: the keys, those of the bases under the recipe's own.
        origin: {dotted key: `file` or `base (FILE)`}.
        chain: the files, from the recipe to its last base.
    """

    values: Values
    origin: dict[str, str]
    chain: tuple[Path, ...]


def read_recipe(file: Path) -> Given:
    """A recipe's values with those of its bases. ValueError for a base that is missing or that
    leads back."""
    files = base_chain(file)
    values: Values = {}
    origin: dict[str, str] = {}
    for place, own in reversed(files.items()):
        path = os.path.relpath(place, file.parent)
        values = merged_values(
            values, own if place == file else moved(own, place.parent, file.parent)
        )
        said = "file" if place == file else f"base ({path})"
        origin |= {key: said for key, _ in dotted(own)}
    return Given(values, origin, tuple(files))


def base_chain(file: Path) -> dict[Path, Values]:
    """{file: its own values, without `base`}, from the recipe to its last base."""
    files: dict[Path, Values] = {}
    seen = set()
    while True:
        chain = [*files, file]
        if file.resolve() in seen:
            raise ValueError(f"{in_words(chain)}: base leads back. Take one `base:` out.")
        if files and not is_file(file):
            raise ValueError(
                f"{in_words(chain)}: there is no such base. Write its path relative to "
                f"{chain[-2].name}."
            )
        seen.add(file.resolve())
        files[file] = read_yaml(file)
        if "base" not in files[file]:
            return files
        base = files[file].pop("base")
        if not isinstance(base, str) or not base:
            raise ValueError(f"{in_words(chain)}: base is {base!r}; allowed is one path.")
        file = file.parent / base


def in_words(chain: Sequence[Path]) -> str:
    """The files of a chain, the bases relative to the recipe: `recipes/dpo.yaml -> base.yaml`."""
    recipe, *bases = chain
    return " -> ".join([str(recipe), *(os.path.relpath(base, recipe.parent) for base in bases)])


def moved(values: Values, old: Path, new: Path) -> Values:
    """The values of a base with the files of its stages named relative to the recipe's folder."""
    stages = values.get("stages")
    if not isinstance(stages, Mapping) or old == new:
        return values
    found = {}
    for name, body in stages.items():
        named = isinstance(body, Mapping) and isinstance(body.get("recipe"), str)
        place = os.path.relpath(old / body["recipe"], new) if named else None
        found[name] = {**body, "recipe": place} if named else body
    return {**values, "stages": found}


PACKED = (".gz", ".zip", ".zst", ".xz", ".bz2", ".xlsx", ".xls", ".ods", ".pkl", ".arrow")
"""Endings of files of rows that hold no text, and that nothing here reads."""


def read_yaml(file: Path) -> Values:
    """One recipe file as plain data, without the `launch` line that makes it a script."""
    if not is_too_long(file) and file.is_dir():
        raise ValueError(
            f"{file} is a folder. Give the path of a recipe (.yaml; `overrefusal-po init` "
            f"writes the shipped ones into the folder you are in), or for `check` of a file of "
            f"rows ({', '.join(FILE_ENDINGS)}). A data set that `save_to_disk` wrote is "
            'exported first: to_json("rows.jsonl").'
        )
    if is_file(file) and file.suffix.lower() in PACKED:
        raise ValueError(
            f"{file} is neither a recipe (.yaml) nor a file of rows ({', '.join(FILE_ENDINGS)}). "
            "Unpack it, or save it in one of these forms."
        )
    if not is_file(file):
        raise ValueError(
            f"{file}: there is no such recipe. Give the path of a .yaml file, or run: "
            "overrefusal-po init"
        )
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        loaded = OmegaConf.load(file)
        values = OmegaConf.to_container(loaded, resolve=False)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{file} is not text in UTF-8 ({error.reason} at byte {error.start}). Save it as UTF-8."
        ) from None
    except yaml.YAMLError as error:
        raise ValueError(f"{file} is not YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise ValueError(f"{file} is nested too deep for a recipe. Take levels out.") from None
    except OmegaConfBaseException as error:
        raise ValueError(f"{file}: {' '.join(str(error).split())}") from None
    except ValueError as error:  # of integers with thousands of digits, and of dates
        raise ValueError(f"{file} holds a value that cannot be read: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{file}: a recipe is a mapping of keys; got {type(values).__name__}.")
    values.pop("launch", None)
    if {"program", "parameters"} <= values.keys():
        raise ValueError(f"{file} is no recipe but a sweep of wandb. Give it: wandb sweep {file}")
    check_plain(values, str(file))
    named = with_model_sections({str(key): value for key, value in values.items()})
    return with_template_place(named, file.parent)


def with_template_place(values: Values, folder: Path) -> Values:
    """The values with `chat.template`, of the recipe and of its stages, found from `folder`."""
    found = dict(values)
    chat, stages = values.get("chat"), values.get("stages")
    if isinstance(chat, Mapping) and isinstance(chat.get("template"), str):
        found["chat"] = {**chat, "template": str(folder / chat["template"])}
    if isinstance(stages, Mapping):
        found["stages"] = {
            name: with_template_place(body, folder) if isinstance(body, dict) else body
            for name, body in stages.items()
        }
    return found


def check_plain(value: object, place: str) -> None:
    """Raises ValueError for a `${...}` anywhere in a recipe's values.

    OmegaConf would fill it in, also from the environment: a foreign recipe could send your keys to
    a server.
    """
    if isinstance(value, Mapping):
        for key, inner in value.items():
            check_plain(key, place)
            check_plain(inner, f"{place}: {key}")
    elif isinstance(value, list):
        for inner in value:
            check_plain(inner, place)
    elif isinstance(value, str) and "${" in value:
        raise ValueError(
            f"{place} holds a ${{...}}, and recipes fill in none. Write the value, or give it on "
            'the command line, where your shell fills it in: --name="$NAME".'
        )
