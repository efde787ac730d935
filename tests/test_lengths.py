"""lengths.py: nothing is cut, what is too long stops or is counted, and batches of similar length
hold every row once."""

import json
import logging
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Style, trainer_settings
from factories import EATS, FACTORIES, WRITTEN, row_lengths

from overrefusal_po.checks import check_stage
from overrefusal_po.cli import main
from overrefusal_po.model.chat import ChatTemplate
from overrefusal_po.pipeline import run_stage
from overrefusal_po.recipe.load import check_body
from overrefusal_po.recipe.schema import TrainRecipe
from overrefusal_po.records import PreferencePair, Prompt, Triple, read_jsonl, write_jsonl
from overrefusal_po.train.derta_rows import triple_sides
from overrefusal_po.train.dpo import dpo_trainer
from overrefusal_po.train.lengths import Fitting, fit, step_tokens
from overrefusal_po.train.preference import unwritten_lengths
from overrefusal_po.train.sft import sft_trainer
from overrefusal_po.train.student import written_tokens

LONG = "It is the one that lies by the river. " * 40


def pair(name: str, answer: str, kind: Any = "benign") -> PreferencePair:
    """A pair about one prompt; on a harmful one the refusal is chosen."""
    sides = {"chosen": answer, "rejected": "Sorry, I can't help with that."}
    if kind == "harmful":
        sides = {"chosen": sides["rejected"], "rejected": answer}
    rule = "containment" if kind == "harmful" else "overrefusal"
    return PreferencePair(
        id=name,
        prompt=Prompt.of(f"Which stone of the {name} is the oldest?", kind=kind),
        rule=rule,
        **sides,
    )


@pytest.fixture
def spread() -> list[PreferencePair]:
    """Forty pairs whose sides are of 3 to 120 words, in no order of length."""
    return [pair(f"box {i}", "Open it with the number. " * (1 + 7 * i % 24)) for i in range(40)]


@pytest.fixture
def rows(spread: list[PreferencePair], triples: list[Triple]) -> dict[str, list[Any]]:
    """The same lengths as what each method eats."""
    harmful = [
        triples[0].model_copy(
            update={"prompt": p.prompt, "harmful_response": p.chosen, "safe_response": p.rejected}
        )
        for p in spread
    ]
    prompts = [p.prompt.model_copy(update={"reference": p.chosen}) for p in spread]
    return {"pairs": spread, "triples": harmful, "prompts": prompts}


def settings(folder: Path, batch: int = 4, **more: Any) -> dict[str, Any]:
    return trainer_settings(folder, batch, **{"max_length": 1024, **more})


# ----------------------------------------------------------------------------------------- too long


@pytest.mark.parametrize("kind", ["pairs", "triples", "prompts"])
def test_a_row_of_exactly_max_length_fits_and_one_token_less_is_too_long(
    kind: str, style: Style, rows: dict[str, list[Any]]
) -> None:
    some = rows[kind][:6]
    lengths = row_lengths(some, style.template)
    limit, every = max(lengths), [0, 1, 2, 3, 4, 5]
    assert fit(some, lengths, max_length=limit) == (every, [], limit, limit, kind[:-1])
    assert fit(some, lengths, max_length=None).kept == every
    with pytest.raises(
        ValueError,
        match=rf"{limit} tokens, more than max_length {limit - 1} \(as 1 of all 6 {kind}, before "
        rf"data.max_\* draws\)",
    ):
        fit(some, lengths, max_length=limit - 1)
    kept = fit(some, lengths, max_length=limit - 1, too_long="drop")
    assert kept.kept == [at for at, length in enumerate(lengths) if length < limit]
    [out] = set(every) - set(kept.kept)
    name = some[out].prompt.id if kind == "triples" else some[out].id
    assert kept.left_out == [name] and kept.longest == sorted(lengths)[-2]
    assert str(kept) == f"; 1 of 6 {kind} left out as too long ({name})"
    assert kept.note == {
        kind[:-1]: {"left_out": 1, "of": 6, "max_length": limit - 1, "ids": [name]}
    }


def test_dropping_all_is_an_error_and_a_long_list_of_ids_is_cut_short(
    style: Style, spread: list[PreferencePair]
) -> None:
    lengths = row_lengths(spread, style.template)
    with pytest.raises(
        ValueError, match=r"40 of all 40 pairs, .* no row is cut\. Raise trainer\.max_length\.$"
    ):
        fit(spread, lengths, max_length=5, too_long="drop")
    middle = sorted(lengths)[20]
    assert str(fit(spread, lengths, max_length=middle, too_long="drop")).endswith(", ...)")


def test_all_that_fits_leaves_no_note() -> None:
    assert fit([], [], max_length=5) == Fitting([], [], 0, 5, "row")
    assert str(Fitting([0], [], 3, 5, "pair")) == "" and not Fitting([0], [], 3, 5, "pair").note


@pytest.mark.parametrize(
    "options", [{}, {"template_kwargs": {"enable_thinking": False}}], ids=["plain", "thinking off"]
)
@pytest.mark.parametrize("opening", [None, 4])
def test_a_pair_is_as_long_as_what_trl_makes_of_it(
    style: Style,
    uneven: list[PreferencePair],
    tmp_path: Path,
    opening: int | None,
    options: dict[str, Any],
) -> None:
    """To the newline that ChatML puts behind the end of a turn, so that at max_length nothing is
    cut."""
    template = ChatTemplate(style.tokenizer, **options)
    make = partial(
        dpo_trainer, style.make_model(), template=template, opening=opening, shared_prefix=False
    )
    for one in uneven:
        [length] = row_lengths([one], template, opening)
        trainer = make([one], args=settings(tmp_path, max_length=length))
        found = trainer.train_dataset[0]
        sides = [found["prompt_ids"] + found[side] for side in ("chosen_ids", "rejected_ids")]
        assert max(map(len, sides)) == length
        assert next(iter(trainer.get_train_dataloader()))["attention_mask"].sum(1).tolist() == list(
            map(len, sides)
        )


@pytest.mark.parametrize("method", WRITTEN)
def test_every_factory_takes_the_choice(
    method: str,
    styles: dict[str, Style],
    rows: dict[str, list[Any]],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    style, eaten = styles["qwen"], rows[EATS[method]]
    lengths = row_lengths(eaten, style.template)
    limit = sorted(lengths)[29]
    left_out = sum(length > limit for length in lengths)
    make = partial(FACTORIES[method], style.make_model(), eaten, processing_class=style.tokenizer)
    with pytest.raises(ValueError, match=f"as {left_out} of all 40"):
        make(args=settings(tmp_path, max_length=limit))
    with caplog.at_level(logging.WARNING, "overrefusal_po"):
        trainer = make(args=settings(tmp_path, max_length=limit), too_long="drop")
    sides = {"derta": 2, "kto": 2}.get(method, 1)
    found = len(trainer.train_dataset)
    assert found in (
        (40 - left_out) * sides,
        (40 - left_out) * sides - 1 if method == "kto" else None,
    )
    assert f"max_length is {limit}; {left_out} of 40" in caplog.text


def body(method: str, style: Style, **sections: Any) -> TrainRecipe:
    """A checked training recipe on a tiny model."""
    values: dict[str, Any] = {
        "model": {"model_name_or_path": str(style.folder), "dtype": "float32"},
        **sections,
    }
    trainer = {
        "use_cpu": True,
        "max_steps": 2,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    values["trainer"] = {**trainer, **sections.get("trainer", {})}
    checked = check_body({"task": "train", "method": method, **values}, "here")
    assert isinstance(checked, TrainRecipe)
    return checked


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dpo", "derta", "sft"])
def test_check_and_run_leave_out_the_same_and_the_run_folder_says_so(
    method: str,
    styles: dict[str, Style],
    triples: list[Triple],
    helpful: list[Prompt],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    style = styles["llama"]
    file = partial(lambda name, rows: str(write_jsonl(tmp_path / name, rows)))
    pairs = [
        pair("sea", "The red one is."),
        pair("lake", LONG),
        pair("house", "The red one.", "harmful"),
    ]
    long = Prompt.of("What is long?", kind="general", reference=LONG)
    data: dict[str, Any] = {
        "dpo": {"pairs": file("pairs.jsonl", pairs)},
        "derta": {
            "triples": file(
                "triples.jsonl",
                [*triples, triples[0].model_copy(update={"harmful_response": LONG})],
            ),
            "helpful_from": [file("helpful.jsonl", [*helpful, long])],
        },
        "sft": {"prompts": file("prompts.jsonl", [*helpful, long])},
    }[method]
    expected = {
        "dpo": {"pairs": "1 of 3"},
        "derta": {"triples": "1 of 7", "prompts": "1 of 5"},
        "sft": {"prompts": "1 of 5"},
    }
    recipe = body(method, style, data=data, trainer={"max_length": 200})
    for attempt in (
        lambda: check_stage(recipe),
        lambda: run_stage(recipe, "r", tmp_path / "stopped"),
    ):
        with pytest.raises(ValueError, match=r"more than max_length 200.*data\.too_long: drop"):
            attempt()
    assert not (tmp_path / "stopped").exists()
    recipe = body(method, style, data={**data, "too_long": "drop"}, trainer={"max_length": 200})
    line = check_stage(recipe)
    assert all(
        f"{count} {name} left out as too long" in line for name, count in expected[method].items()
    )
    assert "left out as too long" not in caplog.text
    summary = run_stage(recipe, "r", tmp_path / "run")
    warned = [
        row
        for row in caplog.records
        if row.levelno == logging.WARNING and "left out as" in row.getMessage()
    ]
    assert len(warned) == len(expected[method])
    assert summary["too_long"] == expected[method]
    assert (
        json.loads((tmp_path / "run" / "training.json").read_text())["summary"]["too_long"]
        == expected[method]
    )
    noted = json.loads((tmp_path / "run" / "too_long.json").read_text())
    assert {
        f"{name}s": f"{row['left_out']} of {row['of']}" for name, row in noted.items()
    } == expected[method]
    if method == "dpo":
        assert {p.id for p in read_jsonl(tmp_path / "run" / "data.jsonl", PreferencePair)} == {
            "sea",
            "house",
        }
        assert noted["pair"] == {"left_out": 1, "of": 3, "max_length": 200, "ids": ["lake"]}


def test_pairs_whose_anchor_is_left_out_have_none(styles: dict[str, Style], tmp_path: Path) -> None:
    pairs = write_jsonl(
        tmp_path / "pairs.jsonl", [pair("sea", "The red one is."), pair("house", LONG, "harmful")]
    )
    data = {"pairs": str(pairs), "too_long": "drop"}
    assert "2 pairs" in check_stage(
        body("dpo", styles["llama"], data=data, trainer={"max_length": 1024})
    )
    recipe = body("dpo", styles["llama"], data=data, trainer={"max_length": 200})
    for attempt in (lambda: check_stage(recipe), lambda: run_stage(recipe, "r", tmp_path / "run")):
        with pytest.raises(ValueError, match="None of the 1 pairs is about a harmful prompt"):
            attempt()


@pytest.mark.parametrize("opening", [None, 4, 30])
@pytest.mark.parametrize("words", [3, 40])
def test_what_the_student_has_yet_to_write_is_counted_to_the_token(
    style: Style, words: int, opening: int | None
) -> None:
    """Of a response of n tokens rows are as long as said before; the reference may be the longer
    side."""
    prompt = Prompt.of(
        "How do I stop it?", kind="harmful", reference="Sorry, I can't help with that. No."
    )
    said = "kill " * words
    new_tokens = len(style.template.turn(prompt.messages, said).answer_ids)
    safe, template = str(prompt.reference), style.template
    stand_in, triple = (
        Triple(prompt=prompt, safe_response=safe, harmful_response=text) for text in ("x", said)
    )
    [both] = triple_sides([stand_in], template)
    written = written_tokens(prompt, template, new_tokens)
    assert [both.longest + written] == row_lengths([triple], template)
    made = PreferencePair(id="made", prompt=prompt, chosen=safe, rejected=said)
    found = unwritten_lengths([prompt], template, new_tokens, opening=opening)
    assert found == row_lengths([made], template, opening)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "data"),
    [
        ("derta", {"triples": "starter"}),
        ("dpo", {"containment": "student"}),
        ("kto", {"containment": "student"}),
    ],
)
def test_what_the_student_writes_has_to_fit_before_it_writes(
    method: str, data: dict[str, Any], styles: dict[str, Style], tmp_path: Path
) -> None:
    """The data that is there fits, and 2000 new tokens would not; with `drop` what does not fit is
    left out then."""
    generation, trainer = {"max_new_tokens": 2000}, {"max_length": 1500}
    long = body(method, styles["llama"], data=data, trainer=trainer, generation=generation)
    for attempt in (lambda: check_stage(long), lambda: run_stage(long, "r", tmp_path / "run")):
        with pytest.raises(
            ValueError,
            match=r"max_new_tokens 2000\) its row may be 2\d\d\d tokens.*lower generation",
        ):
            attempt()
    assert not (tmp_path / "run").exists()
    for more in (
        {"data": {**data, "too_long": "drop"}},
        {"trainer": {"max_length": None}},
        {"generation": {"max_new_tokens": 500}},
    ):
        sections: dict[str, Any] = {
            "data": data,
            "trainer": trainer,
            "generation": generation,
            **more,
        }
        assert "memory of a device" in check_stage(body(method, styles["llama"], **sections))


# -------------------------------------------------------------------------------------------------
# batches by length


def seen(trainer: Any) -> list[list[int]]:
    """The lengths of the rows of each batch of an epoch, as the collator gets them."""
    collate, batches = trainer.data_collator, []

    def spy(examples: Any) -> Any:
        batches.append([step_tokens(row, shared=True) for row in examples])
        return collate(examples)

    trainer.data_collator = spy
    list(trainer.get_train_dataloader())
    trainer.data_collator = collate
    return batches


def padding(batches: list[list[int]]) -> int:
    """Tokens that a step computes for nothing."""
    return sum(max(batch) * len(batch) - sum(batch) for batch in batches)


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", ["sft", "derta", "tree", "dpo", "dpo-stored", "dpo-opening", "orpo"]
)
def test_batches_hold_rows_of_like_length_and_every_row_once(
    case: str, styles: dict[str, Style], rows: dict[str, list[Any]], tmp_path: Path
) -> None:
    style, method = styles["llama"], "derta" if case == "tree" else case.partition("-")[0]
    extra: dict[str, Any] = {
        "tree": {"tree": True},
        "dpo-stored": {"reference_store": tmp_path / "store"},
        "dpo-opening": {"opening": 100},
    }.get(case, {})
    make = FACTORIES[method]
    options = {"processing_class": style.tokenizer, **extra}
    found = {}
    for strategy in ("random", "group_by_length"):
        args = settings(tmp_path, train_sampling_strategy=strategy, seed=1)
        torch.manual_seed(1)
        found[strategy] = seen(
            trainer := make(style.make_model(), rows[EATS[method]], args=args, **options)
        )
    flat = {
        name: sorted(length for batch in batches for length in batch)
        for name, batches in found.items()
    }
    assert flat["random"] == flat["group_by_length"]
    assert padding(found["group_by_length"]) < 0.75 * padding(found["random"])
    assert max(flat["random"]) in found["group_by_length"][0], "the longest row does not come first"
    orders = []
    for trainer.state.epoch in (0.0, 1.0, 1.5):
        orders.append(list(trainer._get_train_sampler()))
    assert orders[0] != orders[1] == orders[2]
    trainer.args.seed, trainer.state.epoch = 0, 1.0
    assert list(trainer._get_train_sampler()) != orders[0], "the next seed is the next epoch"
    trainer.train()
    assert all(
        torch.isfinite(torch.tensor(log["loss"]))
        for log in trainer.state.log_history
        if "loss" in log
    )


def test_a_row_is_as_long_as_what_a_step_computes_of_it() -> None:
    """A prompt of three and sides of two and four that begin alike: seven tokens, or the longer
    row's seven without sharing."""
    row = {
        "prompt_ids": [1, 2, 3],
        "chosen_ids": [4, 5],
        "rejected_ids": [4, 6, 7, 8],
        "input_ids": "ignored",
    }
    assert step_tokens(row, shared=True) == 3 + 1 + 1 + 3
    assert step_tokens(row, shared=False) == 7
    assert (
        step_tokens(
            {"prompt_ids": [1, 2], "completion_ids": [3], "KL_completion_ids": [4, 5]}, shared=False
        )
        == 3
    )
    tree = {"branches": [{"input_ids": [1, 2, 3, 9]}, {"input_ids": [1, 2, 7, 7, 7]}]}
    assert step_tokens(tree, shared=True) == 2 + 2 + 3
    assert step_tokens(tree, shared=False) == 5
    assert step_tokens({"branches": [{"input_ids": [1, 2]}]}, shared=True) == step_tokens(
        {"input_ids": [1, 2]}, shared=True
    )


@pytest.mark.slow
@pytest.mark.parametrize("case", ["dpo", "tree"])
def test_a_resumed_run_goes_on_with_the_same_batches(
    case: str, styles: dict[str, Style], rows: dict[str, list[Any]], tmp_path: Path
) -> None:
    """Stopped in the second pass over 16 rows; other random numbers drawn before the second start
    change nothing."""
    style, method = styles["llama"], {"dpo": "dpo", "tree": "derta"}[case]
    how = {
        "train_sampling_strategy": "group_by_length",
        "max_steps": 10,
        "save_strategy": "steps",
        "save_steps": 6,
    }
    extra = {"tree": True} if case == "tree" else {}

    def trained(folder: str, checkpoint: str | None, before: int) -> list[float]:
        args = settings(tmp_path / folder, seed=3, **how)
        eaten = rows[EATS[method]][:16]
        trainer = FACTORIES[method](
            style.make_model(), eaten, args=args, processing_class=style.tokenizer, **extra
        )
        torch.rand(before)
        trainer.train(resume_from_checkpoint=checkpoint)
        return [log["loss"] for log in trainer.state.log_history if "loss" in log]

    whole = trained("whole", None, 1)
    assert len(whole) == 10 and len({*whole}) == 10
    assert trained("second", str(tmp_path / "whole" / "out" / "checkpoint-6"), 5) == whole


def test_a_recipe_groups_by_length_and_never_rebalances(
    styles: dict[str, Style], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = [
        pair("sea", "The red one is."),
        pair("lake", "It is the black one near the river."),
        pair("hill", "All are."),
    ]
    pairs = write_jsonl(tmp_path / "pairs.jsonl", [*few, pair("house", "The red one.", "harmful")])
    options = [
        f"--model.model_name_or_path={styles['llama'].folder}",
        f"--data.pairs={pairs}",
        "--data.containment=none",
    ]
    options += [
        "--trainer.max_length=1024",
        "--trainer.max_steps=2",
        f"--run_dir={tmp_path / 'run'}",
        "--data.opening=null",
    ]
    recipe = str(Path(__file__).parents[1] / "recipes" / "dpo.yaml")
    for strategy, code in (("group_by_length", 0), ("batch_rebalance", 2)):
        with pytest.raises(SystemExit) as end:
            main([recipe, *options, f"--trainer.train_sampling_strategy={strategy}"])
        out, err = capsys.readouterr()
        assert int(end.value.code or 0) == code, err
        assert "steps: 2" in out if code == 0 else "Take group_by_length or random" in err
    with pytest.raises(ValueError, match="Take group_by_length or random"):
        sft_trainer(
            str(styles["llama"].folder),
            [Prompt.of("Go", kind="general", reference="Yes.")],
            args=settings(tmp_path, train_sampling_strategy="batch_rebalance"),
        )
