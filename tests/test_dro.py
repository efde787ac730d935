"""train/dro.py: DRO's loss by hand, its trainer, and a whole run of the stage on a tiny model."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Style
from factories import lora, two_steps
from safetensors.torch import load_file
from test_interrupts import history, killed, weights
from test_selection import ANSWER, REFUSAL, THINGS, asked, taught
from transformers import AutoModelForCausalLM, AutoTokenizer

from overrefusal_po.checks import check_stage
from overrefusal_po.model import load as models
from overrefusal_po.model.chat import ChatTemplate
from overrefusal_po.model.soft_tokens import soft_ids
from overrefusal_po.pipeline import run_stage
from overrefusal_po.recipe.load import check_body
from overrefusal_po.records import Prompt, Verdict, write_jsonl
from overrefusal_po.report.training import training_rows
from overrefusal_po.train.dro import DROConfig, DROTrainer, dro_trainer
from overrefusal_po.train.dro_loss import Directions, directions, dro_terms, probe
from overrefusal_po.train.dro_rows import both_ways, check_shares, shares

TEXT = "You are a helpful assistant."
NO_SHIFT = math.log(2) * 1.01
"""The loss if no state has moved: both probes at their start, weighed 1 and .01."""


# ----------------------------------------------------------------------------------- loss, by hand


def known() -> Directions:
    """Two dimensions of four: the first says what is answered, the second what is harmless."""
    basis = torch.eye(4)[:, :2]
    return Directions(basis, torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), (1, 1), 1.0)


def loss_of(moved: torch.Tensor, harmless: torch.Tensor) -> float:
    return float(dro_terms(moved, harmless, known()).loss(harm_weight=0.01, rest_weight=0.001))


def test_without_a_shift_the_loss_is_ln_2_times_1_01() -> None:
    found = loss_of(torch.zeros(2, 4), torch.tensor([0.0, 1.0]))
    assert found == pytest.approx(NO_SHIFT) == pytest.approx(0.7001, abs=5e-5)


def test_a_shift_worked_by_hand() -> None:
    """ln 3 towards answers gives sigma = 3/4; outside of the basis 2 and 0 have the mean square
    2."""
    moved = torch.tensor([[math.log(3), 0.0, 2.0, 0.0]])
    rest = 0.01 * math.log(2) + 0.001 * 2
    assert loss_of(moved, torch.tensor([1.0])) == pytest.approx(-math.log(3 / 4) + rest)
    assert loss_of(moved, torch.tensor([0.0])) == pytest.approx(-math.log(1 / 4) + rest)


def test_the_rest_is_the_mean_square_of_the_completed_basis() -> None:
    """The released code completes the basis by Gram-Schmidt; any completion gives the same."""
    torch.manual_seed(0)
    whole = torch.linalg.qr(torch.randn(6, 6)).Q
    found = Directions(whole[:, :2], torch.zeros(2), torch.zeros(2), (1, 1), 1.0)
    moved = torch.randn(3, 6)
    wanted = (moved @ whole)[:, 2:].square().mean()
    assert torch.allclose(dro_terms(moved, torch.zeros(3), found).rest, wanted)


def test_directions_are_where_answers_and_harm_show() -> None:
    """The first axis is long and says what is answered, the second is shorter and says the harm."""
    states = torch.tensor([[x, y, 0.0] for x in (-4.0, 4.0) for y in (-1.0, 1.0)]) + 7.0
    answered, harmless = torch.tensor([0.0, 0.0, 1.0, 1.0]), torch.tensor([0.0, 1.0, 0.0, 1.0])
    found = directions(states, answered, harmless, dimensions=2)
    assert torch.allclose(found.basis.T @ found.basis, torch.eye(2), atol=1e-6)
    more_answers, more_harmless = found.basis @ found.answers, found.basis @ found.harmless
    assert more_answers[0] > 0.1 and abs(float(more_answers[1])) < 1e-3
    assert more_harmless[1] > 0.1 and abs(float(more_harmless[0])) < 1e-3
    assert found.fits == (1.0, 1.0) and found.kept == pytest.approx(1.0)


def test_a_state_without_a_scored_answer_says_nothing_of_answers() -> None:
    states = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [9.0, 1.0]])
    share = torch.tensor([0.0, 1.0, math.nan])
    assert directions(states, share, torch.tensor([0.0, 1.0, 1.0]), dimensions=1).answers.isfinite()


def test_a_probe_learns_shares() -> None:
    """Rows with the same coordinates and the share .75 have a log-odds near ln 3."""
    inside = torch.tensor([[-1.0], [1.0]]).repeat(2000, 1).double()
    share = torch.tensor([0.25, 0.75]).repeat(2000).double()
    assert float(probe(inside, share).weights) == pytest.approx(math.log(3), abs=0.01)


def test_more_dimensions_than_states_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"dimensions is 4, and there are 3 states"):
        directions(torch.randn(3, 8), torch.zeros(3), torch.ones(3), dimensions=4)


# -------------------------------------------------------------------------------------- what is said


def test_a_share_counts_the_scored_answers() -> None:
    one, other = Prompt.of("a", kind="benign"), Prompt.of("b", kind="harmful")
    said = [(one, "full"), (one, "none"), (one, None), (one, "partial"), (other, None)]
    rows = [
        (
            prompt,
            Verdict(
                completion_id=str(n),
                judge="j",
                version="1",
                refusal=refusal,  # type: ignore[arg-type]
                unscored=None if refusal else "no reply",
            ),
        )
        for n, (prompt, refusal) in enumerate(said)
    ]
    found = shares(rows)
    assert found[one.id] == pytest.approx(1 / 3) and math.isnan(found[other.id])


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({"a": 1.0, "b": 1.0}, "refuses none of the 2 prompts"),
        ({"a": 0.0, "b": 0.0, "c": math.nan}, "answers none of the 2 prompts"),
        ({"a": math.nan}, "scored none of the answers to the 1 prompts"),
    ],
)
def test_a_model_that_shows_no_difference_is_an_error(found: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        check_shares(found)


# --------------------------------------------------------------------------------------- the trainer


def anchors() -> list[Prompt]:
    return asked(THINGS[:4], "benign") + asked(THINGS[:4], "harmful")


def answers() -> dict[str, float]:
    """Harmful prompts and every second harmless one are refused."""
    both = both_ways(anchors(), TEXT)
    return {p.id: float(p.kind == "benign" and at % 2) for at, p in enumerate(both)}


def trainer_of(style: Style, folder: Path, **more: Any) -> DROTrainer:
    args = {**two_steps(folder), "per_device_train_batch_size": 8, "max_steps": 4}
    args["learning_rate"] = 1e-3
    keys = {"text": TEXT, "answered": answers(), "processing_class": style.tokenizer, **more}
    return dro_trainer(style.make_model(), anchors(), args=args, **keys)


def test_the_rows_of_the_new_tokens_alone_are_trained(style: Style, tmp_path: Path) -> None:
    trainer = trainer_of(style, tmp_path)
    assert isinstance(trainer, DROTrainer) and isinstance(trainer.args, DROConfig)
    before, size = style.make_model().state_dict(), len(style.tokenizer)
    trained = [n for n, w in trainer.model.named_parameters() if w.requires_grad]
    assert trained == ["model.embed_tokens.soft_rows"]
    trainer.train()
    after = trainer.model.state_dict()
    assert after.keys() == before.keys()
    for name, weight in before.items():
        assert torch.equal(after[name][: len(weight)], weight), name
    ids = soft_ids(trainer.processing_class)
    rows = after["model.embed_tokens.weight"][ids]
    assert len(ids) == len(rows) and ids[0] == size and not torch.equal(rows, rows * 0)
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    if style.name != "mistral":  # whose text shares a token with what stands before it
        assert losses[0] == pytest.approx(NO_SHIFT, abs=1e-4)
        assert losses[-1] < losses[0]
    assert {"answers_loss", "harm_loss", "rest_loss"} <= trainer.state.log_history[0].keys()
    assert trainer.evaluate(trainer.train_dataset)["eval_loss"] == pytest.approx(losses[-1], abs=1)
    with pytest.raises(ValueError, match="has trained"):
        trainer.train()


def test_a_resumed_training_is_that_of_one_that_never_stopped(
    styles: dict[str, Style], tmp_path: Path
) -> None:
    found = []
    for resume in (None, str(tmp_path / "out" / "checkpoint-2")):
        trainer = trainer_of(styles["qwen"], tmp_path)
        trainer.args.save_strategy, trainer.args.save_steps = "steps", 2  # type: ignore[assignment]
        trainer.train(resume_from_checkpoint=resume)
        found.append(trainer.model.get_input_embeddings().weight)
    assert torch.equal(*found)


def test_a_loaded_model_is_asked_itself(styles: dict[str, Style], tmp_path: Path) -> None:
    """A model with random weights refuses nothing, and says so."""
    with pytest.raises(ValueError, match="refuses none of the 16 prompts"):
        trainer_of(styles["qwen"], tmp_path, answered=None, max_new_tokens=4)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"peft_config": lora}, "takes no adapter"),
        ({"ref_model": object}, "ref_model must be None"),
        ({"text": " "}, "is empty"),
    ],
)
def test_what_dro_cannot_use_is_an_error(
    more: dict[str, Any], said: str, styles: dict[str, Style], tmp_path: Path
) -> None:
    given = {k: v() if callable(v) else v for k, v in more.items()}
    with pytest.raises(ValueError, match=said):
        trainer_of(styles["qwen"], tmp_path, **given)


@pytest.mark.parametrize(
    ("prompts", "said"),
    [
        ([], "at least one harmful and one harmless prompt; got none"),
        (asked(["a lock"], "harmful"), "got 1 and 0"),
        (asked(["a lock"], "benign"), "got 0 and 1"),
    ],
)
def test_prompts_of_one_kind_are_an_error(
    prompts: list[Prompt], said: str, styles: dict[str, Style], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=said):
        dro_trainer(str(styles["qwen"].folder), prompts, args=two_steps(tmp_path))


def test_sharded_weights_are_refused(
    styles: dict[str, Style], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match=r"DRO trains a few rows .* FSDP would shard them"):
        trainer_of(styles["qwen"], tmp_path)


# ----------------------------------------------------------------------------------------- the stage


@pytest.fixture(scope="module")
def refuser(styles: dict[str, Style], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that refuses harmful prompts. It has not seen a system turn, and says neither
    behind one."""
    rows = asked(THINGS, "harmful", REFUSAL) + asked(THINGS, "benign", ANSWER)
    return taught(styles["llama"], rows, tmp_path_factory.mktemp("refuser"), steps=40, batch=16)


def values(place: Path, folder: Path, **more: Any) -> dict[str, Any]:
    """A recipe of four steps, its prompts written into `folder`."""
    folder.mkdir(exist_ok=True)
    sources = {k: folder / f"{k}.jsonl" for k in ("harmful", "benign")}
    for kind, file in sources.items():
        write_jsonl(file, asked(THINGS, kind))
    found: dict[str, Any] = {
        "task": "train",
        "method": "dro",
        "model": {"model_name_or_path": str(place), "dtype": "float32"},
        "data": {"prompt": TEXT, **{k: str(v) for k, v in sources.items()}},
        "generation": {"max_new_tokens": 12},
        "trainer": {
            "max_steps": 4,
            "per_device_train_batch_size": 8,
            "learning_rate": 1e-2,
            "logging_steps": 1,
            "save_steps": 1,
            "max_length": 256,
            "report_to": "none",
            "disable_tqdm": True,
        },
    }
    for key, value in more.items():
        found[key] = {**found.get(key, {}), **value}
    return found


def run(body: dict[str, Any], folder: Path) -> dict[str, Any]:
    return run_stage(check_body(body, "test"), "dro", folder)  # type: ignore[arg-type]


def test_a_run_under_autocast_saves_what_it_trained(refuser: Path, tmp_path: Path) -> None:
    body = values(refuser, tmp_path / "data", trainer={"bf16": True, "use_cpu": True})
    run(body, tmp_path / "run")
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()


def test_a_run_leaves_a_plain_model_that_is_measured_like_any_other(
    refuser: Path, tmp_path: Path
) -> None:
    body = values(refuser, tmp_path / "data")
    line = check_stage(check_body(body, "test"))  # type: ignore[arg-type]
    assert line.startswith("16 prompts, ") and "soft tokens" in line
    summary = run(body, tmp_path / "run")
    assert summary["steps"] == 4 and not (tmp_path / "run" / "adapter").exists()
    folder = tmp_path / "run" / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = soft_ids(tokenizer)
    plain = AutoModelForCausalLM.from_pretrained(folder)
    assert plain.generation_config.suppress_tokens == ids
    start = AutoModelForCausalLM.from_pretrained(refuser).get_input_embeddings().weight
    assert torch.equal(plain.get_input_embeddings().weight[: len(start)], start)
    said = [json.loads(row) for row in (tmp_path / "run" / "student_harmful.jsonl").open()]
    assert len(said) == 32  # with the text and without it

    measured: dict[str, Any] = {
        "task": "evaluate",
        "model": {"model_name_or_path": str(folder)},
        "data": {"sets": [body["data"]["harmful"], body["data"]["benign"]], "split": None},
        "generation": {"max_new_tokens": 12},
    }
    found = run_stage(check_body(measured, "test"), "after", tmp_path / "after")  # type: ignore[arg-type]
    assert found and (tmp_path / "after" / "outcomes.jsonl").is_file()
    template = ChatTemplate(models.load_tokenizer(str(folder)))
    assert set(ids) <= set(template.prompt_ids(asked(["a lock"], "benign")[0].messages))
    recipe = {"method": "dro", "model": {}, "trainer": {}, "data": {}}
    rows = dict(training_rows(recipe, tmp_path / "run"))
    assert rows["trained weights"] == "the embedding rows of new tokens alone"


def test_a_run_that_was_killed_ends_as_one_that_was_not(
    refuser: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After step 2, and after the last step, when only the saving was left."""
    monkeypatch.chdir(tmp_path)
    body = values(refuser, tmp_path / "data")
    run(body, tmp_path / "whole")
    for last in (2, 4):
        killed("whole", f"after{last}", last)
        run(body, tmp_path / f"after{last}")
        assert history(f"after{last}") == history("whole")
        assert weights(f"after{last}") == weights("whole")


def test_several_samples_of_each_prompt_are_drawn(refuser: Path, tmp_path: Path) -> None:
    more = {"data": {"samples": 2}, "generation": {"temperature": 1.0}, "trainer": {"max_steps": 1}}
    run(values(refuser, tmp_path / "data", **more), tmp_path / "run")
    assert len((tmp_path / "run" / "student_harmful.jsonl").read_text().splitlines()) == 64


def test_the_rows_of_the_selected_step_are_saved(refuser: Path, tmp_path: Path) -> None:
    """The looks are made with the soft tokens in the system turn, and what is kept is the rows."""
    dev = ["a picture", "a letter", "the door"]
    sets = write_jsonl(tmp_path / "dev.jsonl", asked(dev, "harmful") + asked(dev, "benign"))
    select = {"every_steps": 2, "sets": [str(sets)], "split": None, "max_new_tokens": 12}
    summary = run(values(refuser, tmp_path / "data", select=select), tmp_path / "run")
    kept = load_file(
        tmp_path / "run" / "selection" / f"step-{summary['selected_step']}.safetensors"
    )
    ((name, rows),) = kept.items()
    assert name.endswith("soft_rows")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    ids = soft_ids(AutoTokenizer.from_pretrained(tmp_path / "run" / "model"))
    assert torch.equal(model.get_input_embeddings().weight[ids], rows)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"model": {"use_peft": True}}, "model.use_peft is true, and method: dro trains"),
        ({"model": {"use_peft": True, "load_in_4bit": True}}, "take use_peft, load_in_4bit out"),
        ({"model": {"load_in_8bit": True}}, "no quantised weights: take load_in_8bit out"),
        ({"trainer": {"packing": True}}, "DRO reads the last token of each"),
        ({"trainer": {"dimensions": 0}}, "trainer.dimensions is 0"),
        ({"chat": {"system_prompt": "Be brief."}}, "chat.system_prompt is 'Be brief.'"),
        ({"data": {"samples": 3}}, "data.samples is 3 and generation.temperature is 0"),
        ({"trainer": {"max_length": 8}}, "more than max_length 8"),
        ({"trainer": {"fsdp": True}}, "FSDP would shard"),
        ({"trainer": {"deepspeed": {"zero_optimization": {"stage": 1}}}}, "ZeRO. would shard"),
        ({"data": {"prompt": " "}}, "is empty"),
    ],
)
def test_a_recipe_that_cannot_be_trained_is_an_error(
    more: dict[str, Any], said: str, styles: dict[str, Style], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=said):
        run(values(styles["qwen"].folder, tmp_path / "data", **more), tmp_path / "run")
