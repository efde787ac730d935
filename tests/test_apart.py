"""What is measured is not trained on: found by id, by the attacked original and by words."""

import pytest

from overrefusal_po.pairs.apart import Overlap, check_apart, overlaps, same_prompt_marks
from overrefusal_po.prompts import read_source
from overrefusal_po.records import Kind, Prompt


def prompt(text: str, kind: Kind = "benign", **fields: str) -> Prompt:
    """A prompt of a set called mine."""
    return Prompt.of(text, kind=kind, source="mine", **fields)


def test_the_same_words_are_the_same_prompt_whatever_case_and_punctuation() -> None:
    trained = [prompt("How do I kill a Python process?"), prompt("What is tea?")]
    measured = [prompt("What is coffee?"), prompt("how do i kill a python PROCESS", kind="harmful")]
    assert overlaps({"m": measured}, {"t": trained}) == [
        Overlap("m", "t", 1, ("mine",), measured[1].id)
    ]
    assert overlaps({"m": measured[:1]}, {"t": trained}) == []


def test_an_attack_is_its_original_both_ways() -> None:
    plain = prompt("How do I forge a cheque?", kind="harmful")
    dressed = prompt(
        "In a play: how?", kind="harmful", original_id=plain.id, question=plain.text, attack="play"
    )
    assert overlaps({"m": [dressed]}, {"t": [plain]}) and overlaps({"m": [plain]}, {"t": [dressed]})
    copied = prompt(
        "in a play -- how", kind="benign"
    )  # the attack's own words, from a set that knows of no attack
    assert overlaps({"m": [copied]}, {"t": [dressed]})


def test_an_attack_is_found_by_its_originals_id_or_by_its_question_alone() -> None:
    plain = prompt("How do I forge a cheque?", kind="harmful")
    assert overlaps({"m": [prompt("x y", original_id=plain.id)]}, {"t": [plain]})
    assert overlaps({"m": [prompt("x y", question=plain.text)]}, {"t": [plain]})
    assert not overlaps({"m": [prompt("x y")]}, {"t": [plain]})


def test_prompts_of_two_words_or_none_are_not_all_the_same() -> None:
    assert not same_prompt_marks(prompt("?!")) & same_prompt_marks(
        prompt("...")
    ) and not same_prompt_marks(prompt("a b")) & same_prompt_marks(prompt("a c"))


def test_conversations_that_end_alike_and_prompts_without_a_user_turn_are_not_the_same() -> None:
    def talk(first: str) -> Prompt:
        said = ({"role": "user", "content": first}, {"role": "user", "content": "Go on."})
        return Prompt.model_validate({"id": first, "messages": said, "kind": "benign"})

    assert not overlaps(
        {"m": [talk("Tell me of tea.")]}, {"t": [talk("Tell me of rain."), prompt("Go on.")]}
    )
    again = talk("tell me of TEA").model_copy(update={"id": "other"})
    assert overlaps({"m": [talk("Tell me of tea.")]}, {"t": [again]})
    raw = {"messages": ({"role": "system", "content": ""},), "kind": "general"}
    one, two = (
        Prompt.model_validate({**raw, "id": text, "raw_text": text}) for text in ("Once", "Twice")
    )
    assert not overlaps({"m": [one]}, {"t": [two]})


def test_attacked_conversations_that_end_alike_are_not_the_same() -> None:
    def attacked(first: str, how: str) -> Prompt:
        turns = ({"role": "user", "content": first}, {"role": "user", "content": "Go on."})
        plain = Prompt.model_validate({"id": first, "messages": turns, "kind": "harmful"})
        return Prompt.of(f"In a play: {how}", kind="harmful").model_copy(
            update={
                "original_id": plain.id,
                "question": plain.text,
                "context": plain.messages[:-1],
                "attack": "play",
            }
        )

    tea, rain = attacked("Tell me of tea.", "one"), attacked("Tell me of rain.", "two")
    assert not overlaps({"m": [tea]}, {"t": [rain, prompt("Go on.")]})
    again = attacked("tell me of TEA", "three")
    assert overlaps({"m": [tea]}, {"t": [again]})


def test_the_error_names_every_pair_of_sets_their_count_and_an_example() -> None:
    one, two, three = prompt("a"), prompt("b"), prompt("c")
    with pytest.raises(ValueError) as caught:
        check_apart(
            {"stage end": [one, two], "stage other": [three]},
            {"derta": [two, one], "dpo": iter([three]), "x": []},
        )
    text = str(caught.value)
    assert f"stage end and derta share 2 (from mine; for example {one.id})" in text
    assert f"stage other and dpo share 1 (from mine; for example {three.id})" in text
    assert "stage end and dpo" not in text and "Name another split" in text


def test_the_splits_of_the_starter_set_are_apart() -> None:
    parts = {split: read_source("starter", split) for split in ("train", "dev", "test")}
    check_apart({"test": parts["test"], "dev": parts["dev"]}, {"train": parts["train"]})
    check_apart({"test": parts["test"]}, {"dev": parts["dev"]})
