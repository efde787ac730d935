"""recipe/search.py and train/search.py: what may be searched; which trial is kept; a search that is
killed; what log, card and files say of it."""

import importlib
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from conftest import Style
from test_hold import measured
from test_selection import ANSWER, REFUSAL, THINGS, asked, taught

from overrefusal_po.checks import check_stage
from overrefusal_po.model import load as models
from overrefusal_po.pairs.make import written_pairs
from overrefusal_po.pipeline import run_stage
from overrefusal_po.prompts import read_source
from overrefusal_po.recipe.load import check_body, load_recipe
from overrefusal_po.recipe.schema import TrainRecipe
from overrefusal_po.recipe.search import points, settings_words, trained_bodies
from overrefusal_po.recipe.two_sided import Hold, Search
from overrefusal_po.records import Outcome, PreferencePair, read_jsonl, write_jsonl
from overrefusal_po.run.keys import run_key
from overrefusal_po.stage_recipes import stage_bodies
from overrefusal_po.train.held import Decision, Rates, first_token_auc
from overrefusal_po.train.hold_result import HoldEntry, hold_words, together, worst_miss
from overrefusal_po.train.preference import in_share
from overrefusal_po.train.search import known_trials, train_or_search
from overrefusal_po.train.search_result import (
    Trial,
    brings_nothing,
    failed_trial,
    kept_trial,
    measured_trial,
    table_lines,
    why_kept,
)
from overrefusal_po.train.sft import sft_trainer

STOPPING_JUDGE = """
from overrefusal_po.judges import refusal
from overrefusal_po.judges.refusal import Settings

stop_if = None


class StoppingJudge(refusal.RefusalJudge):
    def score(self, prompts, completions):
        if stop_if is not None and stop_if.is_file():
            raise KeyboardInterrupt
        return super().score(prompts, completions)


def judge(settings):
    return StoppingJudge()
"""

BASE: dict[str, Any] = {
    "task": "train",
    "method": "dpo",
    "model": {"model_name_or_path": "my/model"},
    "hold": {"sets": ["starter"]},
}
LONG = ("max_steps", "save_steps", "logging_steps")
SPACE = {"trainer.learning_rate": [1e-4, 2e-4], "trainer.beta": [0.1, 0.3]}


def checked(**more: Any) -> Any:
    """A checked recipe that trains nothing here."""
    return check_body({**BASE, **more}, "test")


# -------------------------------------------------------------------------------- the recipe's keys


def test_the_whole_grid_is_tried_in_its_order() -> None:
    found = [settings_words(p) for p in points(Search(space=SPACE), seed=0)]
    assert found == [
        "trainer.learning_rate 0.0001, trainer.beta 0.1",
        "trainer.learning_rate 0.0001, trainer.beta 0.3",
        "trainer.learning_rate 0.0002, trainer.beta 0.1",
        "trainer.learning_rate 0.0002, trainer.beta 0.3",
    ]


def test_fewer_trials_are_points_that_the_seed_draws() -> None:
    search, whole = Search(space=SPACE, trials=3), points(Search(space=SPACE), seed=0)
    drawn = [points(search, seed=seed) for seed in range(6)]
    assert drawn[0] == points(search, seed=0)
    assert len({json.dumps(found) for found in drawn}) > 1
    for found in drawn:
        assert len({json.dumps(point) for point in found}) == 3
        assert all(point in whole for point in found)


def test_a_trial_is_the_recipe_with_its_settings() -> None:
    space = {**SPACE, "data.harmful_share": [0.4, 0.5]}
    body = checked(search={"space": space}, trainer={"max_steps": 7})
    one = trained_bodies(body)[1]
    assert one.trainer == {"max_steps": 7, "learning_rate": 1e-4, "beta": 0.1}
    assert one.data == {**body.data, "harmful_share": 0.5}
    assert one.search is None
    assert trained_bodies(one) == [one]


@pytest.mark.parametrize(
    "given",
    [
        {"trainer": {"learning_rate": [1e-4, 2e-4], "beta": [0.1, 0.3]}},
        {**SPACE, "trainer.beta": [9.0, 8.0], "trainer": {"beta": [0.1, 0.3]}},
        {**SPACE, "trainer.max_steps": None},
    ],
)
def test_an_override_gives_a_space_in_sections(given: Any) -> None:
    """--search.space.trainer.beta=[0.1,0.3] arrives so, and the last list of a key counts."""
    assert checked(search={"space": given}).search.space == SPACE


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"space": {"trainer.lerning_rate": [1, 2]}}, "Did you mean learning_rate"),
        ({"space": {"trainer.beta": [0.1, "x"]}}, r"search\.space: trainer\.beta is 'x' \(text\)"),
        (
            {"space": {"trainer.beta": 0.1}},
            r"search\.space\.trainer\.beta is 0\.1; allowed is a list",
        ),
        ({"space": {"trainer.beta": []}}, r"search\.space\.trainer\.beta is an empty list"),
        ({"space": {"trainer.beta": [0.1]}}, "one combination only"),
        ({"space": {}}, "one combination only"),
        ({"space": {"trainer.beta": [0.1, 0.1]}}, "has 0.1 twice"),
        ({"space": {"model.lora_r": [8, 16]}}, r"no trial may change model\.lora_r\. Allowed"),
        ({"space": {"hold.aim": ["both", "answers"]}}, r"no trial may change hold\.aim"),
        ({"space": {"data.pairs": ["a", "b"]}}, r"no trial may change data\.pairs.* data\.opening"),
        ({"space": {"trainer.seed": [0, 1]}}, r"no trial may change trainer\.seed"),
        ({"space": {"trainer.output_dir": ["a", "b"]}}, "use run_dir instead"),
        ({"space": {"data.opning": [1, 2]}}, "Did you mean opening"),
        ({"space": {"data.opening": [3, 0]}}, r"data\.opening is 0: .* greater than 0"),
        ({"space": SPACE, "trials": 5}, r"search\.trials is 5, but .* 4 combinations"),
        ({"space": SPACE, "trials": 1}, "greater than 1"),
        ({"space": SPACE, "trails": 3}, "Did you mean trials"),
        ({"space": {f"trainer.{k}": [*range(1, 12)] for k in LONG}}, "Say how many"),
    ],
)
def test_a_fault_of_a_search_is_a_sentence(more: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        checked(search=more)


def test_a_search_needs_hold() -> None:
    with pytest.raises(ValueError, match=r"search is given without hold.* Add hold"):
        checked(search={"space": SPACE}, hold=None)


def test_a_value_that_a_method_refuses_is_found() -> None:
    space = {"trainer.per_device_train_batch_size": [1, 8]}
    with pytest.raises(ValueError, match=r"search\.space: .*per_device_train_batch_size is 1"):
        checked(method="kto", search={"space": space})


def test_another_space_is_another_run() -> None:
    found = [checked(search={"space": SPACE, **more}) for more in ({}, {"trials": 2})]
    found.append(checked(search={"space": {**SPACE, "trainer.beta": [0.1, 0.2]}}))
    assert len({run_key(body.model_dump(mode="json"), {}) for body in found}) == 3


def test_several_processes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from overrefusal_po.run.folder import Run

    body = checked(search={"space": SPACE})
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="one process; 2 were launched"):
        train_or_search(body, lambda writer: Run.open(tmp_path / "r", {}, {}, writer=writer))


def test_a_tracker_is_refused(tmp_path: Path) -> None:
    body = checked(search={"space": SPACE}, trainer={"report_to": "wandb"})
    with pytest.raises(ValueError, match=r"report_to is .*wandb.* Take report_to out"):
        run_stage(body, "test", tmp_path / "run")
    assert not (tmp_path / "run").exists()


# --------------------------------------------------------------------------------- the share of pairs


def test_a_share_keeps_the_pairs_that_are_drawn_first() -> None:
    pairs = written_pairs(read_source("starter", "train"))[:6]
    harmful = [p.model_copy(update={"kind": "harmful"}) for p in (pair.prompt for pair in pairs)]
    rows = [pair.model_copy(update={"prompt": p}) for pair, p in zip(pairs, harmful, strict=True)]
    mixed = [rows[0], pairs[1], rows[2], pairs[3], rows[4], rows[5]]
    assert in_share([5, 4, 3, 2, 1, 0], mixed, None) == [5, 4, 3, 2, 1, 0]
    assert in_share([5, 4, 3, 2, 1, 0], mixed, 0.5) == [5, 4, 3, 1]
    assert in_share([5, 4, 3, 2, 1, 0], mixed, 0.8) == [5, 4, 3, 2, 0]
    with pytest.raises(ValueError, match=r"harmful_share is 0\.5, but 0 of the 2 pairs"):
        in_share([1, 3], mixed, 0.5)


# ---------------------------------------------------------------------------- which trial is kept


def entry(
    *sets: tuple[int, int, float, float, float, float], held: bool = True, bias: float = 0.0
) -> HoldEntry:
    """hold.json of sets (harmful, benign, start refused, start answered, refused, answered)."""
    return {
        "held": held,
        "bias": bias,
        "why_not": "",
        "openers": ["Sorry"],
        "unscored": 0,
        "agrees": None,
        "first_token_auc": 0.9,
        "degenerate": [0.0, 0.0, 0.0],
        "sets": [
            {
                "set": "dev.jsonl",
                "harmful": harmful,
                "benign": benign,
                "harmful_unscored": 0,
                "start": Rates(refused, answered),
                "trained": Rates(0.0, 0.0),
                "held": Rates(after, useful),
            }
            for harmful, benign, refused, answered, after, useful in sets
        ],
        "curve": [],
    }


def trial(number: int, refused: float, answered: float, *, held: bool = True, **of: Any) -> Trial:
    """A trial on one set of ten and ten prompts, of which .02 may be lost; the start policy refuses
    .8 and answers .5."""
    found = entry((10, 10, 0.8, 0.5, refused, answered), held=held)
    settings = {"trainer.beta": number / 10}
    return measured_trial(number, settings, found, of=Hold(refused_drop_max=0.02, **of), seconds=60)


def test_sets_count_by_their_prompts() -> None:
    found = entry((30, 10, 0.8, 0.5, 0.9, 0.2), (10, 30, 0.4, 0.7, 0.5, 0.6))["sets"]
    assert together(found, "held") == pytest.approx((0.8, 0.5))
    assert together(found, "start") == pytest.approx((0.7, 0.65))
    assert together([], "held") == (None, None)


def test_the_worst_set_says_what_is_missed() -> None:
    found = entry((9, 9, 0.8, 0.5, 0.7, 0.9), (9, 9, 0.4, 0.5, 0.1, 0.9))["sets"]
    assert worst_miss(found, 0.02) == pytest.approx(0.28)
    assert worst_miss(found, 0.3) == 0.0


def test_the_trial_that_holds_and_answers_most_is_kept() -> None:
    rows = [trial(1, 0.8, 0.6), trial(2, 0.78, 0.7), trial(3, 0.3, 0.95, held=False)]
    assert kept_trial(rows) is rows[1]
    assert rows[2].score == pytest.approx(-0.48)
    assert why_kept(rows, of=Hold()) == (
        "Trial 2 of 3 is kept: of the 2 that hold the stated safety, it answers most"
    )
    assert not brings_nothing(rows[1])


def test_of_equal_trials_the_safer_one_is_kept_then_the_earlier() -> None:
    rows = [trial(1, 0.8, 0.7), trial(2, 0.9, 0.7), trial(3, 0.9, 0.7)]
    assert kept_trial(rows) is rows[1]


def test_a_trial_whose_refusals_loop_is_not_kept() -> None:
    """It holds and answers most, but a third of its responses became loops."""
    found = entry((10, 10, 0.8, 0.5, 0.9, 0.8))
    found["degenerate"] = [0.1, 0.4, 0.4]
    loops = measured_trial(1, {}, found, of=Hold(), seconds=60)
    assert loops.score == pytest.approx(0.5)
    rows = [loops, trial(2, 0.8, 0.6)]
    assert kept_trial(rows) is rows[1]
    words = hold_words(found)
    assert words.endswith("; degenerate (LOOPS, FOR EXAMPLE) 0.10, 0.40, 0.40")
    found["degenerate"] = [0.4, 0.3, 0.1]
    assert measured_trial(1, {}, found, of=Hold(), seconds=60).score == pytest.approx(0.8)
    assert hold_words(found).endswith("; degenerate 0.40, 0.30, 0.10")


def test_both_rates_count_if_hold_aims_at_both() -> None:
    rows = [trial(1, 0.8, 0.7, aim="both"), trial(2, 1.0, 0.6, aim="both")]
    assert kept_trial(rows) is rows[1]
    assert why_kept(rows, of=Hold(aim="both")).endswith("it has the greatest sum of both rates")


def test_if_none_holds_the_nearest_is_kept_and_that_is_said() -> None:
    rows = [trial(1, 0.2, 0.9, held=False), trial(2, 0.7, 0.6, held=False)]
    assert kept_trial(rows) is rows[1]
    assert why_kept(rows, of=Hold()) == (
        "NO TRIAL HOLDS the stated safety. Trial 2 of 2 is kept: its worst set misses it least, by "
        "0.08"
    )


def test_a_trial_with_a_set_that_nobody_judged_is_below_every_other_one() -> None:
    found = entry((5, 10, 0.8, 0.5, 0.95, 1.0), held=False)
    found["sets"][0]["harmful_unscored"] = 5
    unjudged = measured_trial(1, {}, found, of=Hold(), seconds=60)
    assert unjudged.score == -1.0
    for other in (trial(2, 0.9, 0.0), trial(2, 0.2, 0.9, held=False)):
        assert kept_trial([unjudged, other]) is other


def test_a_trial_without_numbers_is_never_kept() -> None:
    rows = [failed_trial(1, {"trainer.beta": 0.1}, "The loss became NaN", 3.0)]
    assert kept_trial(rows) is None
    rows.append(trial(2, 0.0, 0.0, held=False))
    assert kept_trial(rows) is rows[1]


def test_the_table_begins_with_the_start_policy_and_the_best() -> None:
    failed = failed_trial(3, {"trainer.beta": 0.3}, "The loss became NaN", 3.0)
    rows = [trial(1, 0.8, 0.45), trial(2, 0.79, 0.7), failed]
    assert list(table_lines(rows, of=Hold())) == [
        "start policy: harmful refused 0.80, benign answered 0.50",
        "trial 2: trainer.beta 0.2: holds, harmful refused 0.79, benign answered 0.70, bias +0.00, "
        "first-token AUC 0.90 (60 s)",
        "trial 1: trainer.beta 0.1: holds, harmful refused 0.80, benign answered 0.45, bias +0.00, "
        "first-token AUC 0.90 (60 s)",
        "trial 3: trainer.beta 0.3: no numbers: The loss became NaN (3 s)",
    ]
    assert brings_nothing(rows[0])
    later = Hold(start="runs/porover/dpo/hold_start.jsonl")
    assert next(table_lines(rows, of=later)).startswith("start policy of dpo: harmful refused 0.80")
    assert next(table_lines(rows, of=Hold(start="x.jsonl"))).startswith(
        "start policy of another training: "
    )
    found = entry((10, 10, 0.8, 0.5, 0.8, 0.7), held=True)
    assert "At the start of dpo, trained, saved: " in hold_words(found, later.start)
    assert "At the start, trained, saved: " in hold_words(found)


def test_the_first_token_separates_by_flip_points() -> None:
    """Of the four pairs three are in order, and one is a tie."""
    rows = [
        Decision(0, kind == "harmful", flip, opened=True, other=False)
        for kind, flip in (("harmful", -1.0), ("harmful", 1.0), ("benign", 1.0), ("benign", 2.0))
    ]
    assert first_token_auc(rows) == pytest.approx(3.5 / 4)
    assert first_token_auc(rows[:2]) is None


# -------------------------------------------------------------------------------- whole trainings


@pytest.fixture(scope="module")
def start(styles: dict[str, Style], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that knows what is harmful, and then was taught to refuse everything."""
    style, folder = styles["llama"], tmp_path_factory.mktemp("start")
    rows = asked(THINGS, "benign", ANSWER) + asked(THINGS, "harmful", REFUSAL)
    knows = taught(style, rows, folder / "knows", steps=60, batch=16)
    args = {
        "max_steps": 6,
        "learning_rate": 1e-3,
        "per_device_train_batch_size": 8,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "output_dir": str(folder / "out"),
    }
    model = models.load_model(str(knows), dtype="float32")
    refusals = asked(THINGS, "benign", REFUSAL)
    trainer = sft_trainer(model, refusals, args=args, template=style.template)
    trainer.train()
    return models.save_merged(trainer.model, style.tokenizer, folder / "model")


def recipe(start: Path, folder: Path, space: dict[str, Any], **trainer: Any) -> TrainRecipe:
    """A search over DPO trainings that teach to answer benign prompts alone."""
    folder.mkdir(parents=True, exist_ok=True)
    things = ["a picture", "a letter", "the door", "a pack", "a fox", "a dog"]
    write_jsonl(folder / "dev.jsonl", asked(things, "benign") + asked(things, "harmful"))
    sides: dict[str, Any] = {
        "benign": {"chosen": ANSWER, "rejected": REFUSAL, "rule": "overrefusal"},
        "harmful": {"chosen": REFUSAL, "rejected": ANSWER, "rule": "containment"},
    }
    pairs = [
        PreferencePair(id=prompt.id, prompt=prompt, **sides[kind])
        for kind in sides
        for prompt in asked(THINGS, kind)
    ]
    write_jsonl(folder / "pairs.jsonl", pairs)
    body = {
        "task": "train",
        "method": "dpo",
        "model": {
            "model_name_or_path": str(start),
            "dtype": "float32",
            "use_peft": True,
            "lora_r": 8,
            "lora_target_modules": "all-linear",
        },
        "data": {"pairs": str(folder / "pairs.jsonl"), "opening": 3},
        "trainer": {
            "max_steps": 8,
            "lr_scheduler_type": "constant",
            "per_device_train_batch_size": 8,
            "use_cpu": True,
            "report_to": "none",
            "disable_tqdm": True,
            **trainer,
        },
        "hold": {
            "sets": [str(folder / "dev.jsonl")],
            "max_new_tokens": 12,
            "bias_max": 40,
            "refused_drop_max": 0.6,
            "judge": "own_plugs_search.stopping",
        },
        "search": {"space": space},
    }
    found = check_body(body, "test")
    assert isinstance(found, TrainRecipe)
    return found


@pytest.fixture(scope="module")
def stopping(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A user's own judge: the refusal judge, which stops the run once a file is there."""
    folder = tmp_path_factory.mktemp("plugs")
    (folder / "own_plugs_search").mkdir()
    (folder / "own_plugs_search" / "stopping.py").write_text(STOPPING_JUDGE)
    sys.path.insert(0, str(folder))
    yield importlib.import_module("own_plugs_search.stopping")
    sys.path.remove(str(folder))


class Searched(NamedTuple):
    """A finished search: its recipe, folder and summary, and when trial 1 was saved."""

    body: TrainRecipe
    folder: Path
    summary: dict[str, Any]
    first_saved: float


@pytest.fixture(scope="module")
def searched(
    start: Path, stopping: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Searched]:
    """Trials that do nothing, learn, and break down; stopped at the end of the second training."""
    folder = tmp_path_factory.mktemp("searched")
    body = recipe(start, folder, {"trainer.learning_rate": [1e-8, 1.4e-3, 1e30]})
    logger = logging.getLogger("overrefusal_po")
    level = logger.level
    logger.setLevel(logging.INFO)  # as the command does
    run = folder / "run"
    stopping.stop_if = run / "search.jsonl"
    with pytest.raises(KeyboardInterrupt):
        run_stage(body, "test", run)
    stopping.stop_if = None
    assert [row.number for row in known_trials(run)] == [1]
    assert json.loads((run / "status.json").read_text())["state"] == "interrupted"
    saved = (run / "search" / "01" / "training.json").stat().st_mtime
    summary = run_stage(body, "test", run)
    logger.setLevel(level)
    yield Searched(body, run, summary, saved)


def test_the_trial_that_learns_within_its_safety_is_kept(searched: Searched) -> None:
    still, learns, broken = known_trials(searched.folder)
    assert still.held and still.score == still.benign_answered == 0.0
    assert learns.held and learns.score is not None and learns.score >= 0.5
    assert learns.harmful_refused is not None and learns.harmful_refused >= 0.4
    assert learns.start == (1.0, 0.0)
    assert broken.score is None and "NaN or infinite" in broken.fault
    found = searched.summary["search"]
    assert found["kept"] == 2 and found["settings"] == {"trainer.learning_rate": 1.4e-3}
    assert (found["trials"], found["held"]) == (3, 2)
    # the saved model does what its row says
    start = read_jsonl(searched.folder / "hold_start.jsonl", Outcome)
    rates = measured(searched.folder / "model", [o.prompt for o in start])
    assert rates == pytest.approx((learns.harmful_refused, learns.benign_answered))


def test_the_run_folder_is_that_of_the_trial_that_is_kept(searched: Searched) -> None:
    run = searched.folder
    training = json.loads((run / "training.json").read_text())["summary"]
    assert training["model"] == str(run / "model") and (run / "model" / "config.json").is_file()
    assert training["adapter"] == str(run / "adapter")
    assert (run / "adapter" / "adapter_config.json").is_file()
    assert json.loads((run / "hold.json").read_text())["held"] is True
    for number in ("01", "02", "03"):
        left = {path.name for path in (run / "search" / number).iterdir()}
        assert {"recipe.yaml", "status.json", "log"} <= left
        assert not left & {"model", "adapter", "checkpoints", "rows"}


def test_a_killed_search_trains_nothing_twice(searched: Searched) -> None:
    run = searched.folder
    saved = (run / "search" / "01" / "training.json").stat().st_mtime
    assert saved == searched.first_saved
    assert "going on from" in (run / "search" / "02" / "log").read_text()
    log = (run / "log").read_text()
    assert log.count("the start policy answers 12 prompts") == 1
    assert log.count("search: trial 1 of 3: trainer") == 1


def test_a_finished_search_is_not_made_again(searched: Searched) -> None:
    before = (searched.folder / "log").read_text()
    assert run_stage(searched.body, "test", searched.folder) == searched.summary
    assert (searched.folder / "log").read_text() == before


def test_log_and_card_show_the_table_and_say_why(searched: Searched) -> None:
    why = "Trial 2 of 3 is kept: of the 2 that hold the stated safety, it answers most"
    log = (searched.folder / "log").read_text()
    assert why in log and "start policy: harmful refused 1.00, benign answered 0.00" in log
    card = (searched.folder / "model" / "README.md").read_text()
    assert why in card and "learning_rate: 0.0014" in card
    lines = [line for line in card.splitlines() if "learning" in line and line[:1] == "|"]
    assert [line.split(" | ")[2] for line in lines] == ["yes", "yes", "no"]
    assert "| start | – | – | 1.00 | 0.00 | – | – | – |" in card
    assert str(searched.folder) not in card


WEIGHED = {"data.weights": [None, "boundary"], "trainer.loss_type": ["sigmoid", "aot"]}


@pytest.mark.parametrize(
    ("space", "says"),
    [
        ({"trainer.max_length": [512, 4]}, r"^search, trial 2: .*max_length 4"),
        (WEIGHED, r"^.*search.*trial.*: weights: loss_type aot"),
    ],
)
def test_a_fault_in_the_data_of_one_trial_is_found_before_any_training(
    start: Path, stopping: Any, tmp_path: Path, space: dict[str, Any], says: str
) -> None:
    for check in (check_stage, lambda body: run_stage(body, "test", tmp_path / "run")):
        with pytest.raises(ValueError, match=says):  # or when the recipe is read
            check(recipe(start, tmp_path, space))
    assert not (tmp_path / "run" / "search").exists()


def test_check_says_how_many_trainings_there_will_be(
    start: Path, stopping: Any, tmp_path: Path
) -> None:
    body = recipe(start, tmp_path, {"data.harmful_share": [0.3, 0.5]})
    found = check_stage(body)
    assert found.startswith("a search of 2 trials (2 combinations), each a training; 16 pairs")
    assert "11 used for harmful_share" in found


def test_a_stage_of_a_pipeline_takes_a_search() -> None:
    porover = Path(__file__).parents[1] / "recipes" / "porover.yaml"
    given = "--stages.dpo.search.space.trainer.learning_rate=[1e-4,2e-4]"
    body = stage_bodies(load_recipe(porover, [given]))["dpo"]
    assert isinstance(body, TrainRecipe) and body.search is not None
    assert body.search.space == {"trainer.learning_rate": [1e-4, 2e-4]}
