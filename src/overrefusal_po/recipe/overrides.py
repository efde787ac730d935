"""Command-line overrides, in all the forms that launchers and sweeps emit.

    parse_overrides(["--trainer.beta=0.2", "seed=3"])     # [("trainer.beta", 0.2), ("seed", 3)]

They come as `--a.b=v`, `--a.b v`, bare `--flag`, `a.b=v` or `+a.b=v`; `None` means null.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from overrefusal_po.recipe.panels import panel_spec

# Any: what YAML can hold; the sections and TRL's tables check it
Values = dict[str, Any]
"""A recipe or a part of it as plain data, unchecked."""

KEY = re.compile(r"[A-Za-z_][\w-]*(\.[\w/-]+)*")
"""A dotted key. A slash stands in the ids of findings (`data.waive.contamination/xstest`)."""

NULL = re.compile(r"\s*(?:null|~)(?:\s|\Z)", re.IGNORECASE)

NEXT_OVERRIDE = re.compile(r"\+?[A-Za-z_][\w./-]*=")
"""How an override without `--` begins."""


def parse_overrides(tokens: Sequence[str]) -> list[tuple[str, object]]:
    """[(dotted key, value)] of command-line overrides in all their forms."""
    found = []
    rest = list(tokens)
    while rest:
        token = rest.pop(0)
        name, equals, text = token.lstrip("-+").partition("=")
        if not KEY.fullmatch(name):
            raise ValueError(
                f"{token!r} is not an override. Write --section.key=value, for example "
                "--trainer.seed=1."
            )
        if not equals:
            if not token.startswith("--"):
                raise ValueError(f"{token!r} has no value. Write {name}=value.")
            text = rest.pop(0) if rest and is_value(rest[0]) else "true"
        found.append((name, parse_value(name, text)))
    return found


def is_value(token: str) -> bool:
    """Whether a token is the value of the flag before it, and no override itself."""
    return not token.startswith("--") and not NEXT_OVERRIDE.match(token)


def parse_value(name: str, text: str) -> object:
    """An override's text as YAML would read it (`5e-6` is a number, `None` is null)."""
    import yaml
    from omegaconf import OmegaConf

    if text.strip() in ("None", "null", "~", ""):
        return None
    if text.strip() in ("True", "False"):
        return text.strip() == "True"
    try:
        if holds_marks(text):
            if text.strip()[0] in "[{":
                raise ValueError(
                    f"--{name} holds a sign of YAML (&, * or !): {text}. Put the texts into "
                    "quotation marks: ['a', '&b']."
                )
            return text
        loaded = OmegaConf.to_container(OmegaConf.create(f"value: {text}"), resolve=False)
    except yaml.YAMLError:
        return text
    except RecursionError:
        raise ValueError(f"--{name} is nested too deep. Take levels out.") from None
    assert isinstance(loaded, dict)
    value = loaded["value"]
    if len(loaded) > 1 or (value is None and not NULL.match(text)):
        return text  # a comment or a second line, for YAML
    if isinstance(value, dict):
        keys = " ".join(f"--{key}={inner}" for key, inner in dotted(value, name))
        raise ValueError(
            f"--{name} got a whole mapping ({text}). Override its keys one by one: {keys}"
        )
    # text without quotes is taken unchanged: YAML would cut it at " #"
    return text if isinstance(value, str) and text.strip()[0] not in "'\"" else value


def holds_marks(text: str) -> bool:
    """Whether YAML would take a part of a text as an anchor, an alias or a tag, and lose it."""
    import yaml

    marks = (yaml.AnchorToken, yaml.AliasToken, yaml.TagToken)
    return any(isinstance(token, marks) for token in yaml.scan(f"value: {text}"))


def dotted(values: Mapping[str, object], above: str = "") -> list[tuple[str, object]]:
    """[("a.b", value)] of all leaves; an empty mapping is a leaf."""
    found: list[tuple[str, object]] = []
    for key, value in values.items():
        name = f"{above}.{key}" if above else str(key)
        found += dotted(value, name) if isinstance(value, Mapping) and value else [(name, value)]
    return found


def nested_texts(value: object, key: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, text) of all texts in plain data, also of those in lists ("data.sets.0")."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, Mapping | list):
        for name, inner in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from nested_texts(inner, f"{key}.{name}" if key else str(name))


def set_dotted(values: Values, key: str, value: object) -> None:
    """Sets `values["a"]["b"]` for the key "a.b", making mappings on the way.

    A list under `judge` becomes the panel that it is short for, so that the panel's other keys can
    be set.
    """
    *above, last = key.split(".")
    for part in above:
        inner = values.get(part)
        if part == "judge" and isinstance(inner, list):
            inner = values[part] = panel_spec(inner)
        if not isinstance(inner, dict):
            inner = values[part] = {}
        values = inner
    values[last] = value


def merged_values(below: Mapping[str, object], above: Mapping[str, object]) -> Values:
    """`below` with the keys of `above` over it, mapping by mapping. An empty mapping clears."""
    found = dict(below)
    for key, value in above.items():
        inner = found.get(key)
        if isinstance(inner, Mapping) and isinstance(value, Mapping) and value:
            found[key] = merged_values(inner, value)
        else:
            found[key] = value
    return found
