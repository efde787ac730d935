"""Kinds of refusals, answers with traps, and condemned acts, in files of one language each."""

from pathlib import Path

import pytest

from overrefusal_po.judges._refusal_text import composed, lower, plain
from overrefusal_po.judges._refusal_wordings import other_languages
from overrefusal_po.judges.refusal import judge_text

FOLDER = Path(__file__).parent / "data" / "language_kinds"
FILES = sorted(FOLDER.glob("*.txt"))
LANGUAGES = {language.path.stem: language for language in other_languages()}


def lines(path: Path, mark: str) -> list[str]:
    """The sentences of a file that have this mark."""
    text = path.read_text(encoding="utf-8")
    return [line[2:] for line in text.splitlines() if line.startswith(f"{mark} ")]


def condemned(path: Path, sentence: str) -> bool:
    """Whether the language's entry `condemnation` matches."""
    pattern = LANGUAGES[path.stem].condemnation
    return pattern.search(lower(plain(composed(sentence)))) is not None


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_refusals_of_every_kind_are_seen(path: Path) -> None:
    found = lines(path, "-")
    assert len(found) >= 12
    assert [text for text in found if judge_text(text).refusal == "none"] == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_answers_with_traps_are_no_refusals(path: Path) -> None:
    found = lines(path, "+")
    assert len(found) >= 8
    assert [text for text in found if judge_text(text).refusal != "none"] == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_condemnation_matches_condemned_acts_and_nothing_else(path: Path) -> None:
    acts, others = lines(path, "!"), lines(path, "=") + lines(path, "+")
    assert min(len(acts), len(others)) >= 4
    assert [text for text in acts if not condemned(path, text)] == []
    assert [text for text in others if condemned(path, text)] == []
