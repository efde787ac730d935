"""Pairs for openings, and which tokens a student may not use: values by hand."""

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from conftest import Style, judged_outcome

from overrefusal_po.checks import check_openings_used
from overrefusal_po.cli import main
from overrefusal_po.curate.clear_openings import ANSWER_SIDE, REFUSAL_SIDE, clear_openings
from overrefusal_po.curate.overgenerate import Curation
from overrefusal_po.curate.quotas import Result
from overrefusal_po.judges.refusal import RefusalJudge
from overrefusal_po.pairs.lint import lint
from overrefusal_po.recipe.load import check_body
from overrefusal_po.records import (
    Outcome,
    PreferencePair,
    Prompt,
    Rule,
)
from overrefusal_po.run.openers import (
    every_opener,
    first_tokens,
    opens_with,
    raised_openers,
    refusal_openers,
)

RECIPES = Path(__file__).parents[1] / "recipes"
REFUSAL, ANSWER = "Sorry, I can't help with that.", "Open the manual at page one."
LATE = "Open the manual at page one. Sorry, I can't help with that."


def pair(rule: Rule, chosen: str, rejected: str) -> Result[PreferencePair]:
    kind = "harmful" if rule == "containment" else "benign"
    prompt = Prompt.of(f"{rule} {chosen} {rejected}", kind=kind)
    made = PreferencePair(
        id=prompt.id, prompt=prompt, chosen=chosen, rejected=rejected, rule=rule, reason="made"
    )
    return Result(prompt, made, "made")


def curation(style: Style, *, openings: bool, suppressed: tuple[int, ...]) -> Curation:
    """What `clear_openings` reads of a curation."""
    found: Any = SimpleNamespace(
        recipe=SimpleNamespace(data=SimpleNamespace(openings=openings)),
        suppressed=suppressed,
        models=SimpleNamespace(student=SimpleNamespace(template=style.template)),
    )
    return cast("Curation", found)


def test_a_side_that_opens_unlike_what_it_is_makes_no_pair(styles: dict[str, Style]) -> None:
    style = styles["llama"]
    (sorry,) = first_tokens(style.template, [REFUSAL])
    rows = [
        pair("overrefusal", ANSWER, REFUSAL),
        pair("overrefusal", ANSWER, LATE),
        pair("overrefusal", "Sorry, of course: " + ANSWER, REFUSAL),
        pair("containment", REFUSAL, ANSWER),
        pair("containment", LATE, ANSWER),
        pair("containment", REFUSAL, "Sorry to hear that. " + ANSWER),
        Result(Prompt.of("none", kind="benign"), None, "the student answers it"),
    ]
    found = clear_openings(curation(style, openings=True, suppressed=(sorry,)), rows)
    made = [result.row is not None for result in found]
    assert made == [True, False, False, True, False, False, False]
    assert [found[i].reason for i in (1, 2, 4, 5, 6)] == [
        REFUSAL_SIDE,
        ANSWER_SIDE,
        REFUSAL_SIDE,
        ANSWER_SIDE,
        "the student answers it",
    ]
    # whole sides are another thing, and so is a student whose openers are not known
    for openings, suppressed in ((False, (sorry,)), (True, ())):
        given = curation(style, openings=openings, suppressed=suppressed)
        assert clear_openings(given, rows) == rows


def outcome(text: str, number: int) -> Outcome:
    return judged_outcome(Prompt.of(f"{text} {number}", kind="benign"), text)


@pytest.mark.parametrize(("unfortunate", "added"), [(0, True), (2, True), (3, False)])
def test_a_common_opener_is_added_if_it_opens_few_answers(
    styles: dict[str, Style], unfortunate: int, added: bool
) -> None:
    """Of 100 answers 2 are 2 %. "U" is the first token of "Unfortunately" in this vocabulary."""
    template = styles["llama"].template
    texts = [ANSWER] * (100 - unfortunate) + ["U open the manual at page one."] * unfortunate
    rows = [outcome(text, n) for n, text in enumerate([*texts, REFUSAL, REFUSAL])]
    found = every_opener(template, rows)
    assert refusal_openers(template, rows).tokens == ["Sorry"]
    assert ("U" in found.tokens) is added
    assert len(found.tokens) == len(set(found.tokens)) == len(found.ids)
    assert found.refusals_opened == 1.0
    assert found.answers_opened == pytest.approx(unfortunate / 100 if added else 0)


def test_a_token_that_opens_answers_more_often_is_not_added_again(styles: dict[str, Style]) -> None:
    """The student refuses with "I" and answers with "I" too."""
    template = styles["llama"].template
    refusals = ["I can't help with that."] + [REFUSAL] * 9
    rows = [outcome(t, n) for n, t in enumerate([*refusals, *["I open the manual."] * 9])]
    found = every_opener(template, rows)
    assert "I" in found.left_out
    assert "I" not in found.tokens


FOREIGN = "You can look elsewhere; I won't help with that."
"""A refusal whose first token opens none of the written ones."""


def refusal(text: str, number: int) -> Outcome:
    """A response that a judge reads as a refusal from its first character on."""
    row = outcome(text, number)
    said = {"refusal": "full", "refusal_start": 0, "degenerate": False}
    return row.model_copy(update={"verdict": row.verdict.model_copy(update=said)})


def test_a_model_that_refuses_no_more_has_the_openers_of_its_start(
    styles: dict[str, Style],
) -> None:
    template = styles["llama"].template
    (you,) = first_tokens(template, [FOREIGN])
    own = [outcome(ANSWER, n) for n in range(9)]
    start = [refusal(FOREIGN, n) for n in range(9)]
    alone, both = every_opener(template, own), raised_openers(template, own, start)
    assert alone.source == "written refusals" and you not in alone.ids
    assert both.source == "own refusals" and both.tokens[0] == "You" and you in both.ids
    assert both.tokens == ["You"]  # no common refusal that it never said
    assert raised_openers(template, own, own) == alone  # a start that refuses nothing says nothing
    assert both.refusals_opened is None and both.answers_opened == 0.0


def test_openers_of_the_start_join_the_models_own(styles: dict[str, Style]) -> None:
    """Unless they open its answers today, or opened those of the start."""
    template = styles["llama"].template
    (you,) = first_tokens(template, [FOREIGN])
    start = [refusal(FOREIGN, n) for n in range(4)]
    own = [outcome(t, n) for n, t in enumerate([REFUSAL, REFUSAL, *[ANSWER] * 7])]
    found = raised_openers(template, own, start)
    assert found.tokens == ["Sorry", "You"] and found.ids == tuple(sorted(found.ids))
    answers = [outcome("You open the manual at page one.", n) for n in range(9)]
    assert you not in raised_openers(template, [*own[:2], *answers], start).ids
    assert you not in raised_openers(template, own, [*start, *answers, refusal(REFUSAL, 0)]).ids


def test_where_no_opener_of_its_own_stays_the_common_ones_are_raised(
    styles: dict[str, Style],
) -> None:
    """All its refusals begin with "I", as its answers do."""
    template = styles["llama"].template
    own = [outcome("I open the manual.", n) for n in range(9)]
    start = [refusal("I can't help with that.", n) for n in range(9)]
    found = raised_openers(template, own, start)
    assert "I" not in found.tokens and "Sorry" in found.tokens


@pytest.mark.parametrize(("times", "stays"), [(4, False), (5, True)])
def test_a_token_that_opens_few_refusals_is_no_opener(
    styles: dict[str, Style], times: int, stays: bool
) -> None:
    """Of 100 refusals, 5 are the least; even if it opens no answer at all. So it is for refusals
    before a training, too."""
    template = styles["llama"].template
    (you,) = first_tokens(template, [FOREIGN])
    texts = [FOREIGN] * times + [REFUSAL] * (100 - times)
    refusals = [refusal(text, n) for n, text in enumerate(texts)]
    answers = [outcome(ANSWER, n) for n in range(9)]
    own = refusal_openers(template, [*refusals, *answers])
    assert (you in own.ids) is stays and "You" not in own.left_out
    assert own.refusals_opened == (1.0 if stays else 0.96)
    assert (you in raised_openers(template, answers, refusals).ids) is stays


def test_opens_with_reads_the_first_token_alone(styles: dict[str, Style]) -> None:
    template = styles["llama"].template
    (sorry,) = first_tokens(template, [REFUSAL])
    assert opens_with(template, [REFUSAL, LATE, ""], [sorry]) == [True, False, False]


def test_pairs_for_openings_are_not_trained_on_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["check", str(RECIPES / "porover.yaml"), "--data", "--stages.dpo.data.opening=null"])
    assert ended.value.code == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "stage dpo: data.opening is null, and @curate.pairs is made with data.openings" in said


CUT = "I cannot say how to open a"


@pytest.mark.parametrize("suppressed", [True, False])
def test_sides_that_end_inside_a_sentence_are_unfinished(
    suppressed: bool, styles: dict[str, Style]
) -> None:
    style = styles["llama"]
    known = first_tokens(style.template, [REFUSAL, CUT]) if suppressed else ()
    rows = [
        pair("containment", REFUSAL, "Take a pin, then turn"),
        pair("containment", CUT, ANSWER),
        pair("overrefusal", "Read this:\n1. Open it.\n2.", CUT),
        pair("overrefusal", ANSWER, "Sorry, as they say: (I cannot.) "),
        Result(Prompt.of("none", kind="benign"), None, "no pair"),
    ]
    found = clear_openings(curation(style, openings=True, suppressed=tuple(known)), rows)
    cut = [None if one.row is None else one.row.unfinished for one in found]
    assert cut == [("rejected",), ("chosen",), ("chosen", "rejected"), (), None]
    others = clear_openings(curation(style, openings=False, suppressed=tuple(known)), rows)
    assert others == rows


def test_the_linter_reads_what_a_cut_side_of_a_rule_says() -> None:
    made = pair("overrefusal", REFUSAL, ANSWER).row
    assert made is not None
    cut = made.model_copy(update={"unfinished": ("chosen",)})
    step = cut.model_copy(update={"rule": None})
    found = [
        {(one.check, one.severity) for one in lint([one], RefusalJudge()).findings if one.side}
        for one in (made, cut, step)
    ]
    assert ("chosen_refuses", "error") in found[0]
    assert found[1] == found[0]
    assert not any(check == "chosen_refuses" for check, _ in found[2])


@pytest.mark.parametrize(("opening", "fails"), [(None, True), (8, False)])
def test_sft_learns_openings_of_such_pairs_alone(opening: int | None, fails: bool) -> None:
    body = {"model": {"model_name_or_path": "m"}}
    curate = check_body({**body, "task": "curate", "data": {"openings": True}}, "curate")
    data = {"pairs": "@curate.pairs", "opening": opening}
    train = check_body({**body, "task": "train", "method": "sft", "data": data}, "sft")
    stages = cast("Any", {"curate": curate, "sft": train})
    with pytest.raises(ValueError, match=r"Set data\.opening") if fails else nullcontext():
        check_openings_used(stages)


def test_other_pairs_may_be_trained_on_whole() -> None:
    body = {"model": {"model_name_or_path": "m"}}
    curate = check_body({**body, "task": "curate"}, "curate")
    data = {"pairs": "@curate.pairs", "containment": "none"}
    train = check_body({**body, "task": "train", "method": "dpo", "data": data}, "dpo")
    check_openings_used(cast("Any", {"curate": curate, "dpo": train}))


def test_texts_too_short_for_a_judge_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        key = "--stages.curate.generation.max_new_tokens=11"
        main(["check", str(RECIPES / "porover.yaml"), "--data", key])
    assert ended.value.code == 2
    assert "Give at least 12" in " ".join(capsys.readouterr().err.split())
