"""The judge's data files: each entry matches its examples, and a language is one more file."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from overrefusal_po.judges._refusal_text import composed, lower, plain
from overrefusal_po.judges._refusal_wordings import (
    FOLDER,
    English,
    Language,
    Wordings,
    compiled,
    expanded,
    languages_in,
    other_languages,
    say,
)
from overrefusal_po.judges.refusal import judge_text

LANGUAGES = {language.path.stem: language for language in other_languages()}
FILES: dict[str, Wordings] = {"en": say, **LANGUAGES}
ENTRIES = [(code, name) for code, file in FILES.items() for name in file.evidence]
KEYS = {"is", "examples", "not", "where", "any_case", "wordings", "regex", "words"}
REFUSALS = [
    (code, example)
    for code, name in ENTRIES
    if name in ("decline", "bare_decline")
    for example in FILES[code].evidence[name]["examples"]
]


def matches(code: str, name: str, example: str) -> bool:
    """Whether an entry matches a sentence, looked for in the way that the entry's keys say."""
    entry = FILES[code].evidence[name]
    text = lower(plain(composed(example)))
    if "words" in entry:
        return any(word in text for word in entry["words"])
    pattern = getattr(FILES[code], name)
    found = pattern.match(text) if entry.get("where") == "beginning" else pattern.search(text)
    return found is not None and found.group() != ""


@pytest.mark.parametrize(("code", "name"), ENTRIES)
def test_an_entry_matches_its_examples_and_no_counter_example(code: str, name: str) -> None:
    entry = FILES[code].evidence[name]
    assert entry["examples"]
    assert [e for e in entry["examples"] if not matches(code, name, e)] == []
    assert [e for e in entry.get("not", []) if matches(code, name, e)] == []


@pytest.mark.parametrize(("code", "name"), ENTRIES)
def test_an_entry_says_what_it_is_and_has_known_keys(code: str, name: str) -> None:
    entry = FILES[code].evidence[name]
    assert entry["is"].endswith(".")
    assert set(entry) <= KEYS
    assert len({"wordings", "regex", "words"} & set(entry)) == 1
    assert entry.get("where", "word") in ("beginning", "word")


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_file_is_a_language_with_lines_of_100_columns(path: Path) -> None:
    assert path.stem in FILES
    assert [line for line in path.read_text(encoding="utf-8").splitlines() if len(line) > 100] == []


@pytest.mark.parametrize("code", LANGUAGES)
def test_another_language_has_the_same_entries_and_is_known_by_words_or_letters(
    code: str,
) -> None:
    language = LANGUAGES[code]
    needed = {"decline", "advice_or_news", "story", "asks_back", "waits", "unclear_prompt"}
    assert set(language.evidence) - {"condemnation"} == needed
    assert bool(language.common_words) != bool(language.letters)
    assert [other.file["order"] for other in LANGUAGES.values()].count(language.file["order"]) == 1


@pytest.mark.parametrize(("code", "example"), REFUSALS)
def test_the_judge_calls_an_example_of_declining_a_full_refusal(code: str, example: str) -> None:
    assert judge_text(example).refusal == "full"
    if code != "en":
        assert LANGUAGES[code] in languages_in(lower(plain(composed(example))))


@pytest.mark.parametrize("code", LANGUAGES)
def test_the_judge_calls_a_counter_example_of_declining_no_refusal(code: str) -> None:
    answers = LANGUAGES[code].evidence["decline"]["not"]
    assert {judge_text(answer).refusal for answer in answers} == {"none"}


def test_the_rules_use_every_english_entry_and_no_other_name() -> None:
    files = FOLDER.parent.glob("_refusal_[!w]*.py")
    source = "".join(file.read_text() for file in files)
    used = set(re.findall(r"\bsay\.(\w+)", source))
    assert used - {"decline_at_word"} == set(say.evidence)


def test_a_name_without_an_entry_is_an_error() -> None:
    with pytest.raises(AttributeError, match=r"en\.yaml has no entry 'declien'"):
        say.declien  # noqa: B018


def test_an_unknown_block_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"no block 'can' .* The blocks above it: cannot, help\."):
        expanded("i {can} {help}", {"cannot": "can't", "help": "help"})


def test_a_block_of_one_line_is_that_line_and_one_of_several_is_any_of_them(tmp_path: Path) -> None:
    written = "blocks:\n  verb: |\n    help\n    assist\n  all: i {verb}{1,2}\nevidence: {}\n"
    (tmp_path / "xx.yaml").write_text(written)
    assert Wordings(tmp_path / "xx.yaml").blocks == {
        "verb": "(?:help|assist)",
        "all": "i (?:help|assist){1,2}",
    }


def test_a_block_may_not_use_one_below_it(tmp_path: Path) -> None:
    (tmp_path / "xx.yaml").write_text("blocks:\n  a: x{b}\n  b: y\nevidence: {}\n")
    with pytest.raises(ValueError, match=r"no block 'b' for 'x\{b\}'\. The blocks above it: none"):
        _ = Wordings(tmp_path / "xx.yaml").blocks


def test_indented_lines_go_on_and_comments_are_left_out() -> None:
    written = "# a comment\ni ca\n  n't\n  |i won't\n# another\nno way\n"
    assert compiled({"wordings": written}, {}).pattern == r"(?:(?:i\scan't|i\swon't)|(?:no\sway))"
    assert compiled({"wordings": "no", "where": "word"}, {}).pattern == r"\b(?:(?:no))"
    assert compiled({"regex": "# one\na b\n  |c\n# two\n|d\n"}, {}).pattern == "a b|c|d"
    assert compiled({"regex": "a", "any_case": True}, {}).search("A")
    assert not compiled({"regex": "a"}, {}).search("A")


def test_a_file_in_the_folder_is_one_more_language(tmp_path: Path) -> None:
    one = "language: {}\norder: {}\ncommon_words: {}\nevidence:\n  decline:\n    wordings: {}\n"
    (tmp_path / "en.yaml").write_text("language: English\nevidence: {}\n")
    (tmp_path / "aa.yaml").write_text(one.format("Later", 2, "nem", "nem tudok"))
    (tmp_path / "zz.yaml").write_text(one.format("Sooner", 1, "ei ole", "en voi"))
    found = other_languages(tmp_path)
    assert [language.path.stem for language in found] == ["zz", "aa"]
    assert found[0].common_words == {"ei", "ole"}
    assert found[1].decline.search("ezt nem tudok")
    assert isinstance(found[0], Language)


def test_english_words_do_not_call_another_language() -> None:
    assert languages_in("i can't help with that, and here is why.") == []


def test_the_import_reads_no_file_and_the_first_reply_compiles_no_other_language() -> None:
    code = (
        "from overrefusal_po.judges.refusal import judge_text\n"
        "from overrefusal_po.judges._refusal_wordings import other_languages, say\n"
        "print('file' in vars(say))\n"
        "judge_text('I cannot help with that.')\n"
        "print('decline' in vars(say), any('decline' in vars(x) for x in other_languages()))\n"
    )
    command = [sys.executable, "-c", code]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert out.split() == ["False", "True", "False"]


def test_an_english_file_of_your_own_is_read_the_same_way(tmp_path: Path) -> None:
    written = "evidence:\n  decline:\n    wordings: nah\n  negative_words:\n    words: [nah]\n"
    (tmp_path / "en.yaml").write_text(written)
    english = English(tmp_path / "en.yaml")
    assert english.negative_words == ("nah",)
    assert english.decline_at_word.pattern == r"\b(?:(?:(?:nah)))"
