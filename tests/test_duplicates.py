"""duplicates.py: near-duplicates against a slow reference."""

import random

from test_firewall import LONG, asking

from overrefusal_po.pairs.duplicates import Duplicate, duplicates, jaccard
from overrefusal_po.pairs.signatures import split_words
from overrefusal_po.records import Prompt
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
    texts = [split_words(p.text) for p in rows]
    slow = {
        rows[j].id
        for j in range(len(rows))
        if any(jaccard(texts[i], texts[j]) >= 0.7 for i in range(j))
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


def test_unlike_rows_are_no_duplicates() -> None:
    assert duplicates(asking("What is a fox?", "Where is the bank?", "", "??")) == [
        Duplicate("3", "2", 1.0)
    ]
    assert duplicates([]) == []
