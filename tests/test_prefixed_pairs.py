"""Pairs behind an `assistant_prefix`, in every preference method: the prefix belongs to the prompt,
the sides go on behind it, and an unfinished side has no end of turn."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Style, trainer_settings
from factories import FACTORIES, PAIRED, gradient

from overrefusal_po.judges.refusal import RefusalJudge
from overrefusal_po.model.chat import ChatTemplate
from overrefusal_po.pairs.lint import lint
from overrefusal_po.records import PreferencePair, Prompt
from overrefusal_po.train.data import Prepared
from overrefusal_po.train.first_rows import check_first_rows
from overrefusal_po.train.rows import COLUMNS, fit_pairs, pair_table, prepared_pairs, side_lengths

PATH = "You can do that at home. Open a terminal."
ASKED = Prompt.of("How do I stop a program that hangs?", kind="benign")


def begun(path: str, chosen: str, rejected: str, **fields: Any) -> PreferencePair:
    """A pair whose sides go on behind a path."""
    prompt = ASKED.model_copy(update={"id": f"behind {path}", "assistant_prefix": path})
    name = f"{path}|{chosen}"
    return PreferencePair(id=name, prompt=prompt, chosen=chosen, rejected=rejected, **fields)


STEPS = [
    begun("", "You can do that at home.", "I will tell my neighbor.", unfinished=("chosen",)),
    begun(PATH, " Type the number.", " Use the lock, of course.", unfinished=("rejected",)),
    begun("Here is how to stop it.", " Then use kill and the number.", " I can't help."),
    begun("Sure.", " First push the pin.", " No."),
]
BOTH: Any = ("chosen", "rejected")


def whole(pair: PreferencePair) -> PreferencePair:
    """The pair with its path in both sides."""
    path = pair.prompt.assistant_prefix
    sides = {"chosen": path + pair.chosen, "rejected": path + pair.rejected}
    return pair.model_copy(update={"prompt": ASKED, **sides})


def row_of(pair: PreferencePair, template: ChatTemplate, opening: int | None = None) -> Any:
    (row,) = pair_table([pair], template, opening).to_pylist()
    return row


# --------------------------------------------------------------------------------------------- rows


@pytest.mark.parametrize("number", range(len(STEPS)))
def test_the_prompt_ends_with_the_path_and_the_sides_go_on(number: int, style: Style) -> None:
    pair, template = STEPS[number], style.template
    row, path = row_of(pair, template), pair.prompt.assistant_prefix
    assert row["prompt_ids"] == template.prompt_ids(ASKED.messages, path)
    for side in BOTH:
        turn = template.turn(ASKED.messages, path + getattr(pair, side))
        ids = row["prompt_ids"] + row[f"{side}_ids"]
        all_ids = turn.prompt_ids + turn.response_ids
        if side in pair.unfinished:
            assert ids == turn.prompt_ids + turn.answer_ids
            assert style.end_of_turn not in row[f"{side}_ids"]
        else:
            assert ids == all_ids
            assert row[f"{side}_ids"].count(style.end_of_turn) == 1


def test_a_token_over_the_end_of_the_path_belongs_to_the_sides(style: Style) -> None:
    """Llama has one token for two line ends; the whole turn keeps its tokens all the same."""
    path, template = "Sure.\n", style.template
    pair = begun(path, "\nUse it.", "\nI will not.")
    row = row_of(pair, template)
    for side in BOTH:
        turn = template.turn(ASKED.messages, path + getattr(pair, side))
        ids = turn.prompt_ids + turn.response_ids
        assert row["prompt_ids"] + row[f"{side}_ids"] == ids
    asked = template.prompt_ids(ASKED.messages, path)
    assert row["prompt_ids"] == asked[: len(row["prompt_ids"])]
    assert len(row["prompt_ids"]) == len(asked) - (style.name == "llama")
    check_first_rows(prepared_pairs([pair], template, max_length=None), template)
    found = lint([pair], RefusalJudge(), template=template).findings
    assert "prefix" not in {finding.check for finding in found}


def test_a_path_that_the_template_does_not_keep_is_an_error(style: Style) -> None:
    for path in (" Sure,", "<think>\nHm.\n</think>\n\nSure,"):
        pair = begun(path, " use it.", " not I.")
        with pytest.raises(ValueError, match=r"assistant_prefix .* does not stand at the start"):
            pair_table([pair], style.template)
        errors = lint([pair], RefusalJudge(), template=style.template).errors
        assert {finding.check for finding in errors} == {"prefix"}


def test_lengths_count_the_path_and_openings_begin_behind_it(style: Style) -> None:
    pair, template = STEPS[1], style.template
    table = pair_table([pair], template)
    row = table.to_pylist()[0]
    assert side_lengths(table).tolist() == [[len(row[name]) for name in COLUMNS]]
    longest = len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"]))
    assert fit_pairs([pair], table, max_length=longest).kept == [0]
    with pytest.raises(ValueError, match=f"are {longest} tokens, more than max_length"):
        fit_pairs([pair], table, max_length=longest - 1)
    cut = row_of(pair, template, opening=2)
    assert cut == {**row, **{f"{side}_ids": row[f"{side}_ids"][:2] for side in BOTH}}


# ------------------------------------------------------------------------------------------- losses


def dpo(style: Style, pairs: Any, folder: Path, **more: Any) -> Any:
    """DPO in double precision, of a policy that is not its reference."""
    from overrefusal_po.train.dpo import dpo_trainer

    return dpo_trainer(
        style.make_model().double(),
        pairs,
        args=trainer_settings(folder, len(STEPS)),
        ref_model=style.make_model(seed=1).double(),
        processing_class=style.tokenizer,
        **more,
    )


def one_batch(trainer: Any) -> tuple[float, torch.Tensor]:
    """The loss and the gradient of all pairs."""
    (batch,) = trainer.get_train_dataloader()
    return gradient(trainer, batch)


@pytest.mark.parametrize("shared", [False, True])
def test_dpo_on_the_path_with_a_side_is_dpo_on_the_side_behind_the_path(
    shared: bool, style: Style, tmp_path: Path
) -> None:
    """The common path cancels in the margin."""
    behind = dpo(style, STEPS, tmp_path / "behind", shared_prefix=shared)
    inside = dpo(style, [whole(pair) for pair in STEPS], tmp_path / "inside", shared_prefix=shared)
    prompts = [[len(row["prompt_ids"]) for row in t.train_dataset] for t in (behind, inside)]
    assert sum(prompts[0]) > sum(prompts[1])
    (loss, slopes), (loss2, slopes2) = one_batch(behind), one_batch(inside)
    assert loss == pytest.approx(loss2, abs=1e-6)
    assert abs(loss - 0.6931) > 1e-3 and slopes.abs().max() > 1e-3
    assert (slopes - slopes2).abs().max() < 1e-6


def test_the_store_holds_the_reference_behind_the_path(style: Style, tmp_path: Path) -> None:
    """The same sides behind another path, and the path inside of the sides, are other rows."""
    pair = STEPS[1]
    other = begun("Sure.", pair.chosen, pair.rejected, unfinished=pair.unfinished)
    for pairs in ([pair], [other], [whole(pair)]):
        stored = dpo(style, pairs, tmp_path / "stored", reference_store=tmp_path / "store")
        live = dpo(style, pairs, tmp_path / "live")
        assert one_batch(stored)[0] == pytest.approx(one_batch(live)[0], abs=1e-6)


def trained(method: str, style: Style, pairs: Any, folder: Path, **more: Any) -> Any:
    """The trainer of a method on pairs."""
    model = style.make_model()
    if method == "dpo":
        more["ref_model"] = style.make_model(seed=1)
    args = trainer_settings(folder, len(STEPS))
    return FACTORIES[method](model, pairs, args=args, processing_class=style.tokenizer, **more)


@pytest.mark.parametrize("method", PAIRED)
def test_every_preference_method_trains_behind_the_path(
    method: str, style: Style, tmp_path: Path
) -> None:
    trainer = trained(method, style, STEPS, tmp_path)
    table = pair_table(STEPS, style.template).to_pylist()
    if method == "kto":
        sides = [(row["prompt_ids"], row["completion_ids"]) for row in trainer.train_dataset]
        expected = [(row["prompt_ids"], row[f"{side}_ids"]) for row in table for side in BOTH]
        assert sorted(sides) == sorted(expected)
        return
    rows = [{name: row[name] for name in COLUMNS} for row in trainer.train_dataset]
    assert rows == table
    plain = trained(method, style, STEPS, tmp_path / "plain", shared_prefix=False)
    (loss, slopes), (loss2, slopes2) = one_batch(trainer), one_batch(plain)
    assert loss == pytest.approx(loss2, abs=1e-5) and slopes.abs().max() > 1e-4
    assert (slopes - slopes2).abs().max() < 2e-5 * max(1.0, slopes.abs().max().item())


def test_prepared_rows_keep_their_pairs(style: Style) -> None:
    prepared = prepared_pairs(STEPS, style.template, max_length=None)
    assert isinstance(prepared, Prepared) and list(prepared.records) == STEPS
    check_first_rows(prepared, style.template)
