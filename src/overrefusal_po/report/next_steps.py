"""What to do after a run: commands that can be pasted into a shell.

next_steps({"folder": "runs/a", "model": "runs/a/model"}, "train", Path("recipes"))
# [("measure it", "overrefusal-po recipes/evaluate.yaml --model..."), ("serve it", "vllm ...")]
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path

from overrefusal_po.recipe.overrides import dotted, parse_overrides
from overrefusal_po.report.hold_notes import unheld_words
from overrefusal_po.run.folder import written_recipe

NextStep = tuple[str, str]
"""(what it does, the command)."""

MODEL_KEY = "model.model_name_or_path"


def next_steps(found: Mapping[str, object], task: str, recipes: Path) -> list[NextStep]:
    """The commands after a run of this task.

    Args:
        found: the run's summary: its `folder`, and the `model` or the files that it made.
        task: train, curate, fit, evaluate or pipeline.
        recipes: the folder of the shipped recipes.
    """
    folder = Path(str(found["folder"]))
    if task == "train":
        steps = after_training(str(found["model"]), recipes)
        return [next(steps)] if unheld_words(folder) else [*steps]
    if task == "curate":
        return [*after_curation(folder, recipes)]
    if task == "fit":
        return [*after_fit(found, recipes)]
    if task == "evaluate":
        # a card is of weights alone, so not of a model with a remedy
        measured = "" if found.get("remedy") else str(found.get("model", ""))
        return [*after_evaluation(folder, Path(measured))]
    return [*after_pipeline(folder)]


def after_training(model: str, recipes: Path) -> Iterator[NextStep]:
    """Measure, serve and convert a model's folder."""
    measure = override(MODEL_KEY, model)
    yield "measure it", command("overrefusal-po", shipped(recipes, "evaluate"), measure)
    yield from uses_of(model)


def shipped(recipes: Path, name: str) -> Path:
    """The file of a shipped recipe."""
    return recipes / f"{name}.yaml"


def uses_of(model: str) -> Iterator[NextStep]:
    """Serve and convert a model's folder."""
    yield "serve it", command("vllm", "serve", Path(model))
    converter = ("python", "llama.cpp/convert_hf_to_gguf.py", Path(model))
    yield "make a GGUF file", command(*converter, "--outfile", Path(f"{model}.gguf"))


def after_fit(found: Mapping[str, object], recipes: Path) -> Iterator[NextStep]:
    """Measure what a fit kept; serve and convert it if it is plain weights. Nothing if it kept
    none."""
    if found.get("model"):
        yield from after_training(str(found["model"]), recipes)
    elif found.get("folder_remedy"):
        keys = (MODEL_KEY, str(found["base"])), ("model.remedy", str(found["folder_remedy"]))
        words = [override(key, value) for key, value in keys]
        yield "measure it", command("overrefusal-po", shipped(recipes, "evaluate"), *words)


CURATED = (
    ("pairs.jsonl", "dpo", "pairs", ("--data.containment=none",)),
    ("sft.jsonl", "sft", "prompts", ()),
)
"""What a curation makes -> the recipe that trains on it, its key for the data, other overrides."""


def after_curation(folder: Path, recipes: Path) -> Iterator[NextStep]:
    """Check the pairs and train on them; an SFT set is for SFT."""
    for file, method, key, more in CURATED:
        path = folder / file
        if path.is_file():
            yield "check them", command("overrefusal-po", "check", path)
            if shipped(recipes, method).is_file():
                data = [override(f"data.{key}", str(path)), *more, *curated_with(folder)]
                yield (
                    "train on them",
                    command("overrefusal-po", shipped(recipes, method), *data),
                )


STUDENT_KEYS = (
    *(MODEL_KEY, "model.model_revision", "model.trust_remote_code"),
    *("chat.system_prompt", "chat.template", "chat.chat_template_kwargs"),
)
"""What a training on pairs takes over from the recipe that they were curated with: the pairs are
the student's own responses, in its own chat template."""


def curated_with(folder: Path) -> Iterator[str]:
    """Overrides: the student of a curation, and how it was asked."""
    values = written_recipe(folder)
    for key, value in dotted({name: values.get(name) or {} for name in ("model", "chat")}):
        if key.startswith(STUDENT_KEYS) and value not in (None, {}):
            plain = f"--{key}={json.dumps(value)}"
            yield override(key, value) if isinstance(value, str) else plain


def after_evaluation(folder: Path, model: Path) -> Iterator[NextStep]:
    """The page, and a comparison; of a model that was trained here, the card with these results
    too."""
    yield "make its page", command("overrefusal-po", "report", folder)
    yield "compare it", command("overrefusal-po", "compare", "RUN_BEFORE", folder)
    made_here = any((model.parent / name).exists() for name in ("training.json", "remedy"))
    if model.name == "model" and made_here:
        yield "write its model card", command("overrefusal-po", "card", model.parent, folder)


def after_pipeline(folder: Path) -> Iterator[NextStep]:
    """Read the page; the card and the uses of the model that was trained last. One that lost its
    safety is for no use."""
    models = trained_models(folder)
    if (folder / "summary.json").is_file() and models:
        yield "write its model card", command("overrefusal-po", "card", folder)
    if models and not unheld_last(folder):
        yield from uses_of(str(models[-1]))


def unheld_last(folder: Path) -> str:
    """What the last training of a pipeline's folder lost with `hold:`; "" if it held."""
    models = trained_models(folder)
    return unheld_words(models[-1].parent) if models else ""


def trained_models(folder: Path) -> list[Path]:
    """The models of a pipeline's folder in the order of its stages. File times do not tell: a clock
    may have been set back."""
    stages = list(written_recipe(folder))
    models = sorted(folder.glob("*/model"))
    known = [path for path in models if path.parent.name in stages]
    return [path for path in models if path not in known] + sorted(
        known, key=lambda path: stages.index(path.parent.name)
    )


def command(*words: str | Path) -> str:
    """Words as a shell needs them. A path that begins with `-` would be an option."""
    texts = [
        f"./{word}" if isinstance(word, Path) and str(word).startswith("-") else str(word)
        for word in words
    ]
    return shlex.join(texts)


def override(key: str, value: str) -> str:
    """`--key=value`, in quotes of YAML if plain text would be read as something else."""
    plain = f"--{key}={value}"
    try:
        if parse_overrides([plain]) == [(key, value)]:
            return plain
    except ValueError:
        pass
    return f"--{key}={json.dumps(value, ensure_ascii=False)}"
