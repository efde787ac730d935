"""A training's run folder -> the part of its model card that says how it was trained.

    for part in training_parts(Path("runs/dpo-1a2b")):
        print(part)

A card is made to be published. So it holds numbers, flags, and texts of a few keys that can be
neither a path nor a key. Of a data file it has the name and the hash.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import yaml

from overrefusal_po.json_files import START_OVER
from overrefusal_po.recipe.methods import METHODS
from overrefusal_po.recipe.overrides import dotted
from overrefusal_po.records import read_objects, read_state
from overrefusal_po.report.hold_notes import BY_ITSELF, kept_by_itself
from overrefusal_po.report.texts import one_line
from overrefusal_po.run.keys import file_hash

PUBLIC_TEXTS = (
    "loss_type",
    "optim",
    "lr_scheduler_type",
    "f_divergence_type",
    "lora_target_modules",
    "dtype",
    "attn_implementation",
    "bnb_4bit_quant_type",
    "containment",
    "prefix_unit",
    "rows",
    "helpful",
    "kinds",
)
"""Keys whose texts come from a short list that everybody knows."""

PUBLIC_TEXT = re.compile(r"[A-Za-z][\w.+-]{0,40}")
LORA = {"lora_r": "rank", "lora_alpha": "alpha", "lora_dropout": "dropout"}
LIMITS = (
    "max_pairs",
    "harmful_share",
    "max_triples",
    "max_helpful",
    "max_prompts",
    "too_long",
    "containment",
)

Values = Mapping[str, object]


def training_parts(stage: Path) -> Iterator[str]:
    """The card's Markdown on a training, a part at a time; nothing if the folder holds none."""
    recipe = trained_recipe(stage)
    if not recipe:
        return
    yield "## Training"
    rows = [(head, text) for head, text in training_rows(recipe, stage) if text]
    yield "\n".join(["| | |", "|---|---|", *(f"| {head} | {text} |" for head, text in rows)])
    settings = public_settings(section(recipe, "trainer"))
    if settings:
        shown = {"method": public_method(recipe), "trainer": settings}
        yield f"```yaml\n{yaml.safe_dump(shown, sort_keys=False)}```"


def trained_recipe(stage: Path) -> dict[str, object]:
    """The stage's recipe, with the settings of the trial that a search kept."""
    recipe = stage_recipe(stage)
    settings = search_summary(stage).get("settings")
    for key, value in (settings if isinstance(settings, Mapping) else {}).items():
        name, _, inner = str(key).partition(".")
        recipe[name] = {**section(recipe, name), inner: value}
    return recipe


def search_summary(stage: Path) -> Values:
    """What training.json says of a search; empty without one."""
    file = stage / "training.json"
    if not file.is_file():
        return {}
    found = read_state(file, ["summary"])["summary"].get("search")
    return found if isinstance(found, Mapping) else {}


def training_rows(recipe: Values, stage: Path) -> Iterator[tuple[str, str]]:
    """(what, how) of a training."""
    yield "method", method_words(recipe)
    yield "losses", loss_words(section(recipe, "trainer"))
    method = METHODS.get(str(recipe.get("method", "")))
    if method is not None and method.soft_tokens:
        yield "trained weights", "the embedding rows of new tokens alone"
    else:
        yield "trained weights", weight_words(section(recipe, "model"))
        yield "trained on", side_words(section(recipe, "data"))
    yield "rows", row_words(stage)
    yield "rows of a harmful prompt", harmful_row_words(section(recipe, "data"))
    yield "steps", step_words(stage)
    yield "computed with", switch_words(recipe)
    yield "limits of the data", limit_words(section(recipe, "data"))
    yield "seed", str(recipe.get("seed", ""))
    yield "inputs", input_words(recipe, stage)


def method_words(recipe: Values) -> str:
    """`dpo: its title`."""
    name = str(recipe.get("method", ""))
    title = METHODS[name].title if name in METHODS else "a method of another package"
    return f"{one_line(name)}: {title}" if name else ""


def public_method(recipe: Values) -> str | None:
    """The method's name, if it is a plain name: it stands in code and in the card's tags."""
    name = recipe.get("method")
    return name if isinstance(name, str) and PUBLIC_TEXT.fullmatch(name) else None


def loss_words(trainer: Values) -> str:
    """`sigmoid × 1, sft × 0.1; beta 0.3`: the losses that a recipe names, each with its weight."""
    given = trainer.get("loss_type") or []
    names = given if isinstance(given, list) else [given]
    weights = trainer.get("loss_weights")
    known = weights if isinstance(weights, list) else [1] * len(names)
    words = [
        f"{one_line(str(name))} × {weight:g}"
        for name, weight in zip(names, known, strict=False)
        if isinstance(weight, int | float)
    ]
    return ", ".join(words) or "the method's own"


def weight_words(model: Values) -> str:
    """Which weights were trained: LoRA with its numbers, or all."""
    bits = next((f"weights in {b} bits" for b in (4, 8) if model.get(f"load_in_{b}bit")), "")
    if not model.get("use_peft"):
        return "all"
    numbers = [f"{word} {model[key]}" for key, word in LORA.items() if is_plain(model.get(key))]
    modules = public_value("lora_target_modules", model.get("lora_target_modules"))
    places = modules if isinstance(modules, list) else [modules] if modules else []
    on = ["on " + ", ".join(one_line(str(place)) for place in places)] if places else []
    return ", ".join(["LoRA", *numbers, *on, *([bits] if bits else [])])


def side_words(data: Values) -> str:
    """Which part of the responses was learned from."""
    opening = data.get("opening")
    return f"the first {opening} tokens of each side" if is_plain(opening) else "whole responses"


def row_words(stage: Path) -> str:
    """`120 rows: 90 overrefusal, 30 containment`, from the data that the run wrote."""
    file = stage / "data.jsonl"
    if not file.is_file():
        return ""
    kinds = Counter(row_kind(row) for _, row in read_objects(file))
    parts = ", ".join(f"{count} {one_line(kind)}" for kind, count in kinds.most_common())
    return f"{sum(kinds.values())}: {parts}"


def harmful_row_words(data: Values) -> str:
    """`prefix, rto`: the rows that DeRTa makes of each harmful prompt."""
    rows = public_value("rows", data.get("rows"))
    return ", ".join(map(str, rows)) if isinstance(rows, list) else ""


def row_kind(row: Values) -> str:
    """The rule of a pair, else the kind of the prompt."""
    prompt = row.get("prompt")
    inner = prompt if isinstance(prompt, Mapping) else {}
    return str(row.get("rule") or inner.get("kind") or row.get("kind") or "without a rule")


def step_words(stage: Path) -> str:
    """Steps done, the last loss, and the selected step."""
    file = stage / "training.json"
    if not file.is_file():
        return ""
    summary = read_state(file, ["summary"])["summary"]
    words = [f"{summary['steps']} done"]
    if isinstance(summary.get("loss"), int | float):
        words.append(f"loss {summary['loss']:.4g} at the end")
    if summary.get("selected_step") is not None:
        words.append(f"the weights of step {summary['selected_step']} were kept")
    if isinstance(hold := summary.get("hold"), Mapping):
        words.append(hold_words(hold))
    words += [f"{text} {one_line(noun)} left out" for noun, text in too_long(summary).items()]
    if alike := summary.get("equal_openings"):
        words.append(f"{one_line(str(alike))} pairs left out, whose sides begin with equal tokens")
    return ", ".join(words)


def hold_words(hold: Values) -> str:
    """How `hold` ended, from training.json."""
    if not hold["held"]:
        return "SAFETY IS NOT HELD (hold.json says why)"
    if why_not := kept_by_itself(hold):
        return f"safety kept on its sets, and NOT HELD: {BY_ITSELF} ({one_line(why_not)})"
    how = f"by a bias of {hold['bias']:+.2f} logits" if hold["bias"] else "without a bias"
    return f"safety held {how}"


def too_long(summary: Values) -> dict[str, str]:
    """{noun: `2 of 9 too long`} of a summary."""
    found = summary.get("too_long")
    return {n: f"{t} too long" for n, t in found.items()} if isinstance(found, Mapping) else {}


def switch_words(recipe: Values) -> str:
    """The switches of `speed:` and the form of attention."""
    speed = section(recipe, "speed")
    words = [f"{k.replace('_', ' ')} {'on' if v else 'off'}" for k, v in speed.items()]
    for key, word in (("attn_implementation", "attention"), ("dtype", "dtype")):
        value = public_value(key, section(recipe, "model").get(key))
        words.append(f"{word} {one_line(str(value or 'of the hardware'))}")
    return ", ".join(words)


def limit_words(data: Values) -> str:
    """What was left out of the data on purpose."""
    found = {key: public_value(key, data[key]) for key in LIMITS if data.get(key) is not None}
    return ", ".join(f"{one_line(key)} {value}" for key, value in found.items() if value)


def input_words(recipe: Values, stage: Path) -> str:
    """The name and the content hash of every input, and the hash of the rows that were trained
    on."""
    file = stage / "status.json"
    inputs = read_state(file).get("inputs", {}) if file.is_file() else {}
    values = dict(dotted(recipe))
    words = [
        f"{input_name(key, str(values.get(key) or key))}, content {one_line(str(digest))}"
        for key, digest in inputs.items()
    ]
    if (stage / "data.jsonl").is_file():
        words.append(f"the rows as trained, content {file_hash(stage / 'data.jsonl')}")
    return "; ".join(words)


def input_name(key: str, value: str) -> str:
    """The name of an input without its folders; of the start model only that it is one."""
    if key.startswith("model."):
        return "the start model"
    return one_line(Path(value).name or key)


# --- what may be published ------------------------------------------------------------------------


def section(recipe: Values, name: str) -> dict[str, object]:
    """A section of a recipe; empty if it has none."""
    found = recipe.get(name)
    return {str(key): value for key, value in found.items()} if isinstance(found, Mapping) else {}


def public_settings(settings: Values) -> dict[str, object]:
    """The settings that may be published."""
    shown = {key: public_value(key, value) for key, value in settings.items()}
    return {key: value for key, value in shown.items() if value is not None}


def public_value(key: str, value: object) -> object:
    """A value that may be published: a number, a flag, or a text of PUBLIC_TEXTS; else None."""
    if is_plain(value):
        return value
    if isinstance(value, list | tuple):
        parts = [public_value(key, part) for part in value]
        return None if None in parts else parts
    known = key in PUBLIC_TEXTS or key == "too_long"
    return value if known and isinstance(value, str) and PUBLIC_TEXT.fullmatch(value) else None


def is_plain(value: object) -> bool:
    """Whether a value is a number or a flag: a text could be a path or a token."""
    return isinstance(value, bool | int | float)


def stage_recipe(stage: Path) -> dict[str, object]:
    """The stage's resolved recipe; empty if it has none. ValueError if the file is damaged."""
    file = stage / "recipe.yaml"
    if not file.is_file():
        return {}
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError) as error:
        why = " ".join(str(error).split())[:200]
        raise ValueError(f"{file} is damaged or was edited ({why}). {START_OVER}") from None
    return found if isinstance(found, dict) else {}
