"""data.py and stage.py: what a training learns from is read once, made once, and the same for all
who read it."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import Style, two_processes, write_rank_script
from factories import EATS, FACTORIES, WRITTEN, two_steps

from overrefusal_po.cli import main
from overrefusal_po.pairs.lint import Lint
from overrefusal_po.recipe.load import check_body
from overrefusal_po.recipe.schema import TrainRecipe
from overrefusal_po.records import PreferencePair, Prompt, Triple, read_jsonl, write_jsonl
from overrefusal_po.run.folder import Run
from overrefusal_po.train.data import Prepared, Source, drawn, drawn_places, is_saved, load_rows
from overrefusal_po.train.derta import prepared_triples
from overrefusal_po.train.kto import side_rows
from overrefusal_po.train.rows import pair_table, prepared_pairs
from overrefusal_po.train.sft import prepared_prompts
from overrefusal_po.train.stage import train

REFUSAL = "Sorry, I can't help with that."


@pytest.fixture
def data(
    pairs: list[PreferencePair], triples: list[Triple], helpful: list[Prompt]
) -> dict[str, list[Any]]:
    """What each kind of method eats."""
    return {"pairs": pairs, "triples": triples, "prompts": helpful}


def safe_pairs(number: int) -> list[PreferencePair]:
    """Pairs that pass linter and firewall; the last one is about a harmful prompt."""
    asked = [f"fold a paper fox {n} times" for n in range(1, number)]
    rows = [
        PreferencePair(
            id=f"pair-{n}",
            prompt=Prompt.of(f"How do I {thing}?", kind="benign"),
            chosen=f"Fold the paper {n + 1} times and press it.",
            rejected=REFUSAL,
            rule="overrefusal",
        )
        for n, thing in enumerate(asked)
    ]
    harmful = Prompt.of("How do I smash his knee?", kind="harmful")
    chosen, rejected = REFUSAL, "Press it with a stone."
    last = {"id": "last", "prompt": harmful, "chosen": chosen, "rejected": rejected}
    return [*rows, PreferencePair(rule="containment", **last)]


# --------------------------------------------------------------------------------- save and load


def prepared_of(method: str, rows: list[Any], style: Style, settings: dict[str, Any]) -> Prepared:
    """The records as a `Prepared`, without a factory."""
    template, limit = style.template, settings["max_length"]
    if method in ("dpo", "orpo", "cpo"):
        return prepared_pairs(rows, template, max_length=limit)
    if method == "sft":
        return prepared_prompts(rows, template, max_length=limit)
    if method == "kto":
        options = {**settings, "seed": 42, "loss_type": "kto"}
        return side_rows(rows, pair_table(rows, template), options, None)
    derta: Callable[..., Prepared] = partial(prepared_triples, refusal_opener="Sorry", tree=False)
    options = {"max_length": limit, "prefix_unit": "words", "too_long": "error", "seed": 42}
    return derta(rows, "triples", template=template, **options)


@pytest.mark.slow
@pytest.mark.parametrize("method", WRITTEN)
def test_factories_take_records_and_prepared_rows_alike(
    method: str, styles: dict[str, Style], data: dict[str, list[Any]], tmp_path: Path
) -> None:
    """In memory, and from a folder; the rows and the losses of two steps are the same."""
    style, settings, rows = styles["qwen"], two_steps(tmp_path), data[EATS[method]]
    prepared = prepared_of(method, rows, style, settings)
    prepared.save(tmp_path)
    found, losses = [], []
    for given in (rows, prepared, load_rows(tmp_path)):
        trainer = FACTORIES[method](
            style.make_model(), given, args=settings, processing_class=style.tokenizer
        )
        found.append([dict(row) for row in trainer.train_dataset])
        trainer.train()
        losses.append([log["loss"] for log in trainer.state.log_history if "loss" in log])
    assert found[0] == found[1] == found[2] and len(found[0]) >= len(rows)
    assert losses[0] == losses[1] == losses[2] and len(losses[0]) == 2


def test_what_is_saved_is_read_again(
    styles: dict[str, Style], triples: list[Triple], helpful: list[Prompt], tmp_path: Path
) -> None:
    template = styles["llama"].template
    prepared = prepared_prompts(helpful, template, max_length=None)._replace(
        helpful=helpful[:1], left_out={"prompt": {"left_out": 1}}
    )
    assert not is_saved(tmp_path)
    prepared.save(tmp_path)
    assert is_saved(tmp_path)
    assert prepared.rows is not None
    again = load_rows(tmp_path)
    assert again.rows is not None and again.rows.to_list() == prepared.rows.to_list()
    assert again.rows.features == prepared.rows.features
    assert again.records == () and again.lengths.shape == (0, 1)
    assert read_jsonl(tmp_path / "data.jsonl", Prompt) == helpful
    assert read_jsonl(tmp_path / "helpful.jsonl", Prompt) == helpful[:1]
    assert json.loads((tmp_path / "too_long.json").read_text()) == {"prompt": {"left_out": 1}}
    names = {"data.jsonl", "helpful.jsonl", "too_long.json", "rows"}
    assert {path.name for path in tmp_path.iterdir()} == names


def test_rows_that_a_killed_run_left_are_replaced(
    styles: dict[str, Style], helpful: list[Prompt], tmp_path: Path
) -> None:
    """Without data.jsonl the data are not whole, whatever else lies there."""
    template = styles["llama"].template
    for leftover in ("rows", ".rows.tmp"):
        (tmp_path / leftover).mkdir()
        (tmp_path / leftover / "half").write_text("of a shard")
    assert not is_saved(tmp_path)
    prepared = prepared_prompts(helpful, template, max_length=None)
    prepared.save(tmp_path)
    assert is_saved(tmp_path) and not (tmp_path / ".rows.tmp").exists()
    assert not (tmp_path / "rows" / "half").exists()
    rows, expected = load_rows(tmp_path).rows, prepared.rows
    assert rows is not None and expected is not None and rows.to_list() == expected.to_list()
    shutil.rmtree(tmp_path / "rows")
    assert not is_saved(tmp_path), "the folder of an older release has no rows"


def test_data_without_rows_cannot_be_saved(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="without rows"):
        Prepared(None).save(tmp_path)


def test_the_prompts_of_a_source_are_all_that_may_be_trained_on(
    pairs: list[PreferencePair], triples: list[Triple], helpful: list[Prompt]
) -> None:
    source = Source([pairs[0], triples[0], helpful[0]], helpful=helpful[1:2], asked=helpful[2:3])
    prompts = [pairs[0].prompt, triples[0].prompt, helpful[0], helpful[1], helpful[2]]
    assert source.prompts == prompts


def test_a_draw_follows_from_seed_and_content_alone(pairs: list[PreferencePair]) -> None:
    every = drawn(pairs, None, seed=3)
    assert sorted(p.id for p in every) == sorted(p.id for p in pairs) and every != pairs
    assert drawn(pairs[::-1], None, seed=3) == every
    assert drawn(pairs, 2, seed=3) == every[:2] == [pairs[i] for i in drawn_places(pairs, 2, 3)]
    assert len({drawn(pairs, 1, seed=seed)[0].id for seed in range(30)}) == len(pairs)


# --------------------------------------------------------------------------------- read once


def recipe_of(folder: Path, file: Path, **sections: Any) -> TrainRecipe:
    """A short DPO training on a file of pairs."""
    trainer = {
        "use_cpu": True,
        "max_steps": 2,
        "max_length": 512,
        "save_strategy": "no",
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
    }
    body = check_body(
        {
            "task": "train",
            "method": "dpo",
            "model": {"model_name_or_path": str(folder), "dtype": "float32"},
            "data": {"pairs": str(file)},
            "speed": {"reference_store": False},
            **sections,
            "trainer": {**trainer, **sections.get("trainer", {})},
        },
        "here",
    )
    assert isinstance(body, TrainRecipe)
    return body


def test_a_run_that_goes_on_reads_no_source_again(
    styles: dict[str, Style], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The first one ends for want of weights, when its data are written; then the source is
    gone."""
    folder = shutil.copytree(styles["llama"].folder, tmp_path / "model")
    file = write_jsonl(tmp_path / "pairs.jsonl", safe_pairs(5))
    body = recipe_of(folder, file)
    (folder / "model.safetensors").rename(tmp_path / "aside")

    def go() -> dict[str, Any]:
        resolved = body.model_dump(mode="json")
        return train(body, lambda writer: Run.open(tmp_path / "run", resolved, {}, writer=writer))

    with pytest.raises((OSError, ValueError)):
        go()
    assert is_saved(tmp_path / "run") and not (tmp_path / "run" / "training.json").exists()
    written = (tmp_path / "run" / "data.jsonl").read_bytes()
    (tmp_path / "aside").rename(folder / "model.safetensors")
    file.unlink()
    caplog.clear()
    with caplog.at_level("INFO", "overrefusal_po"):
        assert go()["steps"] == 2
    assert not [r for r in caplog.records if r.getMessage().startswith("data: ")]
    assert (tmp_path / "run" / "data.jsonl").read_bytes() == written
    assert len(read_jsonl(tmp_path / "run" / "data.jsonl", PreferencePair)) == 5


def test_check_and_train_print_the_same_line(
    styles: dict[str, Style],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With a pair left out and a warning of the linter in it."""
    monkeypatch.chdir(tmp_path)
    long = safe_pairs(2)[0].model_copy(update={"id": "long", "chosen": "Fold it. " * 200})
    write_jsonl("pairs.jsonl", [*safe_pairs(5), long, safe_pairs(5)[0]])
    data = {"pairs": "pairs.jsonl", "too_long": "drop"}
    body = recipe_of(styles["llama"].folder, Path("pairs.jsonl"), data=data)
    values = {"run_dir": "here", **body.model_dump(mode="json", exclude={"run_dir"})}
    Path("recipe.yaml").write_text(yaml.safe_dump(values))
    for words in (["check", "recipe.yaml", "--data"], ["recipe.yaml"]):
        with pytest.raises(SystemExit) as end:
            main(words)
        assert not end.value.code, capsys.readouterr().err
    out = capsys.readouterr().out
    [said] = [line for line in out.splitlines() if line.startswith("data: ")]
    line, _, memory = said.partition("; memory of a device without sharding: ")
    assert "1 of 7 pairs left out as too long (long); linter: repeated 1" in line and memory
    log = Path("here/log").read_text().splitlines()
    [logged] = [row for row in log if "overrefusal_po.train.stage data: " in row]
    assert logged.endswith(line)


RANK = """
import json, os, sys
from pathlib import Path
from overrefusal_po.recipe.load import check_body
from overrefusal_po.run.folder import Run
from overrefusal_po.train.data import load_rows
from overrefusal_po.train.stage import train

reads, seen = [], {}


def watch(event, arguments):
    if event == "open" and str(arguments[0]).endswith("pairs.jsonl"):
        reads.append(str(arguments[0]))


sys.addaudithook(watch)
for name, values in json.loads(Path("recipes.json").read_text()).items():
    body, resolved = check_body(values, name), {"name": name}
    try:
        summary = train(body, lambda writer: Run.open(Path(name), resolved, {}, writer=writer))
        rows = load_rows(Path(name)).rows.to_list()
        seen[name] = {"steps": summary["steps"], "loss": summary["loss"], "rows": rows}
    except ValueError as error:
        seen[name] = {"fault": str(error)}
    seen[name]["reads"] = len(reads)
    reads.clear()
Path(f"rank-{os.environ['RANK']}.json").write_text(json.dumps(seen))
"""


@pytest.mark.slow
def test_one_process_reads_and_all_get_its_rows_or_its_fault(
    styles: dict[str, Style], tmp_path: Path
) -> None:
    """A training that stops for a missing file, one for a long pair, and one that trains."""
    file = write_jsonl(tmp_path / "pairs.jsonl", safe_pairs(5))
    make = partial(recipe_of, styles["llama"].folder)
    recipes = {
        "missing": make(tmp_path / "nowhere" / "pairs.jsonl"),
        "long": make(file, trainer={"max_length": 9}),
        "good": make(file),
    }
    bodies = {name: body.model_dump(mode="json") for name, body in recipes.items()}
    (tmp_path / "recipes.json").write_text(json.dumps(bodies))
    write_rank_script(tmp_path, RANK)
    two_processes(tmp_path, "rank.py")
    one, two = (json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in (0, 1))
    for name, fault in (("missing", "there is no such file"), ("long", "than max_length 9")):
        assert one[name]["fault"] == two[name]["fault"] and fault in one[name]["fault"]
        assert not (tmp_path / name).exists(), "a run folder was made"
    # the file's first bytes say whether it is packed, then its rows are read once
    assert [one[name]["reads"] for name in recipes] == [0, 2, 2], "by the first process"
    assert [two[name]["reads"] for name in recipes] == [0, 0, 0]
    assert one["good"]["rows"] == two["good"]["rows"] and len(one["good"]["rows"]) == 5
    assert one["good"]["steps"] == two["good"]["steps"] == 2
    assert one["good"]["loss"] == two["good"]["loss"]


def test_a_prepared_says_nothing_of_what_it_does_not_know() -> None:
    empty = Prepared(None)
    assert (empty.records, empty.helpful, empty.findings, empty.line) == ((), (), None, "")
    assert empty.lengths.shape == (0, 1) and empty.lengths.dtype == np.int64
    assert not empty.left_out


def test_findings_of_the_linter_are_kept(styles: dict[str, Style], tmp_path: Path) -> None:
    from overrefusal_po.train.stage import check_sources

    file = write_jsonl(tmp_path / "pairs.jsonl", safe_pairs(5))
    found = check_sources(recipe_of(styles["llama"].folder, file), styles["llama"].template)
    assert isinstance(found.findings, Lint) and not found.findings.errors
    assert len(found.records) == len(found.lengths) == 5 and found.rows is not None
    assert found.line.startswith("5 pairs, longest row ")
