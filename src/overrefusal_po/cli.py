"""argv -> recipe -> stage: the command `overrefusal-po`, and `launch()` for recipes that are run as
scripts.

    overrefusal-po recipes/dpo.yaml --trainer.beta=0.2
    overrefusal-po check recipes/dpo.yaml

Exit codes: 0 done, 2 recipe or data error, 3 an evaluation's gate failed, 130 interrupted (the same
command goes on), 1 anything else (too few responses have a verdict, for example).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from overrefusal_po import plugins
from overrefusal_po.recipe.load import load_recipe
from overrefusal_po.recipe.overrides import parse_overrides, parse_value
from overrefusal_po.recipe.panels import panel_spec
from overrefusal_po.recipe.words import check_is_path
from overrefusal_po.records import write_atomic
from overrefusal_po.report import terminal
from overrefusal_po.report.quiet import quiet_packages
from overrefusal_po.run.interrupts import terminable
from overrefusal_po.run.ranks import ended_at_once, speaking_once
from overrefusal_po.stages import (
    check_alone,
    check_data,
    copy_recipes,
    merged_folder,
    run_recipe,
    single,
    stages_of,
)

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Train over-refusal away and measure that harm is still refused.\n\n"
    "[bold]overrefusal-po RECIPE [--section.key=value ...][/bold] runs a recipe (the same as `run "
    "RECIPE`).",
)
ANY_ARGUMENTS = {"allow_extra_args": True, "ignore_unknown_options": True}
RECIPE = Annotated[
    Path,
    typer.Argument(help="A recipe (.yaml); overrides follow it: --trainer.beta=0.2"),
]
JUDGE = Annotated[str, typer.Argument(help="A judge, for example: refusal", metavar="JUDGE")]


def print_version(asked: bool) -> None:
    """Prints the version and ends, if it is asked for."""
    if asked:
        from overrefusal_po import __version__

        print(f"overrefusal-po {__version__}")
        raise typer.Exit


@app.callback()
def main_options(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", is_eager=True, callback=print_version),
    ] = False,
) -> None:
    """The options of the command itself."""


@app.command(context_settings=ANY_ARGUMENTS)
def run(
    context: typer.Context,
    recipe: RECIPE,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show warnings and bars of other packages too.")
    ] = False,
) -> None:
    """Run a recipe: train, curate, evaluate or a pipeline of these."""
    run_recipe(load_recipe(recipe, context.args), verbose=verbose)


@app.command(context_settings=ANY_ARGUMENTS)
@quiet_packages()
def check(
    context: typer.Context,
    recipe: RECIPE,
    data: Annotated[
        bool, typer.Option("--data", help="Also read data, model config, template and tokenizer.")
    ] = False,
    everything: Annotated[bool, typer.Option("--all", help="Show TRL's defaults too.")] = False,
    world: Annotated[
        int | None, typer.Option(help="With --data: memory if this many processes share a model.")
    ] = None,
    sharding: Annotated[
        str, typer.Option(help="With --world: fsdp2, zero1, zero2 or zero3.")
    ] = "fsdp2",
    per_node: Annotated[int, typer.Option(help="With --world: processes of one host.")] = 8,
    gpu_gb: Annotated[
        float | None, typer.Option(help="With --world: memory of one GPU; default: this machine's.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="For a file of rows: one JSON object a finding.")
    ] = False,
) -> None:
    """Check a recipe, and show its values with where each came from; or check a file of
    pairs or prompts (.jsonl, .json, .csv, .tsv, .parquet): what is wrong with which row, and which
    prompts are a benchmark's."""
    from overrefusal_po.recipe.describe import describe
    from overrefusal_po.sources._local import ENDINGS
    from overrefusal_po.train.sharded_memory import checked_spread

    if recipe.suffix.lower() in ENDINGS:
        from overrefusal_po.file_checks import check_rows

        return check_rows(recipe, as_json, context.args)
    spread = checked_spread(world, sharding, per_node, gpu_gb)
    stages = stages_of(load_recipe(recipe, context.args))
    if "" in stages:  # a pipeline checks the names of its stages when it is taken apart
        check_alone(stages[""])
    for above, stage in stages.items():
        terminal.print_keys(describe(stage, everything=everything), above)
    if data:
        from overrefusal_po.checks import check_together, later_memory

        bodies = {above: single(stage) for above, stage in stages.items()}
        for above, body in bodies.items():
            terminal.say(f"{above}data: {check_data(body, above.strip('.'), spread)}")
        named = {above.strip(".").rpartition(".")[2]: body for above, body in bodies.items()}
        check_together(named)
        for name, line in later_memory(named):
            terminal.say(f"stages.{name}: {line}")
    more = "" if data else " Models, prompts and other files were not looked at: --data does that."
    terminal.say(f"{recipe} is valid.{more}")


@app.command()
def explain(
    key: Annotated[str, typer.Argument(help="A recipe key, for example: trainer.beta")],
    recipe: Annotated[
        Path | None, typer.Argument(help="A recipe: show the key's value in it too")
    ] = None,
    named: Annotated[Path | None, typer.Option("--recipe", help="The same.")] = None,
    method: Annotated[
        str | None, typer.Option("--method", help="A training method; default: all.")
    ] = None,
) -> None:
    """Explain a recipe key: its type, its default and what it does, and its value in a recipe."""
    from overrefusal_po.recipe.explain import explained

    file = recipe or named
    text, values = explained(key, stages_of(load_recipe(file)) if file else {}, method)
    terminal.say(text)
    for above, rows in values.items():
        terminal.print_keys(rows, above)


@app.command()
def schema() -> None:
    """Print a JSON schema of all recipes, for the completion and checks of editors."""
    from overrefusal_po.recipe.json_schema import recipe_schema, schema_text
    from overrefusal_po.recipe.methods import all_methods

    print(schema_text(recipe_schema(all_methods())), end="")


@app.command(context_settings=ANY_ARGUMENTS)
@quiet_packages()
def judge(
    context: typer.Context,
    name: JUDGE,
    file: Annotated[Path, typer.Argument(help="JSON Lines with id, prompt and response")],
    explain: Annotated[
        bool, typer.Option("--explain", help="Also print the rule and the sentence that decided.")
    ] = False,
) -> None:
    """Print one verdict a line for the rows of a file. The judge's settings follow as
    --model=my-judge."""
    from overrefusal_po.evaluate.judged_rows import judged_rows

    scorer = plugins.make_judge(judge_spec(name, context.args))
    for row in judged_rows(scorer, file, explain=explain):
        terminal.say_json(row)


@app.command(context_settings=ANY_ARGUMENTS)
@quiet_packages()
def certify(
    context: typer.Context,
    name: JUDGE,
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
    from overrefusal_po.evaluate import certificates
    from overrefusal_po.evaluate.labels import read_labels

    scorer = plugins.make_judge(judge_spec(name, context.args))
    found = certificates.certify(scorer, read_labels(labels, key), labels=labels)
    head, *cells = certificates.certificate_table(found)
    terminal.print_table(head, cells, width=200)
    write_atomic(out, found.model_dump_json(indent=1) + "\n")
    terminal.say(f"certificate: {out} ({found.judge} {found.version})")


def judge_spec(name: str, overrides: Sequence[str]) -> dict[str, object]:
    """A judge as a recipe would name it, from its name and `--setting=value`; a panel of a list,
    such as `[refusal, my_plugs.my_judge]`."""
    is_list = name.startswith("[")
    spec = panel_spec(parse_value("JUDGE", name)) if is_list else {"name": name}
    return {**spec, **dict(parse_overrides(overrides))}


@app.command(context_settings=ANY_ARGUMENTS)
def merge(
    context: typer.Context,
    given: Annotated[
        Path,
        typer.Argument(help="The run folder of shard-1-of-N ..., or the recipe and its overrides"),
    ],
) -> None:
    """Put the completions of all shards together; the same recipe without --shard then goes on from
    them."""
    from overrefusal_po.run.shards import merge_folder

    folder = merged_folder(given, context.args)
    terminal.say("\n".join(merge_folder(folder)))
    print(f"folder: {folder}\nThe same recipe without --shard goes on from here.")


@app.command()
def report(
    folders: Annotated[
        list[Path], typer.Argument(help="The run folder of a pipeline or of an evaluation")
    ],
) -> None:
    """Write report.html and pictures from a run folder. Of further folders, the same with other
    seeds, it shows the mean and the range. For different models there is `compare`."""
    from overrefusal_po.report.page import write_report

    terminal.say(write_report(*folders))


@app.command()
def compare(
    folders: Annotated[
        list[Path],
        typer.Argument(help="Folders of evaluations, or a pipeline's; the first is the baseline"),
    ],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON, with every prompt that changed.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Where the page goes")] = Path("compare.html"),
) -> None:
    """Compare evaluations of models or remedies on the same prompts, prompt by prompt: differences
    with intervals, what changed, and a page. Other prompts or another judge are an error."""
    from overrefusal_po.report import compare as comparing
    from overrefusal_po.report.compared_json import as_json as to_json

    found = comparing.compare_folders(folders)
    page = comparing.write_page(found, out)
    if as_json:
        terminal.say_json(to_json(found))
        return
    if found.warning:
        terminal.say(found.warning)
    terminal.print_remedies(found.remedies, found.named_metrics)
    terminal.print_table(*comparing.table_rows(found), width=140)
    for line in (*comparing.move_lines(found), *found.last_lines, f"page: {page}"):
        terminal.say(line)


@app.command()
def card(
    folder: Annotated[Path, typer.Argument(help="The run folder of a pipeline or of a training")],
    measured: Annotated[
        Path | None,
        typer.Argument(help="For a training: the run folder of an evaluation of its model"),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option("--run", help="Name of a pipeline's run; default: the last one trained here"),
    ] = None,
) -> None:
    """Write the model card (README.md) beside a trained model and into model/ and adapter/, with
    its training and its results."""
    from overrefusal_po.report.card import write_card

    terminal.say(write_card(folder, run=name, measured=measured))


@app.command(name="list")
def list_() -> None:
    """Show methods, sources, attacks, engines, judges and remedies with a line each."""
    from overrefusal_po.recipe.methods import all_methods

    rows = [["method", name, method.title] for name, method in all_methods().items()]
    for room in plugins.ROOMS:
        kind = plugins.KINDS[room]
        rows += [[kind, name, plugins.summary(room, name)] for name in plugins.names(room)]
        if room == "sources":
            rows += [["plain set", name, line] for name, line in plugins.plain_sets().items()]
    terminal.print_table(["kind", "name", "what it does"], rows, width=None)


@app.command()
def init(folder: Annotated[Path, typer.Argument(help="Where to put the recipes")]) -> None:
    """Copy the shipped recipes into a folder."""
    target = folder / "recipes"
    terminal.say(f"{target}: {', '.join(copy_recipes(target))}")


def launch(path: str) -> None:
    """Runs the recipe at `path` with sys.argv's overrides: what a recipe's launch line calls."""
    sys.argv[1:1] = ["run", path]
    main()


def main(argv: Sequence[str] | None = None) -> None:
    """The command; `overrefusal-po RECIPE` stands for `run RECIPE`. Exits with the code above, and
    takes the whole process for its own if it gets no `argv`."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    commands = {
        command.name or command.callback.__name__
        for command in app.registered_commands
        if command.callback
    }
    if arguments[:1] in (["-v"], ["--verbose"]):  # it is an option of `run`, the default command
        arguments.append(arguments.pop(0))
    with ended_at_once(own_process=argv is None), speaking_once(), terminable():
        if arguments and not arguments[0].startswith("-") and arguments[0] not in commands:
            check_is_path(arguments[0], commands)
            arguments.insert(0, "run")
        app(arguments, prog_name="overrefusal-po")
