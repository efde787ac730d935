"""plugins.py: what a plug must define is checked, and installed packages bring plugs by entry
points."""

from pathlib import Path

import pytest

from overrefusal_po.plugins import (
    FUNCTIONS,
    ROOMS,
    Room,
    built_judge,
    find_plug,
    make_attack,
    make_judge,
    names,
    plug,
    summary,
)
from overrefusal_po.prompts import read_pairs, read_source
from overrefusal_po.records import Completion, Prompt, Sampling

SETTINGS = "from pydantic import BaseModel\n\n\nclass Settings(BaseModel):\n    word: str = 'fox'\n"
SOURCE = f"""\"\"\"One question about a word.\"\"\"
from overrefusal_po.records import PreferencePair, Prompt
{SETTINGS}

def prompts(settings, split):
    return [Prompt.of(f"What is a {{settings.word}}?", kind="general")]


def pairs(settings, split):
    asked = prompts(settings, split)[0]
    return [PreferencePair(id="x", prompt=asked, chosen="An animal.", rejected="No.")]
"""
ATTACK = f"""{SETTINGS}

def attacked(settings, prompt):
    return [prompt.model_copy(update={{"id": prompt.id + settings.word, "attack": "mine"}})]
"""
JUDGE = f"""from overrefusal_po.records import Verdict
{SETTINGS}

class Mine:
    name, version = "mine", "1"

    def score(self, prompts, completions):
        return [
            Verdict(completion_id=c.id, judge=self.name, version=self.version, refusal="full")
            for c in completions
        ]


def judge(settings):
    return Mine()
"""
ENGINE = f"{SETTINGS}\n\ndef engine(settings, section, template, **options):\n    return None\n"
REMEDY = f"""{SETTINGS}
def fit(settings, subject, train, dev):
    return []
"""
TEXTS: dict[Room, str] = {
    "sources": SOURCE,
    "attacks": ATTACK,
    "engines": ENGINE,
    "judges": JUDGE,
    "remedies": REMEDY,
}
ASKED = Prompt.of("What is a fox?", kind="harmful")
SAID = Completion(
    id="c", prompt_id=ASKED.id, text="No.", model="m", engine="e", sampling=Sampling()
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the path, empty."""
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def install(folder: Path, package: str, points: dict[str, str]) -> None:
    """What an installed package leaves: a module for each room, and its entry points."""
    (folder / package).mkdir()
    (folder / package / "__init__.py").write_text("")
    for room, text in TEXTS.items():
        (folder / package / f"my_{room}.py").write_text(text)
    about = folder / f"{package}-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    lines = [f"[overrefusal_po.{room}]\n{point}\n" for room, point in points.items()]
    (about / "entry_points.txt").write_text("\n".join(lines))


def test_an_installed_package_brings_plugs_of_every_room(folder: Path) -> None:
    install(folder, "foxes", {room: f"fox = foxes.my_{room}" for room in ROOMS})
    for room in ROOMS:
        assert "fox" in names(room)
        assert plug(room, "fox").__name__ == f"foxes.my_{room}"
    assert summary("sources", "fox") == "One question about a word."
    spec = {"name": "fox", "word": "hen"}
    assert read_source(spec, None)[0].text == "What is a hen?"
    assert read_pairs(spec, "train")[0].chosen == "An animal."
    assert make_attack(spec)(ASKED)[0].id == ASKED.id + "hen"
    assert make_judge("fox").score([ASKED], [SAID])[0].refusal == "full"
    assert find_plug("engines", spec).settings.model_dump() == {"word": "hen"}


def test_a_file_of_the_room_comes_before_an_installed_plug_of_its_name(folder: Path) -> None:
    install(folder, "takers", {"judges": "refusal = takers.my_judges"})
    assert plug("judges", "refusal").__name__ == "overrefusal_po.judges.refusal"
    assert names("judges").count("refusal") == 1


def test_a_plug_of_a_package_that_was_taken_away_is_named(folder: Path) -> None:
    install(folder, "gone", {"sources": "lost = gone.my_lost_module"})
    with pytest.raises(ValueError, match=r"sources: the module 'gone\.my_lost_module' cannot be"):
        read_source("lost", None)


def test_an_unknown_name_is_told_the_installed_ones(folder: Path) -> None:
    install(folder, "birds", {"attacks": "sparrow = birds.my_attacks"})
    with pytest.raises(ValueError, match="Did you mean sparrow"):
        make_attack("sparow")


@pytest.mark.parametrize("room", ROOMS)
def test_the_plug_files_of_this_package_pass_the_check(room: Room) -> None:
    for name in names(room):
        assert any(hasattr(plug(room, name), function) for function in FUNCTIONS[room])


@pytest.mark.parametrize(
    ("room", "text", "fault"),
    [
        ("judges", "", "has no Settings"),
        ("judges", "class Settings: pass\n", "has Settings that are no pydantic model"),
        ("judges", "Settings = 3\n", "has Settings that are no pydantic model"),
        ("judges", SETTINGS, "has no function judge"),
        ("engines", SETTINGS, "has no function engine"),
        ("attacks", SETTINGS + "attacked = 3\n", "has a attacked that cannot be called"),
        ("sources", SETTINGS, "has no function prompts or triples or pairs"),
    ],
)
def test_what_a_plug_lacks_is_named(room: Room, text: str, fault: str, folder: Path) -> None:
    package = f"lacking_{abs(hash((room, text)))}"
    (folder / package).mkdir()
    (folder / package / "plug.py").write_text(text)
    with pytest.raises(ValueError, match=rf"{room}: the module '{package}\.plug' {fault}"):
        find_plug(room, f"{package}.plug")


@pytest.mark.parametrize(
    ("change", "lack"),
    [
        (('name, version = "mine", "1"', 'name = "mine"'), "no version"),
        (('name, version = "mine", "1"', "name = version = 1"), "no name and no version"),
        (("def score", "def scores"), "no score"),
        (("return Mine()", "return None"), "no name and no version and no score"),
    ],
)
def test_what_a_judge_lacks_is_named_before_it_scores(
    change: tuple[str, str], lack: str, folder: Path
) -> None:
    package = f"judging_{abs(hash(change))}"
    (folder / package).mkdir()
    assert change[0] in JUDGE
    (folder / package / "plug.py").write_text(JUDGE.replace(*change))
    with pytest.raises(ValueError, match=rf"'{package}\.plug' returns has {lack}\."):
        built_judge(f"{package}.plug")


def test_a_source_that_gives_something_else_is_named(folder: Path) -> None:
    (folder / "wrong_rows").mkdir()
    text = SOURCE.replace('[Prompt.of(f"What is a {settings.word}?", kind="general")]', '["a"]')
    (folder / "wrong_rows" / "plug.py").write_text(text)
    with pytest.raises(ValueError, match=r"prompts\(\) gives str\. Every row must be a Prompt"):
        read_source("wrong_rows.plug", None)
