"""derta_rows.py: which token carries which label, how long the harmful prefix is, and what dropout
keeps."""

import random
from collections import Counter
from functools import partial

import pytest
import torch
from conftest import Style

from overrefusal_po.model.chat import Turn
from overrefusal_po.records import Prompt, Triple
from overrefusal_po.train.derta_rows import (
    IGNORED,
    DertaCollator,
    Row,
    derta_rows,
    prefix_length,
    prefix_row,
    prompt_turns,
    refusal_token,
    rto_row,
    sft_row,
    triple_sides,
)

SORRY = 7
# "Sure, do it now." in six tokens and an end of turn (99) behind a prompt of three
HARMFUL = Turn(
    [1, 2, 3],
    [10, 11, 12, 13, 14, 15, 99],
    [(0, 4), (4, 5), (5, 8), (8, 11), (11, 15), (15, 16), (16, 16)],
)
HARMFUL_TEXT = "Sure, do it now."
SAFE = Turn([1, 2, 3], [SORRY, 20, 99], [(0, 5), (5, 6), (6, 6)])


def test_rto_labels_every_position_of_the_response_and_its_end_with_the_refusal_token() -> None:
    row = rto_row(HARMFUL, SORRY, "a")
    assert row.input_ids == [1, 2, 3, 10, 11, 12, 13, 14, 15, 99]
    assert row.labels == [-100, -100, -100, 7, 7, 7, 7, 7, 7, 7]
    assert row.kind == "rto"


def test_a_prefix_row_has_no_loss_before_the_safe_response() -> None:
    row = prefix_row(HARMFUL, SAFE, 2, "a")
    assert row.input_ids == [1, 2, 3, 10, 11, SORRY, 20, 99]
    assert row.labels == [-100, -100, -100, -100, -100, SORRY, 20, 99]
    assert row.kind == "prefix"


def test_the_prefix_in_words_is_empty_for_a_third_and_else_one_to_n_minus_two_words() -> None:
    """ "Sure, do it now." has four words, so one or two are kept: "Sure," is 2 tokens, "Sure, do"
    is 3."""
    draws = Counter(
        prefix_length(HARMFUL, HARMFUL_TEXT, "words", random.Random(i)) for i in range(3000)
    )
    assert set(draws) == {0, 2, 3}
    for length in (0, 2, 3):  # 1000 each; four standard deviations are 103
        assert draws[length] == pytest.approx(1000, abs=103)


@pytest.mark.parametrize(("text", "lengths"), [("Sure", {0, 1}), ("Sure do", {0, 1}), ("", {0})])
def test_short_responses_have_a_prefix_of_at_most_one_word(text: str, lengths: set[int]) -> None:
    spans = [(0, 4), (4, 7)][: len(text.split())]
    turn = Turn([1], [10, 11, 99][-len(spans) - 1 :], [*spans, (len(text), len(text))])
    assert {prefix_length(turn, text, "words", random.Random(i)) for i in range(50)} == lengths


def test_the_prefix_in_tokens_is_uniform_from_none_to_the_whole_response() -> None:
    """Six tokens without the end of turn: k is 0..6, each 1000 times in 7000 (four standard
    deviations are 117)."""
    draws = Counter(
        prefix_length(HARMFUL, HARMFUL_TEXT, "tokens", random.Random(i)) for i in range(7000)
    )
    assert sorted(draws) == [0, 1, 2, 3, 4, 5, 6]
    assert all(count == pytest.approx(1000, abs=117) for count in draws.values())


@pytest.mark.parametrize(
    "text",
    ["To open it now, you do. First the pin.", "Sure, use \u00e9t\u00e9 \U0001f642 pins in it"],
)
def test_a_prefix_in_words_never_ends_inside_a_word(style: Style, text: str) -> None:
    """Decoded, every prefix is the first words of the response, also where a space is a token of
    its own."""
    turn = style.template.turn(Prompt.of("How?", kind="harmful").messages, text)
    words = text.split(" ")
    allowed = {" ".join(words[:n]) for n in range(len(words) - 1)}
    seen = set()
    for i in range(200):
        cut = prefix_length(turn, text, "words", random.Random(i))
        seen.add(style.tokenizer.decode(turn.response_ids[:cut]).strip())
    assert seen == allowed


def test_without_blanks_a_prefix_in_words_is_cut_at_letters() -> None:
    """Twelve letters of one token each: the whole is not one word, so one to ten are kept."""
    text = "首先把两根细针放进锁孔里"
    turn = Turn([1], [*range(10, 22), 99], [*((i, i + 1) for i in range(12)), (12, 12)])
    draws = {prefix_length(turn, text, "words", random.Random(i)) for i in range(500)}
    assert draws == set(range(11))


def test_a_prefix_in_words_counts_control_tokens_that_were_broken_up(style: Style) -> None:
    """The response is longer in the turn than in the triple (zero-width spaces); the cut still
    falls on word ends."""
    spelled = style.tokenizer.eos_token
    text = f"Sure, {spelled}{spelled}{spelled} kill the process of the neighbor now"
    triple = Triple(
        prompt=Prompt.of("How?", kind="harmful"), safe_response="Sorry.", harmful_response=text
    )
    turn = style.template.turn(triple.prompt.messages, text)
    words = style.template.neutral(text).split(" ")
    allowed = {" ".join(words[:n]) for n in range(len(words) - 1)}
    sides = triple_sides([triple], style.template)
    for seed in range(60):
        row = derta_rows([triple], sides, SORRY, seed=seed)[1]
        prefix = row.input_ids[
            len(turn.prompt_ids) : row.labels.index(next(i for i in row.labels if i != IGNORED))
        ]
        assert style.tokenizer.decode(prefix).strip() in allowed


def test_a_prefix_in_tokens_reaches_every_length_of_the_response(style: Style) -> None:
    """Also where the first token is only the space before the response: the last token stays in
    reach."""
    text = "To kill"
    turn = style.template.turn(Prompt.of("How?", kind="harmful").messages, text)
    cuts = {prefix_length(turn, text, "tokens", random.Random(i)) for i in range(300)}
    prefixes = {style.tokenizer.decode(turn.response_ids[:cut]).strip() for cut in cuts}
    assert 0 in cuts
    assert max(cuts) == len(turn.answer_ids)
    assert "To kill" in prefixes


@pytest.mark.parametrize("unit", ["words", "tokens"])
def test_rows_of_a_triple_are_tokens_of_whole_turns(
    style: Style, triples: list[Triple], unit: str
) -> None:
    """The prefix is cut from the harmful turn; no harmful token is ever a label."""
    token = refusal_token(style.template)
    sides = triple_sides(triples, style.template)
    rows = derta_rows(triples, sides, token, prefix_unit=unit)  # type: ignore[arg-type]
    assert [row.kind for row in rows] == ["rto", "prefix"] * len(triples)
    for triple, rto, prefix in zip(triples, rows[::2], rows[1::2], strict=True):
        harmful = style.template.turn(triple.prompt.messages, triple.harmful_response)
        safe = style.template.turn(triple.prompt.messages, triple.safe_response)
        asked = len(harmful.prompt_ids)
        ended = harmful.response_ids[: harmful.response_ids.index(style.end_of_turn) + 1]
        assert rto.input_ids == harmful.prompt_ids + ended
        assert rto.labels == [IGNORED] * asked + [token] * len(ended)
        assert rto.row_id == prefix.row_id
        k = len(prefix.input_ids) - asked - len(safe.response_ids)
        assert 0 <= k < len(ended)
        assert prefix.input_ids == harmful.prompt_ids + harmful.response_ids[:k] + safe.response_ids
        assert prefix.labels == [IGNORED] * (asked + k) + safe.response_ids
        assert prefix.labels.count(style.end_of_turn) == 1


def test_the_same_seed_gives_the_same_rows_in_any_order(
    styles: dict[str, Style], triples: list[Triple]
) -> None:
    template = styles["llama"].template

    def rows(order: list[Triple], seed: int) -> dict[tuple[str, str], Row]:
        sides = triple_sides(order, template)
        return {(r.row_id, r.kind): r for r in derta_rows(order, sides, SORRY, seed=seed)}

    first = rows(triples, 0)
    assert len(first) == 2 * len(triples)
    assert rows(triples[::-1], 0) == first
    assert rows(triples[2:4], 0).items() <= first.items()
    assert any(rows(triples, seed) != first for seed in (1, 2, 3))


def test_the_longest_row_is_as_long_as_one_that_may_be_drawn(
    style: Style, triples: list[Triple]
) -> None:
    """With the whole response as prefix, but for its end, a row is as long as it can be; whatever
    is drawn, rows fit."""
    sides = triple_sides(triples, style.template)
    lengths = [
        len(prefix_row(harmful, safe, len(harmful.answer_ids), "a").input_ids)
        for harmful, safe in sides
    ]
    assert [both.longest for both in sides] == lengths
    make = partial(derta_rows, triples, sides, refusal_token(style.template), prefix_unit="tokens")
    rows = [make(seed=seed) for seed in range(100)]
    drawn = [
        max(len(row.input_ids) for both in rows for row in both[2 * i : 2 * i + 2])
        for i in range(len(triples))
    ]
    assert all(length - 1 <= found <= length for found, length in zip(drawn, lengths, strict=True))


def test_sft_rows_learn_the_whole_response(style: Style) -> None:
    prompt = Prompt.of("What is a fox?", kind="general", reference="A fox.")
    turn = style.template.turn(prompt.messages, "A fox.")
    labels = [IGNORED] * len(turn.prompt_ids) + turn.response_ids
    assert prompt_turns([prompt], style.template) == [turn]
    assert sft_row(prompt, turn) == Row(
        turn.prompt_ids + turn.response_ids, labels, "sft", prompt.id
    )


def test_an_sft_prompt_without_a_reference_is_an_error(styles: dict[str, Style]) -> None:
    with pytest.raises(ValueError, match=r"'What is a fox\?'.*no reference response"):
        prompt_turns([Prompt.of("What is a fox?", kind="general")], styles["qwen"].template)


def test_the_refusal_token_is_the_openers_first(
    styles: dict[str, Style], caplog: pytest.LogCaptureFixture
) -> None:
    """One token in two styles, the first of four in the third; the log says which."""
    caplog.set_level("INFO", logger="overrefusal_po.train.derta_rows")
    for name, text, said in [
        ("llama", "Sorry", "is the whole opener 'Sorry'"),
        ("mistral", "\u2581Sorry", "is the whole opener 'Sorry'"),
        ("qwen", "S", "is the first of 4 of the opener 'Sorry'"),
    ]:
        token = refusal_token(styles[name].template)
        assert styles[name].tokenizer.convert_ids_to_tokens(token) == text
        assert said in caplog.messages[-1]


def test_a_refusal_opener_that_begins_like_an_answer_is_an_error(style: Style) -> None:
    with pytest.raises(
        ValueError, match=r"'Here we stop' begins with .*answers begin too \(Here\).*refusal_opener"
    ):
        refusal_token(style.template, "Here we stop")


def rto(length: int, row_id: str = "a") -> dict[str, object]:
    return Row(
        [1, 2, *range(10, 10 + length)], [IGNORED] * 2 + [SORRY] * length, "rto", row_id
    )._asdict()


def test_a_batch_worked_by_hand() -> None:
    """Padding stands on the right: its id, no attention, no label."""
    rows = [
        {"input_ids": [1, 2, 3], "labels": [-100, 7, 7], "kind": "rto", "row_id": "a"},
        {"input_ids": [4, 5], "labels": [-100, 5], "kind": "sft", "row_id": "b"},
    ]
    batch = DertaCollator(pad_token_id=0, rto_dropout=0)(rows)
    assert set(batch) == {"input_ids", "attention_mask", "labels"}
    assert torch.equal(batch["input_ids"], torch.tensor([[1, 2, 3], [4, 5, 0]]))
    assert torch.equal(batch["attention_mask"], torch.tensor([[1, 1, 1], [1, 1, 0]]))
    assert torch.equal(batch["labels"], torch.tensor([[-100, 7, 7], [-100, 5, -100]]))


def test_dropout_touches_rto_rows_only() -> None:
    prefix = Row([1, 2, 3], [IGNORED, 5, 6], "prefix", "a")._asdict()
    sft = Row([1, 2, 3], [IGNORED, 5, 6], "sft", "b")._asdict()
    labels = DertaCollator(pad_token_id=0, rto_dropout=0.95)([prefix, sft])["labels"]
    assert labels.tolist() == [[IGNORED, 5, 6], [IGNORED, 5, 6]]


def test_dropout_is_drawn_anew_in_each_epoch_and_does_not_depend_on_the_batch() -> None:
    collator = DertaCollator(pad_token_id=0, rto_dropout=0.5, seed=3)
    rows = [rto(40, name) for name in "abc"]
    first = collator(rows)["labels"]
    assert torch.equal(collator(rows[::-1])["labels"].flip(0), first)
    assert torch.equal(collator(rows[1:2])["labels"][0], first[1])
    assert torch.equal(
        DertaCollator(pad_token_id=0, rto_dropout=0.5, seed=3)(rows)["labels"], first
    )
    assert not torch.equal(first[0], first[1])
    collator.epoch = 1
    assert not torch.equal(collator(rows)["labels"], first)
    collator.epoch = 0
    assert torch.equal(collator(rows)["labels"], first)


def test_a_dropped_position_has_no_label_and_a_kept_one_the_refusal_token() -> None:
    labels = DertaCollator(pad_token_id=0, rto_dropout=0.5).drop(rto(40))
    assert labels[:2] == [IGNORED, IGNORED]
    assert set(labels[2:]) == {IGNORED, SORRY}


def test_dropout_of_zero_keeps_every_position() -> None:
    assert (
        DertaCollator(pad_token_id=0, rto_dropout=0).drop(rto(30)) == [IGNORED] * 2 + [SORRY] * 30
    )


def test_every_rto_row_keeps_at_least_one_position() -> None:
    collator = DertaCollator(pad_token_id=0, rto_dropout=0.999)
    for number in range(100):
        assert collator.drop(rto(5, str(number))).count(SORRY) == 1


def test_a_dropout_of_95_percent_keeps_about_5_percent() -> None:
    """40000 positions, 2000 kept; four standard deviations are 174."""
    collator = DertaCollator(pad_token_id=0, rto_dropout=0.95)
    kept = sum(collator.drop(rto(200, str(number))).count(SORRY) for number in range(200))
    assert kept == pytest.approx(2000, abs=174)


@pytest.mark.parametrize("share", [1, 1.5, -0.1])
def test_a_dropout_that_is_no_share_is_an_error(share: float) -> None:
    with pytest.raises(ValueError, match=f"rto_dropout is {share}; allowed"):
        DertaCollator(pad_token_id=0, rto_dropout=share)
