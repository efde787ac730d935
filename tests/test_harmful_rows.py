"""`data.rows`: the two rows of a harmful question, by hand, in the loss, in keys, in the study."""

import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import Style
from factories import two_steps

from overrefusal_po.model.chat import Turn
from overrefusal_po.pipeline import run_stage
from overrefusal_po.recipe.harmful_rows import checked_rows
from overrefusal_po.recipe.load import check_body, load_recipe
from overrefusal_po.recipe.schema import EvaluateRecipe, TrainRecipe
from overrefusal_po.records import Prompt, Triple, read_jsonl, write_jsonl
from overrefusal_po.references import linked_stage
from overrefusal_po.run.keys import keyed, run_key
from overrefusal_po.stage_recipes import stage_bodies
from overrefusal_po.train.data import load_rows
from overrefusal_po.train.derta import (
    derta_trainer,
    prepare,
    prepared_triples,
    read,
    recipe_trainer,
)
from overrefusal_po.train.derta_rows import (
    Row,
    TripleTurns,
    derta_rows,
    prefix_length,
    prefix_lengths,
    refusal_token,
    triple_sides,
)
from overrefusal_po.train.first_rows import check_first_rows
from overrefusal_po.train.settings import method_config

RECIPES = Path(__file__).parents[1] / "recipes"
STUDY = RECIPES / "studies" / "derta.yaml"
ABLATION = {
    "vanilla": ("safe", "safe"),
    "prefix_only": ("prefix", "prefix"),
    "rto_only": ("safe", "rto"),
    "both": ("prefix", "rto"),
}
Rows = tuple[Any, Any]

SORRY = 7
# "Sure, do it now." in six tokens and an end of turn (99) behind a prompt of three
HARMFUL = Turn(
    [1, 2, 3],
    [10, 11, 12, 13, 14, 15, 99],
    [(0, 4), (4, 5), (5, 8), (8, 11), (11, 15), (15, 16), (16, 16)],
    "Sure, do it now.",
)
SAFE = Turn([1, 2, 3], [SORRY, 20, 99], [(0, 5), (5, 6), (6, 6)])
TRIPLE = Triple(
    prompt=Prompt.of("How?", kind="harmful"),
    safe_response="Sorry.",
    harmful_response="Sure, do it now.",
)


def rows_of_one(rows: Rows, seed: int = 0) -> list[Row]:
    """The rows of TRIPLE; in words k is 0, 2 ("Sure,") or 3 tokens ("Sure, do")."""
    return derta_rows([TRIPLE], [TripleTurns(HARMFUL, SAFE)], SORRY, seed=seed, rows=rows)


def without_id(row: Row) -> tuple[list[int], list[int], str]:
    return row.input_ids, row.labels, row.kind


BY_HAND = {
    "rto": ([1, 2, 3, 10, 11, 12, 13, 14, 15, 99], [-100] * 3 + [SORRY] * 7, "rto"),
    "safe": ([1, 2, 3, SORRY, 20, 99], [-100] * 3 + [SORRY, 20, 99], "safe"),
}
PREFIXES = [
    ([1, 2, 3, *begun, SORRY, 20, 99], [-100] * (3 + len(begun)) + [SORRY, 20, 99], "prefix")
    for begun in ([], [10, 11], [10, 11, 12])
]


def test_vanilla_rows_are_the_question_and_the_safe_response_twice() -> None:
    rows = rows_of_one(("safe", "safe"))
    assert [without_id(row) for row in rows] == [BY_HAND["safe"]] * 2


@pytest.mark.parametrize("rows", [("safe", "rto"), ("rto", "safe"), ["rto", "safe"]])
def test_rto_only_is_an_rto_row_and_a_safe_one(rows: Rows) -> None:
    found = rows_of_one(rows)
    assert [without_id(row) for row in found] == [BY_HAND["rto"], BY_HAND["safe"]]
    assert found[0].row_id == found[1].row_id


def test_prefix_only_is_two_prefixes_of_different_length() -> None:
    """The first is DeRTa's own, so that both trainings see the same prefixes."""
    pairs = Counter()
    for seed in range(3000):
        first, second = rows_of_one(("prefix", "prefix"), seed)
        assert without_id(first) in PREFIXES and without_id(second) in PREFIXES
        assert first == rows_of_one(("prefix", "rto"), seed)[1]
        pairs[len(first.input_ids) - 6, len(second.input_ids) - 6] += 1
    lengths = (0, 2, 3)
    assert set(pairs) == {(a, b) for a in lengths for b in lengths if a != b}
    # each third of first draws is followed by either other length: 500, four deviations are 82
    assert all(count == pytest.approx(500, abs=82) for count in pairs.values())


def test_derta_is_the_rto_row_and_the_prefix_row_and_the_default() -> None:
    rto, prefix = rows_of_one(("prefix", "rto"))
    assert without_id(rto) == BY_HAND["rto"] and without_id(prefix) in PREFIXES
    own = derta_rows([TRIPLE], [TripleTurns(HARMFUL, SAFE)], SORRY)
    assert own == [rto, prefix] == rows_of_one(("rto", "prefix"))


def test_prefix_and_safe_rows_can_stand_together() -> None:
    prefix, safe = rows_of_one(("safe", "prefix"))
    assert without_id(prefix) in PREFIXES and without_id(safe) == BY_HAND["safe"]


@pytest.mark.parametrize("unit", ["words", "tokens"])
@pytest.mark.parametrize("text", ["Sure", "Sure do", "Sure do it"])
def test_the_second_prefix_is_another_one_also_of_a_short_response(unit: Any, text: str) -> None:
    ends = [at for at, sign in enumerate(text + " ") if sign == " "]
    spans = list(zip([0, *ends], ends, strict=False))
    turn = Turn([1], [*range(10, 10 + len(spans)), 99], [*spans, (len(text), len(text))], text)
    for seed in range(200):
        first, second = prefix_lengths(turn, unit, random.Random(seed))
        assert first == prefix_length(turn, text, unit, random.Random(seed))
        assert first != second and 0 <= second <= len(spans)


@pytest.mark.parametrize("unit", ["words", "tokens"])
def test_an_empty_response_has_the_empty_prefix_twice(unit: Any) -> None:
    turn = Turn([1], [99], [(0, 0)])
    assert prefix_lengths(turn, unit, random.Random(0)) == (0, 0)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (["rto", "rto"], "no row then holds a safe response"),
        (["safe"], "allowed are two of safe, prefix, rto"),
        (["safe", "rto", "rto"], "allowed are two of"),
        (["safe", "sft"], r"\['safe', 'sft'\]; allowed are two of"),
    ],
)
def test_other_rows_are_an_error(
    rows: Any, said: str, styles: dict[str, Style], triples: list[Triple], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=said):
        checked_rows(rows)
    with pytest.raises(ValueError, match=said):
        derta_trainer(
            str(styles["qwen"].folder), triples, rows=rows, args={"output_dir": str(tmp_path)}
        )


@pytest.mark.parametrize(
    "rows", [["rto", "rto"], ["safe"], ["safe", "prefix", "rto"], ["safe", "sft"], "rto"]
)
def test_other_rows_in_a_recipe_name_the_key(rows: Any) -> None:
    with pytest.raises(ValueError, match=r"data\.rows"):
        check_body(recipe(rows=rows), "r.yaml")


def recipe(**data: Any) -> dict[str, Any]:
    """A DeRTa recipe as plain values."""
    model = {"model_name_or_path": "my/model"}
    return {"task": "train", "method": "derta", "model": model, "data": data}


def test_derta_s_own_rows_leave_the_run_key_as_it_was_before_there_was_the_key() -> None:
    def resolved(**data: Any) -> dict[str, Any]:
        return check_body(recipe(**data), "r.yaml").model_dump(mode="json")

    own = resolved()
    assert own["data"]["rows"] == ["prefix", "rto"]
    before = {**own, "data": {k: v for k, v in own["data"].items() if k != "rows"}}
    key = run_key(before, {})
    assert key == run_key(own, {}) == run_key(resolved(rows=["rto", "prefix"]), {})
    keys = {run_key(resolved(rows=list(rows)), {}) for rows in ABLATION.values()}
    assert len(keys) == 4 and key in keys
    stages = {"a": own}
    assert run_key({"task": "pipeline", **stages}, {}) == run_key(
        {"task": "pipeline", "a": before}, {}
    )


def test_another_key_of_that_name_and_value_stays_in_the_run_key() -> None:
    """Only `data.rows` of a training came later; a plug's own key `rows` decides what a run makes."""
    value = ["prefix", "rto"]
    for path in (
        ["rows"],
        ["judge", "rows"],
        ["data", "attacks", "rows"],
        ["data", "data", "rows"],
    ):
        nested: Any = value
        for name in reversed(path):
            nested = {name: nested}
        whole = {"task": "train", **nested}
        for body in (whole, {**whole, "data": [nested]}, {"task": "pipeline", "a": whole}):
            assert "rto" in str(keyed(body))
    training = {"task": "train", "data": {"rows": value}}
    for body in (training, {"task": "pipeline", "data": training}):
        assert "rto" not in str(keyed(body))


# the loss


def log_probs(model: Any, asked: list[int], said: list[int]) -> torch.Tensor:
    """(tokens of `said`, vocabulary): log P(. | asked, said_<t)."""
    logits = model(input_ids=torch.tensor([asked + said])).logits[0]
    return logits.log_softmax(-1)[len(asked) - 1 : -1]


@pytest.mark.parametrize("rows", ABLATION.values(), ids=ABLATION)
@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_the_loss_of_each_kind_of_row_by_hand(
    name: str, rows: Rows, styles: dict[str, Style], triples: list[Triple], tmp_path: Path
) -> None:
    """The whole data in one batch, RTO without dropout: log-probs of one row at a time, without
    labels, pads or collator."""
    style = styles[name]
    trainer = derta_trainer(
        style.make_model(),
        triples,
        args={**two_steps(tmp_path), "per_device_train_batch_size": 12, "seed": 3},
        processing_class=style.tokenizer,
        rto_dropout=0,
        rows=rows,
        prefix_unit="tokens",
    )
    batch = next(iter(trainer.get_train_dataloader()))
    count = (batch["labels"] != -100).sum()
    with torch.no_grad():
        loss = trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=count)

    sorry, terms = refusal_token(style.template), []
    sides = triple_sides(triples, style.template)
    made = derta_rows(triples, sides, sorry, seed=3, prefix_unit="tokens", rows=rows)
    with torch.no_grad():
        for at, (harmful, safe) in enumerate(sides):
            for row in made[2 * at : 2 * at + 2]:
                asked = safe.prompt_ids
                if row.kind == "rto":
                    end = harmful.response_ids.index(style.end_of_turn) + 1
                    said = harmful.response_ids[:end]
                    terms += log_probs(trainer.model, asked, said)[:, sorry].tolist()
                    continue
                k = len(row.input_ids) - len(asked) - len(safe.response_ids)
                assert row.kind == "prefix" or k == 0
                seen, said = asked + harmful.response_ids[:k], safe.response_ids
                found = log_probs(trainer.model, seen, said)
                terms += found[range(len(said)), said].tolist()
    assert loss.item() == pytest.approx(-sum(terms) / len(terms), abs=1e-5)
    assert len(terms) == count


def test_first_rows_of_every_kind_are_compared_with_the_template(
    style: Style, triples: list[Triple], tmp_path: Path
) -> None:
    for rows in ABLATION.values():
        prepared = prepared_triples(
            triples,
            "triples",
            template=style.template,
            max_length=None,
            refusal_opener="Sorry",
            rows=rows,
            prefix_unit="words",
            too_long="error",
            seed=0,
            tree=False,
        )
        check_first_rows(prepared, style.template)
        assert prepared.rows is not None
        assert Counter(prepared.rows["kind"]) == Counter(rows * len(triples))
        cut = prepared.rows.map(lambda row: {"labels": [*row["labels"][1:], -100]})
        with pytest.raises(ValueError, match="Row 1 of this training"):
            check_first_rows(prepared._replace(rows=cut), style.template)


# the pipeline and the study


@pytest.fixture
def two_trainings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, styles: dict[str, Style], triples: list[Triple]
) -> Callable[..., Path]:
    """Writes a pipeline of two DeRTa stages, of which the second reads the first one's triples."""
    monkeypatch.chdir(tmp_path)
    write_jsonl("triples.jsonl", triples)

    def write(**second: Any) -> Path:
        stage = {
            "recipe": str(RECIPES / "derta.yaml"),
            "model": {"model_name_or_path": str(styles["llama"].folder)},
            "trainer": {"max_steps": 1, "max_length": 512},
        }
        first = {"triples": "triples.jsonl", "max_triples": 4, "rows": ["safe", "safe"]}
        again = {"triples": "@first.triples", "rows": ["prefix", "rto"]}
        stages = {
            "first": {**stage, "data": {**first, "max_helpful": 2}},
            "second": {**stage, "data": {**again, "max_helpful": 2}, **second},
        }
        path = tmp_path / "pipeline.yaml"
        values = {"task": "pipeline", "seed": 3, "run_dir": "out", "stages": stages}
        path.write_text(yaml.safe_dump(values, sort_keys=False))
        return path

    return write


@pytest.mark.slow
def test_a_later_training_reads_the_triples_of_an_earlier_one_in_their_order(
    two_trainings: Callable[..., Path],
) -> None:
    for name, body in stage_bodies(load_recipe(two_trainings())).items():
        run_stage(linked_stage(body, Path("out")), f"stage {name}", Path("out", name))
    first, second = (
        read_jsonl(Path("out", name, "data.jsonl"), Triple) for name in ("first", "second")
    )
    assert first == second and len(first) == 4
    assert first != read_jsonl("triples.jsonl", Triple)[:4], "drawn by the seed"
    rows = [load_rows(Path("out", name)).rows for name in ("first", "second")]
    assert rows[0] is not None and rows[1] is not None
    assert rows[0]["row_id"] == rows[1]["row_id"] and len(rows[0]) == 4 * 2 + 2
    assert rows[0]["kind"] == ["safe", "safe"] * 4 + ["sft"] * 2
    assert rows[1]["kind"] == ["rto", "prefix"] * 4 + ["sft"] * 2
    status = json.loads(Path("out/second/status.json").read_text())
    assert "data.triples" in status["inputs"]


def test_only_a_derta_stage_has_triples(two_trainings: Callable[..., Path]) -> None:
    path = two_trainings(recipe=str(RECIPES / "dpo.yaml"), data={"pairs": "starter"})
    stage_bodies(load_recipe(path))
    third = "--stages.third.data.triples=@second.triples"
    more = [f"--stages.third.recipe={RECIPES / 'derta.yaml'}", third]
    with pytest.raises(ValueError, match=r"no output 'triples' of a stage 'second'") as caught:
        stage_bodies(load_recipe(path, more))
    assert "@first.triples" in str(caught.value) and "@second.model" in str(caught.value)


def test_the_study_has_the_paper_s_rows_and_differs_in_nothing_else() -> None:
    bodies = stage_bodies(load_recipe(STUDY))
    trained = {name: body for name, body in bodies.items() if isinstance(body, TrainRecipe)}
    assert {name: tuple(body.data["rows"]) for name, body in trained.items()} == ABLATION
    assert {name: body.data["triples"] for name, body in trained.items()} == {
        "vanilla": "starter",
        **dict.fromkeys(("prefix_only", "rto_only", "both"), "@vanilla.triples"),
    }
    rest = [
        {**body.model_dump(), "data": {**body.data, "rows": None, "triples": None}}
        for body in trained.values()
    ]
    assert all(one == rest[0] for one in rest)


def test_the_study_measures_every_training_and_the_start_in_the_same_way() -> None:
    bodies = stage_bodies(load_recipe(STUDY))
    measured = [body for body in bodies.values() if isinstance(body, EvaluateRecipe)]
    models = [body.model["model_name_or_path"] for body in measured]
    assert models[1:] == [f"@{name}.model" for name in ABLATION]
    assert models[0] == "bundled:smollm2-135m-instruct"
    plans = [body.model_dump(exclude={"name", "model"}) for body in measured]
    assert all(plan == plans[0] for plan in plans)
    attacks = ["completing", "prefill", "codeattack", "jailbreakchat", "selfcipher"]
    assert list(measured[0].data.attacks) == attacks


def test_another_model_and_triples_reach_every_training_of_the_study(tmp_path: Path) -> None:
    given = ["--model=my/model", "--stages.vanilla.data.triples=mine.jsonl"]
    bodies = stage_bodies(load_recipe(STUDY, given))
    for name in ABLATION:
        body = bodies[name]
        assert isinstance(body, TrainRecipe)
        assert body.model["model_name_or_path"] == "my/model" and body.model["lora_r"] == 16
        read = "mine.jsonl" if name == "vanilla" else str(tmp_path / "vanilla" / "data.jsonl")
        assert linked_stage(body, tmp_path).data["triples"] == read
    assert "bundled:" not in str([body.model_dump() for body in bodies.values()])


def test_the_trainer_of_a_recipe_has_the_recipe_s_rows(
    styles: dict[str, Style], triples: list[Triple], tmp_path: Path
) -> None:
    style = styles["llama"]
    write_jsonl(tmp_path / "triples.jsonl", triples)
    values = recipe(triples=str(tmp_path / "triples.jsonl"), rows=["rto", "safe"], max_helpful=1)
    values["trainer"] = {"max_length": 512, "use_cpu": True, "bf16": False}
    body = check_body(values, "r.yaml")
    assert isinstance(body, TrainRecipe)
    prepared = prepare(body, read(body), style.template)
    assert "6 harmful prompts, two rows of each (safe, rto)" in prepared.line
    drawn = body.model_copy(update={"data": {**body.data, "max_triples": 4}})
    assert "4 harmful prompts, two rows" in prepare(drawn, read(body), style.template).line
    again = [*triples, triples[0].model_copy(update={"harmful_response": "Sure. Go in."})]
    write_jsonl(tmp_path / "triples.jsonl", again)
    line = prepare(body, read(body), style.template).line
    assert "7 answers to 6 harmful prompts, two rows of each" in line
    trainer = recipe_trainer(
        style.make_model(),
        prepared,
        recipe=body,
        args=method_config(body, {**values["trainer"], "output_dir": str(tmp_path / "out")}),
        template=style.template,
        peft_config=None,
    )
    kinds = [row["kind"] for row in trainer.train_dataset]  # type: ignore[union-attr]
    assert kinds == ["rto", "safe"] * 6 + ["sft"]
