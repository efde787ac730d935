"""Sources are read by one module, and within a pipeline once."""

from pathlib import Path

import pytest

from overrefusal_po.curate.inputs import subsets_with_partners
from overrefusal_po.prompts import fixed_subset, read_source, sources_read_once
from overrefusal_po.records import Kind, Prompt
from overrefusal_po.sources import contrasts

ROW = '{"prompt": "How do I kill process %d?", "kind": "benign"}\n'


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Three harmless prompts."""
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(ROW % number for number in range(3)))
    return path


def test_within_a_pipeline_a_source_is_read_once(file: Path) -> None:
    with sources_read_once():
        first = read_source(str(file), None)
        assert all(a is b for a, b in zip(first, read_source(str(file), None), strict=True))
    assert first[0] is not read_source(str(file), None)[0]


def test_what_one_reader_removes_is_there_for_the_next(file: Path) -> None:
    with sources_read_once():
        read_source(str(file), None).clear()
        assert len(read_source(str(file), None)) == 3


def test_a_file_that_changed_is_read_again(file: Path) -> None:
    with sources_read_once():
        assert len(read_source(str(file), None)) == 3
        file.write_text(file.read_text() + ROW % 3)
        assert len(read_source(str(file), None)) == 4


def test_a_file_in_a_list_of_paths_that_changed_is_read_again(file: Path) -> None:
    file.write_text('{"prompt": "How?", "category": "a"}\n')
    spec = {"name": "harmbench", "paths": [str(file)]}
    with sources_read_once():
        assert len(read_source(spec, None)) == 1
        file.write_text(file.read_text() + '{"prompt": "Why?", "category": "a"}\n')
        assert len(read_source(spec, None)) == 2


def test_another_split_or_setting_is_another_question() -> None:
    with sources_read_once():
        train, test = read_source("starter", "train"), read_source("starter", "test")
        few = read_source({"name": "starter", "max": 5}, "test")
    assert not {p.id for p in train} & {p.id for p in test}
    assert len(few) == 5 and {p.id for p in few} < {p.id for p in test}


def test_a_fixed_subset_is_spread_over_categories() -> None:
    prompts = [p for p in read_source("starter", "test") if p.kind == "benign"]
    some = fixed_subset(prompts, 8)
    assert len(some) == 8 and len({p.category for p in some}) > 4


@pytest.mark.parametrize("limit", [10, 100])
def test_partners_of_one_topic_are_sampled_together(limit: int) -> None:
    rows = contrasts.prompts(contrasts.Settings(), "train")
    benign, harmful = ([p for p in rows if (p.kind == "harmful") is bad] for bad in (False, True))
    chosen, found = subsets_with_partners(benign, harmful, limit)
    known, taken = ({p.topic for p in side} for side in (benign, chosen))
    partners = [p for p in found if p.topic in known]
    assert partners and {p.topic for p in partners} <= taken
    plain = fixed_subset(harmful, limit)
    assert len({p.id for p in found}) == len(plain) == limit
    assert len(partners) == sum(p.topic in known for p in plain)  # no others in their place
    assert chosen == fixed_subset(benign, limit)


def test_prompts_without_topics_are_sampled_as_ever() -> None:
    benign = [Prompt.of(f"Open {n}", kind="benign") for n in range(9)]
    harmful = [Prompt.of(f"Break {n}", kind="harmful") for n in range(9)]
    found = subsets_with_partners(benign, harmful, 4)
    assert found == (fixed_subset(benign, 4), fixed_subset(harmful, 4))


def test_all_harmful_partners_are_taken_if_there_is_room() -> None:
    def prompt(n: int, kind: Kind) -> Prompt:
        return Prompt.of(f"{kind} {n}", kind=kind).model_copy(update={"topic": str(n)})

    benign, harmful = ([prompt(n, kind) for n in range(9)] for kind in ("benign", "harmful"))
    chosen, found = subsets_with_partners(benign, harmful[:6], 5)
    assert {p.topic for p in chosen} & set("012345") <= {p.topic for p in found}
    assert len(found) == 5  # those without a chosen partner fill the rest
