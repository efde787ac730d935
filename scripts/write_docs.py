"""Fills the generated parts of docs/*.md: the tree of modules, and the tables of recipe keys.

    python scripts/write_docs.py            # writes the pages that are stale
    python scripts/write_docs.py --check    # writes nothing; names stale pages, exit code 1

A generated part stands between `<!-- begin NAME ... -->` and `<!-- end NAME -->`. The text around
it is written by hand. Imports no torch.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import sys
import textwrap
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from overrefusal_po import plugins
from overrefusal_po.recipe.methods import METHODS
from overrefusal_po.recipe.schema import HARDWARE_KEYS, MANAGED_KEYS, TASKS
from overrefusal_po.recipe.sections import JUDGE_OR_LIST

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "overrefusal_po"
PART = re.compile(r"(<!-- begin (\w+)[^>]*-->\n)(.*?)(<!-- end \2 -->)", re.DOTALL)
SCALARS = {str: "text", int: "whole number", float: "number", bool: "true or false"}
NAME_OR_MAPPING = "a name, or a mapping with `name`"
OR_LIST = ", or a list of these (a panel)"
LIMITS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
DOCUMENTED_ELSEWHERE = {"model": "#model", "trainer": "#trainer"}
"""Keys whose sections are TRL's, and where the page explains them."""


# --- the tree -------------------------------------------------------------------------------------


def first_sentence(text: str) -> str:
    """The first sentence of a docstring or of a comment, on one line."""
    paragraph = " ".join(text.strip().split("\n\n")[0].split())
    # the point of an initial ("G. Miller") ends no sentence
    return re.split(r"(?<=[.?!])(?<!\b[A-Z]\.)\s", paragraph)[0].removesuffix(":")


def module_line(file: Path, indent: str) -> str:
    """One line of the tree for a Python file."""
    docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return f"{indent}{file.name:<{30 - len(indent)}} {first_sentence(docstring)}"


def modules_in(folder: Path) -> list[Path]:
    """The Python files of a folder by name, without its __init__."""
    return sorted(f for f in folder.glob("*.py") if f.name != "__init__.py")


def room_lines(room: Path) -> Iterator[str]:
    """A room and its modules; the room's own line is the sentence of its __init__."""
    init = ast.parse((room / "__init__.py").read_text(encoding="utf-8"))
    yield f"  {room.name + '/':<28} {first_sentence(ast.get_docstring(init) or '')}"
    for file in modules_in(room):
        yield module_line(file, "    ")


def recipe_lines() -> Iterator[str]:
    """The recipes, each with the first sentence of its first comment."""
    for file in sorted((ROOT / "recipes").rglob("*.yaml")):
        lines = file.read_text(encoding="utf-8").splitlines()
        comment = next(n for n in lines if not n.startswith("# yaml-language-server")).lstrip("# ")
        yield f"  {file.relative_to(ROOT / 'recipes')!s:<28} {first_sentence(comment)}"


def tree() -> str:
    """The whole house as a block of text, a line for each module, recipe and script."""
    rooms = sorted(f.parent for f in PACKAGE.glob("*/__init__.py"))
    lines = ["src/overrefusal_po/", *(module_line(f, "  ") for f in modules_in(PACKAGE))]
    for room in rooms:
        lines += room_lines(room)
    lines += ["recipes/", *recipe_lines()]
    for name in ("benchmarks", "scripts"):
        lines += [f"{name}/", *(module_line(f, "  ") for f in modules_in(ROOT / name))]
    return "```text\n" + "\n".join(line.rstrip() for line in lines) + "\n```\n"


# --- keys in words --------------------------------------------------------------------------------


def null_for_none(text: str) -> str:
    """The text with `null:` for `None:`, as YAML says it."""
    return re.sub(r"\bNone(?=:)", "null", text)


def in_one_cell(docstring: str) -> str:
    """A docstring on one line; a list in it keeps a line for each point."""
    points = re.split(r"\n\s*(?=- )", docstring)
    return null_for_none("<br>".join(" ".join(point.split()) for point in points))


def sentences(section: type[BaseModel]) -> dict[str, str]:
    """{field: the text under it in the source} of a section, its bases included."""
    found: dict[str, str] = {}
    for cls in reversed(section.__mro__):
        if not issubclass(cls, BaseModel) or cls is BaseModel:
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, text in zip(body.body, body.body[1:], strict=False):
            is_text = isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
            if isinstance(field, ast.AnnAssign) and is_text:
                found[ast.unparse(field.target)] = in_one_cell(str(text.value.value))
    return found


def limits(metadata: Sequence[Any]) -> str:
    """The limits of a value in words: `above 0, at most 1`, or `0 to 1`."""
    found = {
        key: f"{getattr(mark, key):.10g}"
        for mark in metadata
        for key in LIMITS
        if getattr(mark, key, None) is not None
    }
    if found.keys() == {"ge", "le"}:
        said = [f"{found['ge']} to {found['le']}"]
    else:
        said = [f"{LIMITS[key]} {bound}" for key, bound in found.items()]
    said += ["not empty" for mark in metadata if getattr(mark, "min_length", None)]
    return ", ".join(said)


def union_in_words(parts: Sequence[Any]) -> str:
    """The words of a union without its null."""
    if {get_origin(p) or p for p in parts} in ({str, dict}, {str, Mapping}):
        return NAME_OR_MAPPING
    return " or ".join(dict.fromkeys(in_words(part) for part in parts))


def in_words(annotation: Any) -> str:
    """A type in words. TypeError for a type that has none here yet."""
    annotation = getattr(annotation, "__value__", annotation)  # a `type X = ...` alias
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation in SCALARS:
        return SCALARS[annotation]
    if annotation is Any:
        return "any value"
    if origin is Annotated and JUDGE_OR_LIST in arguments[1:]:
        return in_words(arguments[0]) + OR_LIST
    if origin is Annotated:
        inner = limits([m for a in arguments[1:] for m in getattr(a, "metadata", [a])])
        return f"{in_words(arguments[0])} {inner}".strip()
    if origin is Literal:
        return " or ".join(f"`{json.dumps(a).strip(chr(34))}`" for a in arguments)
    if origin in (typing.Union, types.UnionType):
        parts = [a for a in arguments if a is not type(None)]
        null = ", or null" if len(parts) < len(arguments) else ""
        return union_in_words(parts) + null
    if origin in (tuple, list):
        return f"list; each: {in_words(arguments[0])}"
    if annotation in (dict, Mapping) or origin in (dict, Mapping):
        plain = not arguments or arguments[1] in (Any, object)
        return "mapping" if plain else f"mapping to {in_words(arguments[1])}"
    raise TypeError(f"{annotation!r} has no words; add them to scripts/write_docs.py.")


def section_in(annotation: Any) -> type[BaseModel] | None:
    """The section that a key holds, None for other keys."""
    options = [annotation, *get_args(annotation)]
    return next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)


def value_in_words(field: FieldInfo) -> str:
    """What a key may be, with its limits."""
    text = in_words(field.annotation) + OR_LIST * (JUDGE_OR_LIST in field.metadata)
    known = limits(field.metadata)
    if not known:
        return text
    head, null, rest = text.partition(", or null")
    return f"{head}, {known}{null}{rest}"


def default_in_words(field: FieldInfo) -> str:
    """A key's default as YAML would have it; `required` if there is none."""
    if field.is_required():
        return "required"
    default = field.get_default(call_default_factory=True)
    if isinstance(default, BaseModel):
        given = default.model_dump(mode="json", exclude_unset=True)
        return ", ".join(f"`{k}: {v}`" for k, v in given.items()) or "as there"
    default = list(default) if isinstance(default, tuple) else default
    text = json.dumps(default, ensure_ascii=False)
    return f"`{text[1:-1]}`" if isinstance(default, str) else f"`{text}`"


# --- tables of keys -------------------------------------------------------------------------------


def shown(text: str) -> str:
    """Text as Markdown shows it: `<name>` outside code is no tag."""
    return re.sub(r"(`[^`]*`)|<(?!br>)", lambda found: found[1] or "&lt;", text)


def cell(text: str) -> str:
    """Text that a cell of a table can hold."""
    return shown(text).replace("|", "\\|")


def slug(heading: str) -> str:
    """The anchor of a heading."""
    return re.sub(r"[^\w]+", "-", heading.lower()).strip("-")


def key_rows(section: type[BaseModel], links: Mapping[str, str]) -> Iterator[str]:
    """A row of the table for each key; `links` are the anchors of the keys that hold sections."""
    said = sentences(section)
    for name, field in section.model_fields.items():
        inner = section_in(field.annotation)
        null = ", or null" if type(None) in get_args(field.annotation) else ""
        value = f"[section]({links[name]}){null}" if name in links else value_in_words(field)
        assert inner is None or name in links, f"{section.__name__}.{name} has no table"
        cells = [f"`{field.alias or name}`", value, default_in_words(field), said.get(name, "")]
        yield "| " + " | ".join(cell(c) for c in cells) + " |"


def key_table(section: type[BaseModel], links: Mapping[str, str]) -> str:
    """The table of a section's keys."""
    head = "| key | value | default | meaning |\n|---|---|---|---|\n"
    return head + "\n".join(key_rows(section, links)) + "\n"


def about(section: type[BaseModel]) -> str:
    """The docstring of a section as one paragraph."""
    words = " ".join((section.__doc__ or "").split("\n\n")[0].split())
    return shown(null_for_none(words))


def data_headings() -> dict[type[BaseModel], str]:
    """{data section: its heading} of the methods, those that share one together."""
    found: dict[type[BaseModel], list[str]] = {}
    for name, method in METHODS.items():
        found.setdefault(method.data, []).append(name)
    return {section: f"data for {', '.join(names)}" for section, names in found.items()}


def headings() -> dict[type[BaseModel], str]:
    """{section: its heading} of every section below the tasks, in the order of the page."""
    found = data_headings()
    for task, body in TASKS.items():
        for key, inner in inner_sections(body):
            found.setdefault(inner, f"data for {task}" if key == "data" else key)
    return found


def inner_sections(section: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    """(key, section) of the sections in a section, at any depth."""
    for key, field in section.model_fields.items():
        inner = section_in(field.annotation)
        if inner is not None:
            yield key, inner
            yield from inner_sections(inner)


def anchors(section: type[BaseModel], known: Mapping[type[BaseModel], str]) -> dict[str, str]:
    """{key: anchor} of the keys of `section` that hold sections."""
    found = {}
    for key, field in section.model_fields.items():
        inner = section_in(field.annotation)
        if inner is not None:
            found[key] = "#" + slug(known[inner])
        elif key in DOCUMENTED_ELSEWHERE and get_origin(field.annotation) in (dict, Mapping):
            found[key] = DOCUMENTED_ELSEWHERE[key]
        elif key == "data":  # of a training: the method says which section it is
            found[key] = "#methods"
    return found


def recipe() -> str:
    """The tables of all tasks, then those of all sections."""
    known = headings()
    parts = []
    for task, body in TASKS.items():
        table = key_table(body, anchors(body, known))
        parts.append(f"## task: {task}\n\n{about(body)}\n\n{table}")
    parts.append("## Sections\n")
    for section, heading in known.items():
        table = key_table(section, anchors(section, known))
        parts.append(f"### {heading}\n\n{about(section)}\n\n{table}")
    return "\n" + "\n".join(parts) + "\n"


def methods() -> str:
    """The table of methods: what `trainer:` takes, and where `data:` is explained."""
    known = data_headings()
    lines = ["| method | what it is | `trainer:` keys of | `data:` |", "|---|---|---|---|"]
    for name, row in METHODS.items():
        data = f"[{known[row.data]}](#{slug(known[row.data])})"
        lines.append(f"| `{name}` | {row.title} | `{row.config}` | {data} |")
    return "\n".join(lines) + "\n"


def managed() -> str:
    """The table of trainer keys that a recipe may not set."""
    lines = ["| key | use instead |", "|---|---|"]
    lines += [f"| `trainer.{key}` | {place.rstrip(',')} |" for key, place in MANAGED_KEYS.items()]
    return "\n".join(lines) + "\n"


def hardware() -> str:
    """The list of keys that hardware decides if a recipe leaves them open."""
    return ", ".join(
        f"`{key}`" for key in ("model.dtype", *(f"trainer.{k}" for k in HARDWARE_KEYS))
    )


def plug_tables(settings: type[BaseModel], above: str) -> str:
    """The table of a plug's keys, then one for each key that holds settings; `above` stands before
    their headings."""
    fields = {key: section_in(field.annotation) for key, field in settings.model_fields.items()}
    inner = {key: section for key, section in fields.items() if section is not None}
    text = key_table(settings, {key: "#" + slug(above + key) for key in inner})
    for key, section in inner.items():
        text += f"\n#### {above}{key}\n\n{about(section)}\n\n{key_table(section, {})}"
    return text


def plugs() -> str:
    """The settings of every source, attack, engine, judge and remedy."""
    parts = []
    for room in plugins.ROOMS:
        parts.append(f"## {room}\n")
        for name in plugins.names(room):
            settings = plugins.plug(room, name).Settings
            head = f"### {plugins.KINDS[room]} {name}"
            text = f"{head}\n\n{shown(plugins.summary(room, name))}\n"
            if settings.model_fields:
                text += f"\n{about(settings)}\n\n{plug_tables(settings, f'{name} ')}"
            parts.append(text)
    return "\n" + "\n".join(parts) + "\n"


# --- pages ----------------------------------------------------------------------------------------

PARTS: dict[str, Callable[[], str]] = {
    "tree": tree,
    "recipe": recipe,
    "methods": methods,
    "managed": managed,
    "hardware": lambda: hardware() + "\n",
    "plugs": plugs,
}
"""What fills the part of each name."""


def filled(text: str) -> str:
    """A page with all its generated parts made anew. ValueError for a part of another name."""

    def part(found: re.Match[str]) -> str:
        if found[2] not in PARTS:
            raise ValueError(f"There is no part {found[2]!r}; known are {', '.join(PARTS)}.")
        return found[1] + PARTS[found[2]]() + found[4]

    return PART.sub(part, text)


def stale_pages(folder: Path) -> dict[Path, str]:
    """{page: its text made anew} of the pages in `folder` that are not what they should be."""
    pages = {page: filled(page.read_text(encoding="utf-8")) for page in folder.glob("*.md")}
    return {page: new for page, new in pages.items() if new != page.read_text(encoding="utf-8")}


def main(arguments: Sequence[str]) -> int:
    """Writes or checks the pages; returns the exit code. 2 if the package that Python imports is
    not the one beside this script: its keys may be others."""
    imported = Path(plugins.__file__).resolve().parent
    if imported != PACKAGE:
        print(f"{imported} is imported, not {PACKAGE}. Set PYTHONPATH={PACKAGE.parent}.")
        return 2
    stale = stale_pages(ROOT / "docs")
    for page, text in stale.items():
        print(f"{page.relative_to(ROOT)}: stale")
        if "--check" not in arguments:
            page.write_text(text, encoding="utf-8")
    return 1 if stale and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
