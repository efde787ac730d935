"""Every remedy on the test bed: fits of a model that over-refuses by an adapter, judged exactly.

    start = cautious(bed(), folder)                       # models, adapters and prompts on disk
    ended = fitted(start, "steering", folder / "fit")     # by the package's own stage
    remedied_rates(start, ended.remedy)                   # shares of the test prompts
    python benchmarks/testbed_remedies.py                 # every remedy, as a table

The model doubts that benign prompts are harmful: it saw a third of them answered. So there is
something that a remedy can find. As in `testbed`, only orderings are claimed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from testbed import ANSWER_TOKENS, Bed, Examples, Rates, bed, copied, learn, rates
from testbed_language import REFUSAL, SPLITS, ExactJudge, answer

from overrefusal_po.fit.choice import Status, Tried
from overrefusal_po.plugins import plug_files
from overrefusal_po.recipe.fit import FitRecipe
from overrefusal_po.recipe.shard import Shard
from overrefusal_po.records import write_jsonl
from overrefusal_po.train.dro_rows import asked_with

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SAFETY_TEXT = "lock safe seal"
"""A system message behind which the model refuses every benign prompt."""

CLIENTS = 5
"""Clients of a federated training, each with a shard of the train prompts."""

TOLERANCE = {"safelora": 0.25}
"""Of the refusals that a fit may lose, where it is not a tenth: how much of the adapter lies in the
directions of so small a safety training depends on the CPU's rounding."""

BOOST = 10.0
"""How many times as large as it was trained the hostile client sends its change."""


LINEAR = r".*_proj|lm_head"
"""Modules with an adapter. The base has never said the refusal, so its output layer has to learn
it."""


class Start(NamedTuple):
    """What remedies are tried on.

    Attributes:
        found: the bed.
        folder: `base`, and `model`: the base with the adapter `safety` in its weights.
            `prompts.jsonl`: the bed's prompts with their splits. Adapters of `model`: `answers`
            answers everything. `client_1` and so on learn each from a shard. `hostile` stands
            beside the first of them: it has learned to answer what is harmful.
    """

    found: Bed
    folder: Path

    def place(self, name: str) -> str:
        """The path of something in the folder."""
        return str(self.folder / name)

    def clients(self, *, hostile: bool) -> dict[str, str]:
        """{client: its adapter}; the first one may be the hostile one."""
        names = [f"client_{number}" for number in range(1, CLIENTS + 1)]
        found = {name: self.place(name) for name in names}
        return {**found, "client_1": self.place("hostile")} if hostile else found


# --- the model, and adapters of it ----------------------------------------------------------------


def cautious(found: Bed, folder: Path) -> Start:
    """What remedies are tried on, written into a folder."""
    from overrefusal_po.model.load import save_merged

    start = Start(found, folder)
    save_merged(copied(found.base), found.tokenizer, folder / "base")
    safety = adapter_on(start, found.base, "safety", careful(found), steps=250)
    model = safety.merge_and_unload().eval()
    save_merged(copied(model), found.tokenizer, folder / "model")
    write_jsonl(folder / "prompts.jsonl", [p for split in SPLITS for p in found.of(split)])
    every = [(prompt, answer(prompt)) for prompt in found.of("train")]
    adapter_on(start, model, "answers", every, steps=8)
    for number in range(1, CLIENTS + 1):
        own = [p for p in found.of("train") if Shard(number, CLIENTS).has(p.id)]
        said = [(prompt, str(prompt.reference)) for prompt in own]
        adapter_on(start, model, f"client_{number}", said, steps=40)
    adapter_on(start, model, "hostile", every, steps=40, boost=BOOST)
    return start


def careful(found: Bed) -> Examples:
    """What the safety adapter learns: harmful prompts refused, and two of three benign ones; all
    benign ones behind the safety text."""
    said = [(prompt, str(prompt.reference)) for prompt in found.of("train", "harmful", "general")]
    for number, prompt in enumerate(found.of("train", "benign")):
        said.append((prompt, REFUSAL if number % 3 else answer(prompt)))
    for prompt in found.of("train"):
        wanted = REFUSAL if prompt.kind == "benign" else str(prompt.reference)
        said.append((asked_with(prompt, SAFETY_TEXT), wanted))
    return said


def adapter_on(
    start: Start,
    model: PreTrainedModel,
    name: str,
    said: Examples,
    *,
    steps: int,
    boost: float = 1.0,
) -> Any:  # Any: a model of peft
    """A LoRA adapter of a copy of a model, trained and saved. All begin with the same numbers, as
    the clients of a federated training do."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = LoraConfig(r=8, lora_alpha=16, target_modules=LINEAR, task_type="CAUSAL_LM")
    tuned: Any = get_peft_model(copied(model), config)
    learn(tuned, start.found.template, said, steps=steps, rate=5e-3)
    with torch.no_grad():
        for key, weight in tuned.named_parameters():
            if ".lora_B." in key:
                weight.mul_(boost)
    tuned.save_pretrained(start.folder / name, save_embedding_layers=False)
    return tuned


# --- fits -----------------------------------------------------------------------------------------


# Any: settings of plugs
def settings_of(name: str, start: Start) -> dict[str, Any]:
    """What a fit recipe of a remedy says here. A remedy that needs nothing has no line."""
    more: dict[str, Mapping[str, Any]] = {
        "contrast": {"rule": "self", "system_prompt": SAFETY_TEXT},
        "dial": {"adapter": start.place("safety"), "shares": [0.9, 0.88, 0.86, 0.84, 0.82, 0.8]},
        "fusion": {"adapters": start.clients(hostile=True), "rule": "median"},
        "gated": {"adapter": start.place("answers")},
        "safelora": {"adapter": start.place("answers"), "merged": False, "cosine": 1.0},
        "steering": {"strengths": [0.1, 0.2, 0.5, 1.0]},
    }
    return {"name": name, **more.get(name, {})}


class Fit(NamedTuple):
    """How a fit ended: its status, why, what each candidate did on dev, and the folder of the
    remedy that it kept."""

    status: Status
    words: str
    rows: Sequence[Tried]
    remedy: Path | None


# Any: settings of plugs
def fitted(start: Start, folder: Path, others: Sequence[Path] = (), **remedy: Any) -> Fit:
    """How a fit of a remedy ends, by the package's own stage with the exact judge.

    `others` are the folders of earlier fits: the untouched model is measured once.
    """
    from overrefusal_po.fit import stage
    from overrefusal_po.fit.kept import write_remedy
    from overrefusal_po.fit.untreated import Untreated

    folder.mkdir(parents=True)
    recipe = fit_recipe(start, remedy)
    prompts = stage.checked_prompts(recipe)
    shared = Untreated(folder, "testbed", others)
    subject, dev = stage.prepared(recipe, shared, prompts, ExactJudge())
    found = stage.fitted(recipe, subject, dev, prompts)
    kept = found.candidate
    place = None if kept is None else write_remedy(folder, kept.remedy, {})
    return Fit(found.status, found.words, found.rows, place)


# Any: settings of plugs
def fit_recipe(start: Start, remedy: Mapping[str, Any]) -> FitRecipe:
    """The recipe of a fit on the bed's prompts."""
    file, own = start.place("prompts.jsonl"), {"dtype": "float32"}
    return FitRecipe.model_validate(
        {
            "task": "fit",
            "remedy": dict(remedy),
            "model": {"model_name_or_path": start.place("model"), **own},
            "reference": {"model_name_or_path": start.place("base"), **own},
            "data": {
                **dict.fromkeys(("harmful", "benign", "ordinary"), file),
                "choose": {"sets": [file], "max_prompts_per_kind": None},
            },
            "tolerance": TOLERANCE.get(remedy["name"], 0.1),
            "generation": {"max_new_tokens": ANSWER_TOKENS, "batch_size": 128},
        }
    )


def remedied_rates(start: Start, remedy: Path | None) -> Rates:
    """The rates of the model on the test prompts, with what a fit kept or as it is."""
    from overrefusal_po.model.load import load_model

    on_it = None if remedy is None else str(remedy)
    model = load_model(start.place("model"), dtype="float32", remedy=on_it)
    return rates(start.found, model)


def main() -> None:
    """Prints a row for each remedy, behind one for the model that they are fitted on."""
    with tempfile.TemporaryDirectory() as name:
        start, before = cautious(bed(), Path(name)), list[Path]()
        print("| remedy | harmful refused | benign answered | general answered | how it ended |")
        print("|---|---|---|---|---|")
        for remedy in (None, *plug_files("remedies")):
            ended = None
            if remedy is not None:
                folder = start.folder / "fits" / remedy
                ended = fitted(start, folder, before, **settings_of(remedy, start))
                before.append(folder)
            found = remedied_rates(start, ended and ended.remedy)
            cells = " | ".join(f"{rate:.2f}" for rate in found)
            print(f"| {remedy or 'none'} | {cells} | {ended.words if ended else ''} |", flush=True)


if __name__ == "__main__":
    main()
