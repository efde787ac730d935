"""The plain sets: one line of facts each, read by `table.py`.

A set belongs here if it needs no more than a hub id, a column for the prompt, and a kind (or a
column of labels). `verified`: hub id, columns, licence and gating were read on the set's page or in
code that loads it (stored public copies, looked at in November 2026, not the live hub); the note
says what was not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from overrefusal_po.records import Kind
from overrefusal_po.sources._rows import Form


class TableLabels(NamedTuple):
    """A column of labels, and the kind behind each; None leaves such rows out. Any other label is
    an error."""

    column: str
    kinds: Mapping[str | None, Kind | None]


class PlainSet(NamedTuple):
    """The facts of one set. `train`: the hub split that may be trained on, None for a benchmark.
    It is `split` if the set has one part, for which authors have training in mind too: whoever
    trains on it cannot measure on it, and `note` says so."""

    title: str
    paper: str
    repo: str | None
    forms: tuple[Form, ...]
    licence: str
    kind: Kind | TableLabels
    gated: bool = False
    config: str | None = None
    split: str = "train"
    """The hub's name of the split to measure on; "train" is what the hub calls the only split of
    most benchmarks."""
    train: str | None = None
    files: Mapping[str, str] = {}
    """Hub split -> its one file, where the splits have different columns and cannot be loaded
    together."""
    keep: tuple[str, str] | None = None
    """(column, value): other rows are left out."""
    revision: str | None = None
    verified: bool = True
    note: str = ""
    """What a reader of a number from this set has to know."""


JBB = (Form("Goal", "Category"),)

SETS: dict[str, PlainSet] = {
    "oktest": PlainSet(
        title="OKTest: 300 harmless prompts with words that sound harmful",
        paper="Shi et al., ACL 2024, arXiv 2401.17633",
        repo=None,
        forms=(Form("prompt"),),
        licence="none stated",
        kind="benign",
        verified=False,
        note="No copy on the hub is known; the authors' file is data/OKTest.csv of "
        "github.com/InvokerStark/OverKill.",
    ),
    "phtest": PlainSet(
        title="PHTest: 3,269 pseudo-harmful prompts made by a controlled search, those labelled "
        "harmless",
        paper="An et al., COLM 2024, arXiv 2409.00598",
        repo="furonghuang-lab/PHTest",
        forms=(Form("Request", None, ("Harmfulness",)),),
        licence="MIT",
        kind=TableLabels("Harmfulness", {"harmless": "benign", "controversial": None}),
        train="train",
        note="Prompts that its authors label controversial are left out. It has one part, which "
        "may be trained on: whoever trains on it cannot measure on it.",
    ),
    "falsereject": PlainSet(
        title="FalseReject: 1,187 test prompts checked by people, and 14,624 for training",
        paper="Zhang et al., 2025, arXiv 2505.08054",
        repo="AmazonScience/FalseReject",
        forms=(Form("prompt", "category_text"), Form("prompt", "category")),
        licence="CC-BY-NC-4.0",
        kind="benign",
        split="test",
        train="train",
        files={"test": "test.jsonl", "train": "train.jsonl"},
        note="Licence for research only.",
    ),
    "jailbreakbench_harmful": PlainSet(
        title="JailbreakBench: 100 misuse behaviours",
        paper="Chao et al., NeurIPS 2024, arXiv 2404.01318",
        repo="JailbreakBench/JBB-Behaviors",
        forms=JBB,
        licence="MIT",
        kind="harmful",
        config="behaviors",
        split="harmful",
    ),
    "jailbreakbench_benign": PlainSet(
        title="JailbreakBench: 100 benign behaviours on the same themes",
        paper="Chao et al., NeurIPS 2024, arXiv 2404.01318",
        repo="JailbreakBench/JBB-Behaviors",
        forms=JBB,
        licence="MIT",
        kind="benign",
        config="behaviors",
        split="benign",
    ),
    "wildguardtest": PlainSet(
        title="WildGuardTest: 1,725 prompts, plain and adversarial, harmful and not",
        paper="Han et al., NeurIPS 2024, arXiv 2406.18495",
        repo="allenai/wildguardmix",
        forms=(
            Form("prompt", "subcategory", ("prompt_harm_label",)),
            Form("prompt", None, ("prompt_harm_label",)),
        ),
        licence="ODC-BY",
        kind=TableLabels(
            "prompt_harm_label", {"harmful": "harmful", "unharmful": "benign", None: None, "": None}
        ),
        gated=True,
        config="wildguardtest",
        split="test",
        note="Prompts without a label (26) are left out.",
    ),
    "wildguardtest_mirror": PlainSet(
        title="WildGuardTest from a copy that is not gated (no subcategories)",
        paper="Han et al., NeurIPS 2024, arXiv 2406.18495",
        repo="walledai/WildGuardTest",
        forms=(Form("prompt", None, ("label",)),),
        licence="ODC-BY",
        kind=TableLabels(
            "label", {"harmful": "harmful", "unharmful": "benign", None: None, "": None}
        ),
        note="Prompts without a label (26) are left out.",
    ),
    "sorrybench": PlainSet(
        title="SORRY-Bench (2025-03): 440 requests in 44 categories, as asked, without linguistic "
        "mutations",
        paper="Xie et al., ICLR 2025, arXiv 2406.14598",
        repo="sorry-bench/sorry-bench-202503",
        forms=(Form("turns", "category", ("prompt_style",)),),
        licence="its own (no redistribution)",
        kind="harmful",
        gated=True,
        keep=("prompt_style", "base"),
        note="Not every category is harm by every policy (advice on medicine or law, promotion of "
        "beliefs).",
    ),
    "donotanswer": PlainSet(
        title="Do-Not-Answer: 939 questions that a responsible model does not answer",
        paper="Wang et al., Findings of EACL 2024, arXiv 2308.13387",
        repo="LibrAI/do-not-answer",
        forms=(Form("question", "risk_area"),),
        licence="CC-BY-NC-SA-4.0 (data)",
        kind="harmful",
        note="Licence for research only; some questions are best met by a careful answer, not by a "
        "bare refusal.",
    ),
    "advbench": PlainSet(
        title="AdvBench: 520 harmful behaviours",
        paper="Zou et al., 2023, arXiv 2307.15043",
        repo="walledai/AdvBench",
        forms=(Form("prompt"), Form("goal")),
        licence="MIT",
        kind="harmful",
        gated=True,
        note="Many of its prompts repeat each other in other words: an interval over them is too "
        "narrow.",
    ),
    "harmfulqa": PlainSet(
        title="HarmfulQA: 1,960 harmful questions on ten topics, by ChatGPT, for red-teaming and "
        "for safety training",
        paper="Bhardwaj and Poria, 2023, arXiv 2308.09662",
        repo="declare-lab/HarmfulQA",
        forms=(Form("question", "topic"),),
        licence="Apache-2.0",
        kind="harmful",
        train="train",
        note="It has one part, which may be trained on: whoever trains on it cannot measure on it.",
    ),
    "maliciousinstruct": PlainSet(
        title="MaliciousInstruct: 100 instructions with ten malicious intents",
        paper="Huang et al., ICLR 2024, arXiv 2310.06987",
        repo="walledai/MaliciousInstruct",
        forms=(Form("prompt"),),
        licence="CC-BY-SA-4.0",
        kind="harmful",
    ),
}


def described(name: str) -> str:
    """A set in one line: title, paper, hub id, licence, whether it is gated and whether its facts
    were verified."""
    facts = SETS[name]
    parts = [facts.title, facts.paper, facts.repo or "local file only", facts.licence]
    parts += ["gated"] if facts.gated else []
    parts += [] if facts.train else ["evaluation only"]
    parts += [] if facts.verified else ["not verified"]
    return "; ".join(parts)
