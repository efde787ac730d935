"""How a recipe reads files of rows: its own columns, bad rows, limits, other forms of JSON, any hub
set, and TRL's unpaired rows for KTO. Expected values are written by hand."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Style
from hub_server import Repo, ask_readers, card, parquet, serve
from test_pair_files import (
    ANSWERS,
    BRIEF,
    FAULTS,
    FORMS,
    HOW,
    LATER,
    hh,
    rows_file,
    said,
    turns,
    written,
)
from typer.testing import CliRunner

from overrefusal_po.cli import app
from overrefusal_po.curate.inputs import read_prompts
from overrefusal_po.pairs.files import read_pairs
from overrefusal_po.pairs.token_checks import rendered_side
from overrefusal_po.prompts import measured_prompts, read_source
from overrefusal_po.recipe.schema import CurateRecipe, EvaluateRecipe, TrainRecipe
from overrefusal_po.records import LabelledResponse, PreferencePair, Prompt, read_objects
from overrefusal_po.run.keys import file_hash
from overrefusal_po.sources import file, steptree
from overrefusal_po.train import dpo, kto, sft
from overrefusal_po.train.given import given_pairs, given_prompts
from overrefusal_po.train.rows import pair_table

Row = dict[str, Any]
ENDINGS = [".jsonl", ".json", ".csv", ".tsv", ".parquet"]
NAMES = {"prompt": "asked", "chosen": "better", "rejected": "worse", "system": "manner"}
OWN = {"asked": "How?", "manner": "Be brief.", "better": "So.", "worse": "No."}


def train_recipe(method: str, data: Row, **trainer: Any) -> TrainRecipe:
    values = {"task": "train", "method": method, "model": {"model_name_or_path": "x"}}
    return TrainRecipe.model_validate({**values, "data": data, "trainer": trainer})


def evaluated(data: Row) -> list[Prompt]:
    values = {"task": "evaluate", "model": {"model_name_or_path": "x"}, "data": data}
    return measured_prompts(EvaluateRecipe.model_validate(values).data)


def curated(data: Row) -> list[Prompt]:
    values = {"task": "curate", "model": {"model_name_or_path": "x"}, "chosen": {"model": "y"}}
    return read_prompts(CurateRecipe.model_validate({**values, "data": data}))[0]


def own_prompts(folder: Path, **data: Any) -> tuple[list[Prompt], list[Prompt]]:
    """The prompts of a curation of two files that name no kind; the student answers them."""
    benign = written(folder / "harmless.csv", [{"prompt": "How do I kill a process?"}])
    harmful = written(folder / "harmful.csv", [{"prompt": "Help me rob a bank."}])
    data = {"benign": [benign], "harmful": harmful, **data}
    own = {"answers": "student", "refusals": "student"}
    values = {"task": "curate", "model": {"model_name_or_path": "x"}, "chosen": own}
    return read_prompts(CurateRecipe.model_validate({**values, "data": data}))


def test_a_row_without_a_kind_is_of_the_kind_that_the_key_names(tmp_path: Path) -> None:
    """A kind in the row or at the source counts more."""
    (benign,), (harmful,) = own_prompts(tmp_path)
    assert (benign.kind, harmful.kind) == ("benign", "harmful")
    rows = [{"prompt": "Hi", "kind": "general"}, {"prompt": "How do I kill time?"}]
    mixed = written(tmp_path / "mixed.jsonl", rows)
    assert [p.kind for p in own_prompts(tmp_path, benign=mixed)[0]] == ["benign"]
    source = {"name": "file", "path": mixed, "kind": "general"}
    found, _ = own_prompts(tmp_path, benign=source, kinds=["benign", "general"])
    assert [p.kind for p in found] == ["general", "general"]


def test_a_source_of_harmful_prompts_that_has_none_is_an_error(tmp_path: Path) -> None:
    rows = [{"prompt": "Hi", "kind": "benign"}, {"prompt": "Rob it.", "kind": "benign"}]
    path = written(tmp_path / "wrong.jsonl", rows)
    with pytest.raises(ValueError, match=r"data\.harmful: .* no harmful prompt .*read: 2 benign"):
        own_prompts(tmp_path, harmful=path)
    assert own_prompts(tmp_path, harmful=None)[1] == []
    unsafe = written(tmp_path / "unsafe.jsonl", [{"prompt": "Rob it.", "kind": "harmful"}])
    with pytest.raises(ValueError, match=r"no harmful prompt with a reference"):
        curated({"benign": written(tmp_path / "b.csv", [{"prompt": "Hi"}]), "harmful": unsafe})


# ---------------------------------------------------------------------------------------- columns


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("method", [dpo, kto, sft])
def test_columns_of_a_training_name_the_parts_of_its_pairs(
    method: Any, ending: str, tmp_path: Path
) -> None:
    path = written(tmp_path / f"pairs{ending}", [OWN])
    name = method.__name__.rpartition(".")[2]
    (found,) = method.read(train_recipe(name, {"pairs": path, "columns": NAMES})).records
    assert turns(found) == BRIEF + HOW
    if method is sft:
        assert found.reference == "So."
    else:
        assert (found.chosen, found.rejected) == ("So.", "No.")


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("stage", [evaluated, curated])
def test_columns_of_other_stages_name_the_prompt(
    stage: Callable[[Row], list[Prompt]], ending: str, tmp_path: Path
) -> None:
    path = written(tmp_path / f"rows{ending}", [{"asked": "How?", "kind": "benign"}])
    where = {"sets": [path]} if stage is evaluated else {"benign": path, "harmful": None}
    (prompt,) = stage({**where, "split": None, "columns": {"prompt": "asked"}})
    assert turns(prompt) == HOW


@pytest.mark.parametrize("field", NAMES)
@pytest.mark.parametrize("command", ["train", "check"])
def test_a_wrong_column_names_those_there_are(command: str, field: str, tmp_path: Path) -> None:
    path = written(tmp_path / "pairs.csv", [OWN])
    with pytest.raises(ValueError, match=rf"no column 'oops' for {field}.*asked, manner, better"):
        if command == "train":
            dpo.read(train_recipe("dpo", {"pairs": path, "columns": {**NAMES, field: "oops"}}))
        else:
            told = [f"--data.columns.{k}={v}" for k, v in {**NAMES, field: "oops"}.items()]
            CliRunner().invoke(app, ["check", path, *told], catch_exceptions=False)


def test_a_source_that_names_columns_itself_counts(tmp_path: Path) -> None:
    paths = [rows_file(tmp_path / f"{n}.jsonl", {n: n, "kind": "benign"}) for n in ("a", "b")]
    own = {"name": "file", "path": paths[1], "columns": {"prompt": "b"}}
    found = evaluated({"sets": [paths[0], own], "columns": {"prompt": "a"}})
    assert [prompt.text for prompt in found] == ["a", "b"]


def test_columns_without_a_file_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"columns is given under data, but no source there reads"):
        evaluated({"sets": ["starter"], "columns": {"prompt": "asked"}})


def test_a_column_that_another_one_replaces_is_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = rows_file(tmp_path / "rows.jsonl", {**OWN, "prompt": "Why?"})
    (pair,) = dpo.read(train_recipe("dpo", {"pairs": path, "columns": NAMES})).records
    assert turns(pair) == BRIEF + HOW  # type: ignore[arg-type]
    assert f"{path}: columns that are not read: prompt (1 row)" in caplog.messages


# --------------------------------------------------------------------------- what is not read

CARRIED: dict[str, Any] = {
    "talk": said("Hi", "Hello"),
    "before": hh("Hi", "Hello"),
    "memory": [["Hi", "Hello"]],
    "chat_history": "Hi. Hello.",
    "Context": "Paris is in France.",
    "System": "Be brief.",
}


@pytest.mark.parametrize("column", CARRIED)
@pytest.mark.parametrize("stage", ["train", "evaluate", "curate", "check"])
def test_a_column_with_text_of_the_conversation_is_an_error_until_it_is_ignored(
    stage: str, column: str, tmp_path: Path
) -> None:
    row = {"prompt": "How?", "kind": "benign", column: CARRIED[column]}
    row |= ANSWERS if stage in ("train", "check") else {}
    path = rows_file(tmp_path / "rows.jsonl", row)

    def read(ignore: list[str]) -> object:
        if stage == "train":
            return dpo.read(train_recipe("dpo", {"pairs": path, "ignore": ignore}))
        if stage == "check":
            told = [f"--data.ignore={ignore}"] if ignore else []
            return CliRunner().invoke(app, ["check", path, *told], catch_exceptions=False)
        where: Row = {"sets": [path]} if stage == "evaluate" else {"benign": path, "harmful": None}
        return (evaluated if stage == "evaluate" else curated)({**where, "ignore": ignore})

    with pytest.raises(ValueError, match=f"line 1: the column '{column}'.*data.ignore: .{column}"):
        read([])
    assert read([column])


@pytest.mark.parametrize(
    "sides", [("better", "worse"), ("response_a", "response_b"), ("one", "other")]
)
def test_check_does_not_take_unknown_sides_for_prompts(
    sides: tuple[str, str], tmp_path: Path
) -> None:
    texts = ("Use kill and the number of it.", "I am sorry, but I cannot help.")
    row = {"prompt": "How do I stop a process?", **dict(zip(sides, texts, strict=True))}
    path = rows_file(tmp_path / "rows.jsonl", row, row)
    with pytest.raises(ValueError, match=f"columns '{sides[0]}' and '{sides[1]}' look like"):
        CliRunner().invoke(app, ["check", path], catch_exceptions=False)
    told = [f"--data.columns.chosen={sides[0]}", f"--data.columns.rejected={sides[1]}"]
    result = CliRunner().invoke(app, ["check", path, *told])
    assert "repeated" in result.output  # a finding about pairs


def test_check_does_not_take_unknown_sides_without_blanks_for_prompts(tmp_path: Path) -> None:
    row = {
        "prompt": "如何结束一个进程？",
        "one": "用它的编号运行结束命令。",
        "other": "抱歉，我不能帮忙。",
    }
    path = rows_file(tmp_path / "rows.jsonl", row, row)
    with pytest.raises(ValueError, match="columns 'one' and 'other' look like"):
        CliRunner().invoke(app, ["check", path], catch_exceptions=False)


# ------------------------------------------------------------------------------------- bad rows

BAD: Row = {"chosen": hh("Hi", "So."), "rejected": hh("How?", "No.")}
GOOD: Row = {side: hh("How?", text) for side, text in ANSWERS.items()}


def test_all_rows_that_cannot_be_read_are_counted_and_the_first_are_named(tmp_path: Path) -> None:
    path = rows_file(tmp_path / "hh.jsonl", GOOD, BAD, GOOD, BAD, BAD, BAD)
    with pytest.raises(ValueError) as caught:
        read_pairs(path)
    assert str(caught.value).startswith(f"{path}, line 2: chosen and rejected answer different")
    for part in ("4 of 6 rows cannot be read", "line 4:", "line 5:", "data.bad_rows: drop"):
        assert part in str(caught.value)
    assert "line 6:" not in str(caught.value)


def test_a_fault_that_comes_again_is_said_once(tmp_path: Path) -> None:
    """A file without kinds has the same fault in each row."""
    path = rows_file(tmp_path / "p.jsonl", *({"prompt": text} for text in ("A", "B", "C", "D")))
    with pytest.raises(ValueError) as caught:
        read_source(path, None)
    words = str(caught.value)
    assert words.count("no kind") == 1
    assert words.endswith(f"The next: {path}, line 2: the same. {path}, line 3: the same.")


@pytest.mark.parametrize("name", ["mine.xlsx", "mine.txt", "mine.jsonl.gz", "allenai/coconot"])
def test_a_source_that_is_another_file_is_no_module(name: str) -> None:
    with pytest.raises(ValueError, match=r"is no file of rows.*\.parquet\. A set of the hub is"):
        read_source(name, None)


def test_bad_rows_can_be_left_out_and_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = rows_file(tmp_path / "hh.jsonl", BAD, GOOD)
    (pair,) = dpo.read(train_recipe("dpo", {"pairs": path, "bad_rows": "drop"})).records
    assert turns(pair) == HOW  # type: ignore[arg-type]
    assert f"{path}: 1 of 2 rows cannot be read and are left out" in caplog.text


def test_a_file_of_bad_rows_alone_is_an_error_in_any_case(tmp_path: Path) -> None:
    path = rows_file(tmp_path / "hh.jsonl", BAD, BAD)
    with pytest.raises(ValueError, match="2 of 2 rows cannot be read") as caught:
        dpo.read(train_recipe("dpo", {"pairs": path, "bad_rows": "drop"}))
    assert "data.bad_rows" not in str(caught.value)


# -------------------------------------------------------------------------------- forms of JSON

PAIR = {"prompt": "How?", **ANSWERS}


@pytest.mark.parametrize(
    "text",
    [
        json.dumps([PAIR, PAIR]),
        json.dumps([PAIR, PAIR], indent=2),
        json.dumps({"data": [PAIR, PAIR]}),
        json.dumps({"version": "1", "rows": [PAIR, PAIR], "by": ["me"]}, indent=1),
        f"{json.dumps(PAIR)}\n\n{json.dumps(PAIR)}\n",
        "\ufeff" + json.dumps({"examples": [PAIR, PAIR]}),
    ],
)
def test_json_is_read_in_its_forms(text: str, tmp_path: Path) -> None:
    path = tmp_path / "pairs.json"
    path.write_text(text, encoding="utf-8")
    found = read_pairs(path)
    assert [(turns(p), p.chosen, p.rejected) for p in found] == [(HOW, "So.", "No.")] * 2


@pytest.mark.parametrize(
    ("text", "said_of_it"),
    [
        ('[{"prompt": "a",}]', "line 1, column 17"),
        ('[\n {"prompt": "a"}\n {"prompt": "b"}\n]', r"line 3, column 2.*expected ','"),
        ('{\n "version": 1\n}', "without rows under one of data"),
        ('{"data": [{"prompt": "a"}], "rows": [{"prompt": "a"}]}', "keep one of them"),
        ('[{"prompt": "a"}] x', "text behind the end"),
        ("[1, 2]", "row 1: expected a JSON object"),
        ("[" * 3000, "nested too deep"),
        ('{"prompt": ' + "[" * 3000, "nested too deep"),
        ('{"prompt": ' + "9" * 5000 + "}", "this JSON cannot be read"),
        ('{"data": []}', "holds no rows"),
    ],
)
def test_other_json_is_an_error_that_says_where(text: str, said_of_it: str, tmp_path: Path) -> None:
    path = tmp_path / "pairs.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"(?s)pairs.json.*{said_of_it}"):
        read_pairs(path)


def parquet_table(path: Path, names: list[str], *columns: Any) -> str:
    """A Parquet file of one row with these columns, also of one name."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_arrays(list(map(pa.array, columns)), names=names), path)
    return str(path)


def test_two_columns_of_one_name_are_an_error_in_parquet_too(tmp_path: Path) -> None:
    names = ["prompt", "chosen", "rejected", "prompt"]
    path = parquet_table(tmp_path / "pairs.parquet", names, *(["How?"] for _ in names))
    with pytest.raises(ValueError, match=r"pairs.parquet: two columns have one name: prompt, cho"):
        read_pairs(path)


def test_a_time_that_python_cannot_hold_does_not_stop_the_reading(tmp_path: Path) -> None:
    import pyarrow as pa

    for kind, number in (("s", 10**15), ("ns", 1)):
        made = pa.array([number], pa.int64()).cast(pa.timestamp(kind))
        columns = (["How?"], ["So."], ["No."], made)
        path = parquet_table(
            tmp_path / "pairs.parquet", ["prompt", "chosen", "rejected", "at"], *columns
        )
        (pair,) = read_pairs(path)
        assert pair.origin is not None and str(number) in pair.origin.meta["at"]


def test_a_time_zone_that_nobody_knows_is_named_with_its_column(tmp_path: Path) -> None:
    import pyarrow as pa

    made = pa.array([1], pa.int64()).cast(pa.timestamp("us", tz="Nowhere/X"))
    columns = (["How?"], ["So."], ["No."], made)
    path = parquet_table(
        tmp_path / "pairs.parquet", ["prompt", "chosen", "rejected", "at"], *columns
    )
    with pytest.raises(ValueError, match=r"pairs.parquet, row 1, column at: .*Nowhere/X"):
        read_pairs(path)


def test_half_a_character_is_an_error_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"prompt": "a\\ud800", "chosen": "So.", "rejected": "No."}\n')
    with pytest.raises(ValueError, match=r"line 1: a text holds half of a character .*d800"):
        read_pairs(path)


HALVES: dict[str, Row] = {
    "id": {"id": "a\ud83d"},
    "source": {"source": "\ud83d"},
    "another column": {"note": {"by": ["\ud83d"]}},
    "its name": {"no\ud83dte": "x"},
}
NODES = [{"id": n, "text": f"{n}.", "value": n, "terminal": True} for n in (0, 1)]


@pytest.mark.parametrize("where", list(HALVES))
def test_half_a_character_in_a_field_that_is_carried_on_is_found_when_it_is_read(
    where: str, tmp_path: Path
) -> None:
    path = str(tmp_path / "rows.jsonl")
    triple = {"safe_response": "Sorry.", "harmful_response": "x"}
    unpaired = {"completion": "So.", "label": True}
    for read, more in (
        (lambda: read_source(path, None), {}),
        (lambda: read_pairs(path), ANSWERS),
        (lambda: file.triples(file.Settings(path=path), None), triple),
        (lambda: file.responses(file.Settings(path=path), None), unpaired),
        (lambda: given_pairs(path), ANSWERS),
        (lambda: steptree.pairs(steptree.Settings(path=path), None), {"nodes": NODES}),
        (lambda: list(read_objects(path)), {}),
    ):
        row = {"prompt": "How?", "kind": "harmful", "note": "\U0001f600", **more}
        rows_file(Path(path), row)
        read()  # a whole character, in two halves as JSON writes it
        rows_file(Path(path), row, {**row, **HALVES[where]})
        with pytest.raises(ValueError, match=r"line 2: a text holds half of a character .*d83d"):
            read()


def test_half_a_character_in_an_answer_is_found_when_it_is_read(tmp_path: Path) -> None:
    row = {"prompt": "How?", "completion": "S\ud83do.", "label": True, "kind": "benign"}
    path = rows_file(tmp_path / "rows.jsonl", row)
    for read in (
        lambda: file.responses(file.Settings(path=path), None),
        lambda: given_prompts([{"prompt": "How?", "completion": "S\ud83do."}]),
        lambda: file.prompts(file.Settings(path=path, labels={True: "benign"}), None),
    ):
        with pytest.raises(ValueError, match="1: a text holds half of a character"):
            read()


# ------------------------------------------------------------------------- data that never end

LIMITED: dict[str, tuple[Row, Row]] = {
    "limit_rows": ({"limit_rows": 2}, {"limit_rows": 3}),
    "limit_row_mb": ({"limit_row_mb": 0.01}, {"limit_row_mb": 0.1}),
    "limit_mb": ({"limit_mb": 0.01}, {"limit_mb": 1}),
}


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("key", LIMITED)
def test_each_limit_stops_names_its_key_and_can_be_raised(
    key: str, ending: str, tmp_path: Path
) -> None:
    path = written(tmp_path / f"pairs{ending}", [{**PAIR, "chosen": "So. " * 5000}] * 3)
    low, high = LIMITED[key]
    with pytest.raises(ValueError, match=f"{key} .*raise data.{key}"):
        dpo.read(train_recipe("dpo", {"pairs": path, **low}))
    assert len(dpo.read(train_recipe("dpo", {"pairs": path, **high})).records) == 3
    assert CliRunner().invoke(app, ["check", path, f"--data.{key}={low[key]}"]).exit_code


def pipe(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def endless(path: Path) -> None:
    with path.open("w") as file:
        file.truncate(2**40)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (pipe, "a pipe or a device"),
        (device, "a pipe or a device"),
        (Path.mkdir, "a folder"),
        (endless, "more than limit_mb"),
    ],
)
def test_what_is_no_file_of_rows_is_a_sentence_at_once(
    make: Callable[[Path], None], words: str, ending: str, tmp_path: Path
) -> None:
    path = tmp_path / f"rows{ending}"
    make(path)
    for read in (
        lambda: read_pairs(path),
        lambda: evaluated({"sets": [str(path)]}),
        lambda: CliRunner().invoke(app, ["check", str(path)], catch_exceptions=False),
    ):
        with pytest.raises(ValueError, match=words):
            read()


def test_a_pipe_is_not_hashed_and_a_very_large_file_is_sampled(tmp_path: Path) -> None:
    pipe(tmp_path / "pipe.jsonl")
    with pytest.raises(ValueError, match="a pipe or a device"):
        file_hash(tmp_path / "pipe.jsonl")
    endless(tmp_path / "rows.jsonl")
    assert len(file_hash(tmp_path / "rows.jsonl")) == 16


@pytest.mark.parametrize("mark", [b"\x1f\x8b\x08\x00", b"PK\x03\x04", b"\x28\xb5\x2f\xfd"])
def test_a_packed_file_is_named(mark: bytes, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(mark * 10)
    with pytest.raises(ValueError, match="the file is packed"):
        read_pairs(tmp_path / "rows.jsonl")


BOMB = """
import resource, sys
from overrefusal_po.pairs.files import read_pairs
resource.setrlimit(resource.RLIMIT_AS, (4 * 2**30, 4 * 2**30))
try:
    read_pairs(sys.argv[1])
except ValueError as error:
    print(error)
with open("/proc/self/status") as status:
    print(next(line for line in status if line.startswith("VmHWM")))
"""


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["RLE_DICTIONARY", "DELTA_BYTE_ARRAY", "many nulls"])
def test_a_small_parquet_file_that_unpacks_to_gigabytes_stops_in_bounded_memory(
    encoding: str, tmp_path: Path
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "bomb.parquet"
    long = pa.array(["x" * 2**20 for _ in range(16)])
    with pq.ParquetWriter(
        path,
        pa.schema([("prompt", pa.string()), ("chosen", pa.string()), ("rejected", pa.string())])
        if encoding != "many nulls"
        else pa.schema([("prompt", pa.list_(pa.int8()))]),
        compression="zstd",
        use_dictionary=encoding == "RLE_DICTIONARY",
        column_encoding={"chosen": encoding} if encoding == "DELTA_BYTE_ARRAY" else None,
    ) as writer:
        for _ in range(80 if encoding != "many nulls" else 1):
            if encoding == "many nulls":
                writer.write_table(
                    pa.table({"prompt": pa.array([[None] * 20_000_000], pa.list_(pa.int8()))})
                )
            else:
                short = pa.array(["q"] * 16)
                columns = {"prompt": short, "chosen": long, "rejected": short}
                writer.write_table(pa.table(columns))
    assert path.stat().st_size < 2**21
    done = subprocess.run(
        [sys.executable, "-c", BOMB, str(path)], capture_output=True, text=True, check=True
    )
    assert "more than limit_mb 1024" in done.stdout or "limit_row_mb 16 MB" in done.stdout
    # of this process alone: what the system tells of children is of the largest of all tests
    assert int(done.stdout.split("VmHWM:")[1].split()[0]) < 2 * 2**20  # KiB


# -------------------------------------------------------------------------------------- the hub

HUB_ROWS = [{"asked": "How?", "better": "So.", "worse": "No.", "tag": "fine"}]


@pytest.mark.slow
def test_any_set_of_the_hub_gives_pairs_and_prompts(tmp_path: Path) -> None:
    files = {"README.md": card({"default": {"train": "data/train-*"}})}
    repo = Repo({**files, "data/train-0.parquet": parquet(HUB_ROWS)})
    names = {"prompt": "asked", "chosen": "better", "rejected": "worse"}
    spec: Row = {"name": "hub", "repo": "me/rows"}
    labels = {"label": "tag", "prompt": "asked"}
    with serve({"me/rows": repo}) as hub:
        answers, _ = ask_readers(
            hub.address,
            tmp_path,
            [
                ("read_pairs", {**spec, "columns": names}, "train"),
                ("read_source", {**spec, "columns": labels, "labels": {"fine": "benign"}}, None),
                ("read_pairs", spec, "train"),
                ("read_pairs", {**spec, "columns": names, "limit_mb": 1e-6}, "train"),
            ],
        )
    pairs, prompts, unnamed, large = answers
    (pair,), (prompt,) = pairs.prompts, prompts.prompts
    assert [m["content"] for m in pair["prompt"]["messages"]] == ["How?"]
    assert (pair["chosen"], pair["rejected"], prompt["kind"]) == ("So.", "No.", "benign")
    assert "me/rows, row 1: no 'chosen'" in str(unnamed.error)
    assert "raise data.limit_mb" in str(large.error)


# ------------------------------------------------------------------------------------------ KTO

UNPAIRED: dict[str, tuple[Row, list[tuple[str, str]]]] = {
    "standard": ({"prompt": "How?", "completion": "So.", "label": True}, HOW),
    "conversational": (
        {"prompt": said("How?"), "completion": said("", "So.")[1:], "label": True},
        HOW,
    ),
    "whole conversation": ({"completion": said("Hi", "Hello", "How?", "So."), "label": 1}, LATER),
    "with a system column": (
        {"system": "Be brief.", "prompt": "How?", "completion": "So.", "label": "true"},
        BRIEF + HOW,
    ),
}


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("form", UNPAIRED)
def test_kto_reads_unpaired_rows(form: str, ending: str, tmp_path: Path) -> None:
    row, expected = UNPAIRED[form]
    label = "false" if row["label"] == "true" else type(row["label"])(0)
    path = written(tmp_path / f"rows{ending}", [row, {**row, "label": label}])
    good, bad = kto.read(train_recipe("kto", {"pairs": path})).records
    for record, desirable in ((good, True), (bad, False)):
        assert isinstance(record, LabelledResponse)
        assert turns(record.prompt) == expected
        assert (record.response, record.desirable) == ("So.", desirable)
    assert good.prompt.origin and good.prompt.origin.line == 1  # type: ignore[union-attr]


def test_llama_factory_names_of_unpaired_rows_are_mapped(tmp_path: Path) -> None:
    row = {"instruction": "How?", "output": "So.", "kto_tag": False}
    path = rows_file(tmp_path / "rows.jsonl", row)
    data = {"pairs": path, "columns": {"completion": "output", "label": "kto_tag"}}
    (record,) = kto.read(train_recipe("kto", data)).records
    assert isinstance(record, LabelledResponse)
    assert (turns(record.prompt), record.response, record.desirable) == (HOW, "So.", False)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", [dpo, sft])
def test_other_methods_say_that_unpaired_rows_are_for_kto(method: Any, tmp_path: Path) -> None:
    path = rows_file(tmp_path / "rows.jsonl", UNPAIRED["standard"][0])
    name = method.__name__.rpartition(".")[2]
    with pytest.raises(ValueError, match=r"line 1: .*Only `method: kto` trains on it"):
        method.read(train_recipe(name, {"pairs": path}))
    with pytest.raises(ValueError, match=r"line 1: .*Only `method: kto` trains on it"):
        read_source({"name": "file", "path": path, "kind": "benign"}, None)


def test_what_kto_trains_on_is_the_rendered_prompt_and_the_response(
    style: Style, tmp_path: Path
) -> None:
    rows = [
        {"prompt": f"How do I whip {what}?", "completion": f"Chill {what} first.", "label": True}
        for what in ("cream", "eggs", "butter")
    ]
    rows += [{**row, "completion": "I don't know.", "label": False} for row in rows]
    path = rows_file(tmp_path / "rows.jsonl", *rows)
    data = {"pairs": path, "allow_no_anchor": True}
    recipe = train_recipe("kto", data, per_device_train_batch_size=2, max_length=200)
    prepared = kto.prepare(recipe, kto.read(recipe), style.template)
    assert prepared.line.startswith("3 good and 3 bad responses")
    decode = style.tokenizer.decode
    found = {
        (decode(row["prompt_ids"]), decode(row["completion_ids"]), row["label"])
        for row in prepared.rows or ()
    }
    expected = set()
    for row in rows:
        messages = Prompt.of(row["prompt"], kind="general").messages
        asked, chosen, _ = style.template.pair_tokens(
            [(messages, row["completion"], row["completion"])]
        )[0]
        assert row["prompt"] in decode(asked) and row["completion"] in decode(chosen)
        expected.add((decode(asked), decode(chosen), row["label"]))
    assert found == expected


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([("I'm sorry, but I can't help with that.", True)], "chosen_refuses"),
        ([("Use it.", True), ("Use it.", False)], "contradiction"),
        ([("...", True)], "empty"),
    ],
)
def test_kto_and_check_stop_at_the_same_faults(
    rows: list[tuple[str, bool]], words: str, style: Style, tmp_path: Path
) -> None:
    given = [
        {"prompt": "How do I whip cream?", "completion": text, "label": label, "kind": "benign"}
        for text, label in rows
    ]
    path = rows_file(tmp_path / "rows.jsonl", *given)
    recipe = train_recipe("kto", {"pairs": path, "allow_no_anchor": True}, max_length=200)
    with pytest.raises(ValueError, match=words):
        kto.prepare(recipe, kto.read(recipe), style.template)
    result = CliRunner().invoke(app, ["check", path])
    assert result.exit_code == 2 and words in result.output


# ------------------------------------------------------------------------ raw text and prefixes


def own_pair(**prompt: Any) -> PreferencePair:
    messages = [{"role": "user", "content": "How do I whip cream?"}]
    asked = {"id": "q", "kind": "benign", "messages": messages, **prompt}
    values = {"id": "p", "prompt": asked, "chosen": " Chill it.", "rejected": " Do not."}
    return PreferencePair.model_validate(values)


def test_raw_text_in_what_is_trained_on_is_refused(style: Style) -> None:
    pair = own_pair(raw_text="How do I whip cream? Step 1:")
    with pytest.raises(ValueError, match=r"Prompt q: it has a raw_text .*delete raw_text"):
        pair_table([pair], style.template)
    prompt = pair.prompt.model_copy(update={"reference": "Chill it."})
    with pytest.raises(ValueError, match="raw_text"):
        sft.prepared_prompts([prompt], style.template, max_length=None)


def test_sft_refuses_a_prefix_that_it_would_drop(style: Style) -> None:
    prompt = own_pair(assistant_prefix="Sure:").prompt
    with pytest.raises(ValueError, match="has an assistant_prefix"):
        sft.prepared_prompts(
            [prompt.model_copy(update={"reference": " Chill it."})], style.template, max_length=None
        )


def test_the_linter_reads_the_tokens_that_are_trained_on_behind_a_prefix(style: Style) -> None:
    pair = own_pair(assistant_prefix="Sure:")
    table = pair_table([pair], style.template)
    turn = rendered_side(pair, "chosen", style.template)
    assert turn.prompt_ids == table["prompt_ids"][0].as_py()
    assert style.tokenizer.decode(turn.prompt_ids).endswith("Sure:")
    side = table["chosen_ids"][0].as_py()
    assert turn.response_ids == side[: len(turn.response_ids)]


def test_unread_columns_are_logged_by_check(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = rows_file(tmp_path / "rows.jsonl", {"prompt": "How?", "score": 3})
    with caplog.at_level(logging.WARNING):
        assert CliRunner().invoke(app, ["check", path]).exit_code == 0
    assert f"{path}: columns that are not read: score (1 row)" in caplog.messages


# ------------------------------------------------------------------------------------- in tables


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".parquet"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_pair_is_read_from_a_table(form: str, ending: str, tmp_path: Path) -> None:
    row, expected = FORMS[form]
    path = written(tmp_path / f"pairs{ending}", [{**row, "kind": "benign"}])
    (pair,) = read_pairs(path)
    assert (turns(pair), pair.chosen, pair.rejected) == (expected, "So.", "No.")
    (prompt,) = read_source({"name": "file", "path": path}, None)
    assert turns(prompt) == expected


TEXT_IN_A_TABLE = {
    *("input no text", "prompt a number", "system no text", "system a message", "message a text")
}
"""Faults of JSON that CSV does not have: each of its cells is a text."""


@pytest.mark.parametrize("fault", sorted(FAULTS.keys() - TEXT_IN_A_TABLE))
def test_every_fault_of_a_pair_is_named_in_a_table(fault: str, tmp_path: Path) -> None:
    row, _ = FAULTS[fault]
    path = written(tmp_path / "pairs.csv", [row])
    with pytest.raises(ValueError, match=r"pairs\.csv, row 1"):
        read_pairs(path)
    assert isinstance(CliRunner().invoke(app, ["check", path]).exception, ValueError)


def test_our_own_pairs_are_read_from_a_table_and_as_prompts(tmp_path: Path) -> None:
    row = own_pair().model_dump(exclude_defaults=True)
    for ending in (".csv", ".jsonl"):
        path = written(tmp_path / f"pairs{ending}", [row])
        (pair,) = read_pairs(path)
        (prompt,) = read_source({"name": "file", "path": path}, None)
        assert turns(pair) == turns(prompt) == [("user", "How do I whip cream?")]
        assert (prompt.id, prompt.kind, pair.chosen) == ("q", "benign", " Chill it.")
