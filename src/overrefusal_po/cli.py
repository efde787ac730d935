"""argv -> recipe -> stage: the command `overrefusal-po`, and `launch()` for recipes that are run as
scripts.

    overrefusal-po recipes/dpo.yaml --trainer.beta=0.2
    overrefusal-po check recipes/dpo.yaml

Exit codes: 0 done, 2 recipe or data error, 3 an evaluation's gate failed, 1 anything else, 130
interrupted (the same command goes on).
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape
from rich.table import Table

from overrefusal_po import plugins
from overrefusal_po.recipe.load import Recipe, describe, load_recipe
from overrefusal_po.recipe.overrides import parse_overrides
from overrefusal_po.recipe.schema import CurateRecipe, PipelineRecipe
from overrefusal_po.records import write_atomic
from overrefusal_po.run.interrupts import terminable

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Train over-refusal away and measure that harm is still refused.\n\n"
    "[bold]overrefusal-po RECIPE [--section.key=value ...][/bold] runs a recipe (the same as `run "
    "RECIPE`).",
)
SHOWN_COUNTS = (
    "overrefusal",
    "containment",
    "benign",
    "general",
    "harmful",
    "hygiene",
    "lint",
    "too_long",
)
"""What a curation counted, of the mappings in a stage's summary."""

ANY_ARGUMENTS = {"allow_extra_args": True, "ignore_unknown_options": True}
RECIPE = Annotated[
    Path,
    typer.Argument(help="A recipe (.yaml); overrides follow it: --trainer.beta=0.2"),
]
logger = logging.getLogger("overrefusal_po")


@app.command(context_settings=ANY_ARGUMENTS)
def run(context: typer.Context, recipe: RECIPE) -> None:
    """Run a recipe: train, curate, evaluate or a pipeline of these."""
    run_recipe(load_recipe(recipe, context.args))


@app.command(context_settings=ANY_ARGUMENTS)
def check(
    context: typer.Context,
    recipe: RECIPE,
    data: Annotated[
        bool, typer.Option("--data", help="Also read data, model config, template and tokenizer.")
    ] = False,
    everything: Annotated[bool, typer.Option("--all", help="Show TRL's defaults too.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="For a .jsonl file: one JSON object a finding.")
    ] = False,
) -> None:
    """Say whether a recipe is right, and show it resolved with where each value came from; or lint
    a .jsonl file of pairs or of prompts: what is wrong with which row, and which prompts are a
    benchmark's."""
    if recipe.suffix == ".jsonl":
        check_rows(recipe, as_json)
        return
    loaded = load_recipe(recipe, context.args)
    bodies = {"": loaded.body}
    if isinstance(loaded.body, PipelineRecipe):
        from overrefusal_po.pipeline import stage_bodies

        bodies = {f"stages.{name}.": body for name, body in stage_bodies(loaded).items()}
    for above, body in bodies.items():
        plugins.check_plugs(body)
        show(Recipe(loaded.name, body, origins(loaded, above)), above, everything)
    if data:
        for above, body in bodies.items():
            print(f"{above}data: {check_data(body)}")
        check_apart(bodies)
    print(f"{recipe} is right.")


def check_rows(path: Path, as_json: bool) -> None:
    """Prints the findings about a file of pairs or prompts; exit code 2 where one stops."""
    from overrefusal_po.checks import check_file

    found, stops = check_file(path)
    for row in found:
        print(
            json.dumps(row, ensure_ascii=False)
            if as_json
            else "  ".join(str(value) for value in row.values())
        )
    if not as_json:
        print(f"{path}: {len(found)} findings" + (", and some stop a training." if stops else "."))
    if stops:
        sys.exit(2)


@app.command(context_settings=ANY_ARGUMENTS)
def judge(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="A judge, for example: refusal")],
    file: Annotated[Path, typer.Argument(help="JSON Lines with id, prompt and response")],
) -> None:
    """Print one verdict a line for the rows of a file. The judge's settings follow as
    --model=my-judge."""
    from overrefusal_po.records import Completion, Prompt, Sampling, read_objects

    scorer = plugins.make_judge(judge_spec(name, context.args))
    prompts, completions = [], []
    for number, row in read_objects(file):
        missing = [key for key in ("prompt", "response") if not isinstance(row.get(key), str)]
        if missing:
            raise ValueError(
                f"{file}, line {number}: the text {missing[0]!r} is missing. Rows are {{id, "
                f"prompt, response}}."
            )
        key = str(row.get("id", number))
        prompts.append(
            Prompt.of(row["prompt"], kind="general").model_copy(update={"id": f"{number}"})
        )
        completions.append(
            Completion(
                id=key,
                prompt_id=f"{number}",
                text=row["response"],
                model="file",
                engine="file",
                sampling=Sampling(),
            )
        )
    for verdict in scorer.score(prompts, completions):
        row = {
            "id": verdict.completion_id,
            "refusal": verdict.refusal,
            "refusal_start": verdict.refusal_start,
        }
        scores = {
            "unsafe_probability": verdict.unsafe_probability,
            "reward": verdict.reward,
            "unscored": verdict.unscored,
        }
        row |= {
            "degenerate": verdict.degenerate,
            **{key: value for key, value in scores.items() if value is not None},
        }
        print(json.dumps(row, ensure_ascii=False))


@app.command(context_settings=ANY_ARGUMENTS)
def certify(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="A judge, for example: refusal", metavar="JUDGE")],
    labels: Annotated[
        Path, typer.Option(help="JSON Lines with prompt, response, human_label, model and label")
    ],
    key: Annotated[
        Path | None, typer.Option(help="The key of a blinded sample; default: FILE.key.jsonl")
    ] = None,
    out: Annotated[Path, typer.Option(help="Where the certificate goes")] = Path(
        "certificate.json"
    ),
) -> None:
    """Compare a judge with human labels: agreement, kappa, precision, recall and bias with
    intervals."""
    from overrefusal_po.evaluate.certificates import certify as make
    from overrefusal_po.evaluate.certificates import read_labels
    from overrefusal_po.evaluate.certificates import table as rows_of

    found = make(
        plugins.make_judge(judge_spec(name, context.args)), read_labels(labels, key), labels=labels
    )
    head, *rows = rows_of(found)
    table = Table(*head, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*[escape(cell) for cell in row])
    Console(width=200).print(table)
    write_atomic(out, found.model_dump_json(indent=1) + "\n")
    print(f"certificate: {out} ({found.judge} {found.version})")


def judge_spec(name: str, overrides: Sequence[str]) -> dict[str, Any]:
    """A judge as a recipe would name it, from its name and `--setting=value`."""
    return {"name": name, **dict(parse_overrides(overrides))}


@app.command()
def merge(
    folder: Annotated[
        Path, typer.Argument(help="The run folder that holds shard-1-of-N ... shard-N-of-N")
    ],
) -> None:
    """Put the completions of all shards together; the same recipe without --shard then goes on from
    them."""
    from overrefusal_po.run.shards import check_done, merge_shards

    count = check_done(folder)
    # a source of rejects that no other shard needed is not there in all; the run itself asks for
    # what it needs of it
    for name, rows in merge_shards(folder, incomplete=True).items():
        print(f"{folder / name}: {rows} completions of {count} shards, each once")
    print("The same recipe without --shard goes on from here.")


@app.command()
def report(
    folders: Annotated[
        list[Path], typer.Argument(help="The run folder of a pipeline or of an evaluation")
    ],
) -> None:
    """Write report.html and pictures from a run folder. Of further folders, the same with other
    seeds, it shows the mean and the range."""
    from overrefusal_po.report.page import write_report

    print(write_report(*folders))


@app.command()
def card(
    folder: Annotated[Path, typer.Argument(help="A pipeline's run folder")],
    name: Annotated[
        str | None,
        typer.Option("--run", help="Name of the run; default: the last one trained here"),
    ] = None,
) -> None:
    """Write the model card (README.md) beside a trained model, with its results in the metadata."""
    from overrefusal_po.report.card import write_card

    print(write_card(folder, run=name))


@app.command(name="list")
def list_() -> None:
    """Show methods, sources, engines and judges with a line each."""
    from overrefusal_po.recipe.methods import all_methods

    table = Table("kind", "name", "what it does", box=None, pad_edge=False)
    for name, method in all_methods().items():
        table.add_row("method", name, method.title)
    for room in plugins.ROOMS:
        for name in plugins.names(room):
            table.add_row(room.removesuffix("s"), name, plugins.summary(room, name))
        if room == "sources":
            for name, line in plugins.plain_sets().items():
                table.add_row("plain set", name, line)
    Console().print(table)


@app.command()
def init(folder: Annotated[Path, typer.Argument(help="Where to put the recipes")]) -> None:
    """Copy the shipped recipes into a folder."""
    target = folder / "recipes"
    if target.exists():
        raise ValueError(f"{target} is there already. Choose another folder, or delete it.")
    shutil.copytree(recipes_folder(), target)
    print(
        f"{target}: {', '.join(sorted(str(p.relative_to(target)) for p in target.rglob('*.yaml')))}"
    )


def recipes_folder() -> Path:
    """The shipped recipes: inside the installed package, or beside src/ in a checkout."""
    inside = Path(str(files("overrefusal_po"))) / "recipes"
    return inside if inside.is_dir() else Path(__file__).resolve().parents[2] / "recipes"


def show(recipe: Recipe, above: str, everything: bool) -> None:
    """Prints a recipe's keys, values and origins."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for key, value, origin in describe(recipe, everything=everything):
        text = value if isinstance(value, str) else json.dumps(value)
        table.add_row(escape(f"{above}{key}"), escape(text), f"[dim]{origin}[/dim]")
    Console(soft_wrap=True, highlight=False).print(table)


def origins(recipe: Recipe, above: str) -> dict[str, str]:
    """{key: where it came from} of the recipe, or of its stage `stages.NAME.`: the stage's own file
    counts too."""
    known = {k.removeprefix(above): v for k, v in recipe.origin.items() if k.startswith(above)}
    if not above or not isinstance(recipe.body, PipelineRecipe):
        return known
    from overrefusal_po.recipe.load import read_yaml
    from overrefusal_po.recipe.overrides import dotted

    given = recipe.body.stages[above.split(".")[1]]
    own = read_yaml(recipe.folder / str(given["recipe"])) if "recipe" in given else {}
    inherited = {"seed": "pipeline"} if recipe.body.seed is not None else {}
    return {**{key: "file" for key, _ in dotted(own)}, **inherited, **known}


def check_data(body: Any) -> str:
    """Reads data, template and tokenizer of a stage without any weight; returns a line of what was
    found."""
    from overrefusal_po.checks import check_stage

    return check_stage(body)


def check_apart(stages: Mapping[str, Any]) -> None:
    """Raises ValueError where a stage measures what another one trains on."""
    from overrefusal_po.checks import check_stages_apart

    check_stages_apart(stages)


def run_recipe(recipe: Recipe) -> None:
    """Runs a loaded recipe; prints its result on rank 0."""
    from overrefusal_po.pipeline import is_finished, run_pipeline, run_stage

    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    first = os.environ.get("RANK", "0") == "0"
    set_up_logging(first)
    if isinstance(recipe.body, PipelineRecipe):
        from overrefusal_po.report.page import write_report

        if not is_finished(recipe):
            check_stages(recipe)
        folder = run_pipeline(recipe, write_report)
        if (folder / "summary.json").is_file():
            print_summary(folder)
            runs = json.loads((folder / "summary.json").read_text())["runs"]
            failed = {
                r["name"]: r["gate"]["failures"]
                for r in runs
                if not r.get("gate", {"passed": True})["passed"]
            }
            if failed:
                refuse_at_gate(failed, folder)
        return
    found = run_stage(recipe.body, recipe.name, shard_folder(recipe))
    if not found.get("gate", {"passed": True})["passed"]:
        refuse_at_gate({recipe.name: found["gate"]["failures"]}, Path(found["folder"]))
    if first:
        for key, value in found.items():
            if key in found.get("intervals", ()):
                print(
                    f"{key}: {with_interval(found, key)} (n = {found['n'][key]}, unscored "
                    f"{found['unscored'][key]})"
                )
            elif not isinstance(value, dict) or (value and key in SHOWN_COUNTS):
                print(f"{key}: {value}")


def shard_folder(recipe: Recipe) -> Path | None:
    """The folder of a recipe's shard in the run's own; None without a shard."""
    if not isinstance(recipe.body, CurateRecipe) or recipe.body.shard is None:
        return None
    from overrefusal_po.pipeline import inputs_of
    from overrefusal_po.recipe.sections import Shard
    from overrefusal_po.run.keys import run_folder

    whole = run_folder(recipe.name, recipe.resolved(), inputs_of(recipe.body))
    return whole / Shard.of(recipe.body.shard).folder


def refuse_at_gate(failed: dict[str, list[str]], folder: Path) -> NoReturn:
    """Exit code 3, in the folder's status too, with a sentence for every bound that did not
    hold."""
    lines = [f"{name}: {sentence}" for name, sentences in failed.items() for sentence in sentences]
    status = folder / "status.json"
    known = json.loads(status.read_text())
    write_atomic(
        status, json.dumps({**known, "exit_code": 3, "message": " ".join(lines)}, indent=1)
    )
    for line in lines:
        print(f"overrefusal-po: the gate says no. {line}", file=sys.stderr)
    sys.exit(3)


def check_stages(recipe: Recipe) -> None:
    """Reads the data of all stages, so that a fault in the last one does not come up after hours of
    training."""
    from overrefusal_po.pipeline import stage_bodies

    stages = stage_bodies(recipe)
    for name, body in stages.items():
        try:
            check_data(body)
        except ValueError as error:
            raise ValueError(f"{recipe.name}, stage {name}: {error}") from None
    check_apart(stages)


def print_summary(folder: Path) -> None:
    """The last lines of a pipeline: the report's place and a row for each run."""
    summary = json.loads((folder / "summary.json").read_text())
    table = Table(
        "run",
        "harmful refused",
        "harmless answered",
        "F1",
        box=None,
        pad_edge=False,
    )
    for run_ in summary["runs"]:
        table.add_row(
            escape(run_["name"]),
            *[with_interval(run_, key) for key in ("harmful_refused", "benign_answered", "f1")],
        )
    print(f"report: {folder / 'report.html'}")
    Console(width=100).print(table)


def with_interval(run_: dict[str, Any], key: str) -> str:
    """`0.97 [0.92, 0.99]`, or n/a."""
    if run_[key] is None:
        return "n/a"
    ends = run_["intervals"].get(key)
    return f"{run_[key]:.2f}" if ends is None else f"{run_[key]:.2f} [{ends[0]:.2f}, {ends[1]:.2f}]"


def set_up_logging(first: bool) -> None:
    """Our log at info level on rank 0, at warning level on the others."""
    if not logger.handlers:
        handler = RichHandler(
            console=Console(stderr=True), show_path=False, show_level=False, markup=False
        )
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
    logger.setLevel(logging.INFO if first else logging.WARNING)


def launch(path: str) -> None:
    """Runs the recipe at `path` with sys.argv's overrides: what a recipe's second line calls."""
    main(["run", path, *sys.argv[1:]])


def main(argv: Sequence[str] | None = None) -> None:
    """The command: `overrefusal-po RECIPE ...` stands for `overrefusal-po run RECIPE ...`. Exits
    with the code above."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    commands = {
        command.name or command.callback.__name__
        for command in app.registered_commands
        if command.callback
    }
    if arguments and not arguments[0].startswith("-") and arguments[0] not in commands:
        arguments.insert(0, "run")
    try:
        with terminable():
            app(arguments, prog_name="overrefusal-po")
    except ValueError as error:
        print(f"overrefusal-po: {error}", file=sys.stderr)
        sys.exit(2)
    except SystemExit as end:
        if end.code == 130:  # what typer makes of a KeyboardInterrupt
            print(
                "overrefusal-po: interrupted; the same command goes on where it stopped",
                file=sys.stderr,
            )
        raise
