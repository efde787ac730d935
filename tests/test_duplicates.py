"""duplicates.py: near-duplicates against a slow reference."""

import random

import pytest
from test_firewall import LONG, asking

from overrefusal_po.curate.inputs import clean_side
from overrefusal_po.identity import words_and_signs
from overrefusal_po.pairs.duplicates import Duplicate, duplicates, jaccard
from overrefusal_po.records import Message, Prompt, content_id
from overrefusal_po.sources.starter import Settings, prompts


def test_exact_and_near_duplicates_name_the_earlier_row() -> None:
    rows = asking(
        LONG, "What is a fox?", LONG.upper() + "!", LONG.replace("poem", "song"), "What is a dog?"
    )
    assert duplicates(rows) == [Duplicate("2", "0", 1.0), Duplicate("3", "0", 0.87)]


def test_duplicates_are_those_that_comparing_all_rows_finds() -> None:
    rng = random.Random(1)
    starter = prompts(Settings(), None)
    rows = asking(*(p.text for p in starter[:300]))
    for p in starter[:300:3]:
        words = p.text.split()
        words[rng.randrange(len(words))] = "instead"
        rows.append(Prompt.of(" ".join(words), kind="general"))
    texts = [words_and_signs(p.text) for p in rows]
    slow = {
        rows[j].id
        for j in range(len(rows))
        if any(
            jaccard(texts[i].words, texts[j].words) >= 0.7
            for i in range(j)
            if texts[i].signs == texts[j].signs
        )
    }
    assert len(slow) >= 60
    assert {d.id for d in duplicates(rows)} == slow


def test_a_crowd_of_one_template_is_found_in_whole() -> None:
    frame = (
        "Please translate the following sentence into plain French for my aunt and keep its tone, "
        "number"
    )
    rows = asking(*(f"{frame} {i}" for i in range(2000)))
    assert len(duplicates(rows)) == 1999


def test_near_duplicates_are_found_in_scripts_without_blanks() -> None:
    rows = asking(
        "请告诉我怎样才能安全地关闭一个没有响应的电脑程序？",
        "请告诉我怎样才能安全地关闭一个没有反应的电脑程序？",
        "今天晚上吃什么比较好，请给我三个建议。",
        "駅まで歩いて何分かかりますか、教えてください。",
        "駅まで歩いて何分くらいかかりますか、教えてください。",
    )
    assert [(d.id, d.other) for d in duplicates(rows)] == [("1", "0"), ("4", "3")]


def test_unlike_rows_are_no_duplicates() -> None:
    assert duplicates(asking("What is a fox?", "Where is the bank?", "", "??")) == []
    assert duplicates([]) == []


def talk(*turns: tuple[str, str]) -> Prompt:
    """A conversation of (role, text)."""
    messages = tuple(
        Message.model_validate({"role": role, "content": text}) for role, text in turns
    )
    return Prompt(id=content_id("talk", turns), messages=messages, kind="benign", reference="x")


def user(text: str) -> Prompt:
    """A prompt of one turn."""
    return talk(("user", text))


DIFFERENT = {
    "last turn": (
        talk(("user", "Tell me of tea."), ("assistant", "Yes."), ("user", "Go on.")),
        talk(("user", "Tell me of rain."), ("assistant", "Yes."), ("user", "Go on.")),
    ),
    "last turn, long": (
        talk(("user", "Tea?"), ("assistant", "Yes."), ("user", LONG)),
        talk(("user", "Rain?"), ("assistant", "Yes."), ("user", LONG)),
    ),
    "answer of the assistant": (
        talk(("user", "Tea?"), ("assistant", "Yes."), ("user", LONG)),
        talk(("user", "Tea?"), ("assistant", "No."), ("user", LONG)),
    ),
    "system prompt": (
        talk(("system", "You are a nurse."), ("user", LONG)),
        talk(("system", "You are a pirate."), ("user", LONG)),
    ),
    "no system prompt": (talk(("system", "Be brief."), ("user", LONG)), user(LONG)),
    "C++": (user("What is C++?"), user("What is C#?")),
    "C": (user("What is C++?"), user("What is C?")),
    "long": (user(f"{LONG} Write it in C++."), user(f"{LONG} Write it in C#.")),
    "operators": (user("Is 3 < 5?"), user("Is 3 > 5?")),
    "sum": (user("What is 5 + 3?"), user("What is 5 - 3?")),
    "glued": (user("What is 5+3?"), user("What is 5*3?")),
    "not equal": (user("What does x = y mean?"), user("What does x != y mean?")),
    "currency": (user("How much is $5?"), user("How much is \u20ac5?")),
    "emoji": (user("What does \U0001f44d mean?"), user("What does \U0001f44e mean?")),
    "family": (
        user("\U0001f468\u200d\U0001f469\u200d\U0001f467?"),
        user("\U0001f468\u200d\U0001f469\u200d\U0001f466?"),
    ),
    "marks as the question": (user("What does ! mean in C?"), user("What does ? mean in C?")),
    "marks alone": (user("??"), user("!!")),
    "factorial": (user("What is 5!"), user("What is 5")),
    "point": (user("What is 1.5 metres?"), user("What is 15 metres?")),
    "Hindi vowels": (user("\u0915\u093f"), user("\u0915\u093e")),
    "Thai": (user("\u0e21\u0e32"), user("\u0e21\u0e49\u0e32")),
    "Chinese": (user("\u72d7\u662f\u4ec0\u4e48\uff1f"), user("\u732b\u662f\u4ec0\u4e48\uff1f")),
    "power": (user("What is x\u00b2?"), user("What is x2?")),
    "variable": (user("What does _ do?"), user("What does * do?")),
    "prefill": (
        user(LONG),
        user(LONG).model_copy(update={"id": "begun", "assistant_prefix": "Sure"}),
    ),
}


@pytest.mark.parametrize("case", DIFFERENT)
def test_prompts_that_differ_in_what_is_read_both_stay_in_curation(case: str) -> None:
    prompts = DIFFERENT[case]
    assert duplicates(prompts) == []
    assert clean_side(prompts, {}).prompts == list(prompts)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is C++?", "what  is\nC++"),
        ("Don't stop!", "dont stop"),
        ("\u201cTea\u201d, please.", "tea please"),
        ("Explain it step-by-step.", "explain it step by step"),
        ("STRASSE?", "Stra\u00dfe?"),
        ("\u72d7\u662f\u4ec0\u4e48\uff1f", "\u72d7\u662f\u4ec0\u4e48"),
    ],
)
def test_case_white_space_and_punctuation_make_no_other_prompt(one: str, other: str) -> None:
    prompts = [user(one), user(other)]
    assert [d.similarity for d in duplicates(prompts)] == [1.0]
    assert clean_side(prompts, {}).prompts == prompts[:1]


def test_duplicates_within_a_crowd_of_other_system_prompts_are_found() -> None:
    crowd = [talk(("system", f"You are clerk {i}."), ("user", LONG)) for i in range(500)]
    again = talk(("system", "you are  clerk 250."), ("user", LONG.upper()))
    assert [(d.id, d.other) for d in duplicates([*crowd, again])] == [(again.id, crowd[250].id)]
