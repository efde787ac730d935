"""The remedy that a fit keeps -> its files: remedy/, and model/ and adapter/ if it is linear.

write_remedy(folder, remedy, facts)
write_weights(folder, remedy, subject, base="my/model")
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from overrefusal_po.model import load as models
from overrefusal_po.model.bundled import public_base
from overrefusal_po.model.lowrank import fold_deltas, mean_inputs, save_adapter
from overrefusal_po.model.remedied import remedied
from overrefusal_po.model.remedy import Deltas, Remedy, save_remedy
from overrefusal_po.model.whole import hashes_beside
from overrefusal_po.records import Prompt
from overrefusal_po.remedies import NoRemedy

if TYPE_CHECKING:
    from overrefusal_po.fit.subject import ModelSubject


PROBES = 64
"""Dev prompts whose first tokens are compared, at most."""

AGREES_MIN = 0.9
"""The least share of them whose first token is the same with the remedy and with the weights."""


def write_remedy(folder: Path, remedy: Remedy, facts: Mapping[str, object]) -> Path:
    """remedy/ in the run folder, whole or not there: it is written beside its place and renamed."""
    place, beside = folder / "remedy", folder / ".remedy.tmp"
    for old in (place, beside):
        shutil.rmtree(old, ignore_errors=True)
    save_remedy(remedy, beside, facts)
    beside.replace(place)
    return place


def drop_kept(folder: Path) -> None:
    """Deletes what an earlier try of a fit kept in its run folder."""
    for name in ("remedy", "model", "adapter"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for file in (hashes_beside(folder / "model"), folder / "README.md"):
        file.unlink(missing_ok=True)


def write_weights(
    folder: Path, remedy: Remedy, subject: ModelSubject, prompts: Sequence[Prompt], *, base: str
) -> float:
    """Writes adapter/ and model/ of a linear remedy; changes the loaded model.

    Returns the share of `prompts` whose first token is the same as with the remedy on the model;
    NoRemedy if too few are. `base` is the name of the model without a remedy.
    """
    change, strength = remedy.change, remedy.strength
    assert isinstance(change, Deltas) and remedy.gate is None
    some = list(prompts)[:PROBES]
    with remedied(subject.model, remedy):
        wanted = subject.first_log_probs(some).argmax(-1)
    texts = [subject.engine.input_text(prompt) for prompt in some]
    inputs = mean_inputs(
        subject.model,
        subject.template.tokenizer,
        texts,
        sorted(change.down),
        batch_size=subject.engine.batch_size,
    )
    save_adapter(change, strength, folder / "adapter", base=public_base(base))
    subject.changed(fold_deltas(subject.model, change, strength, inputs))
    agrees = float((subject.first_log_probs(some).argmax(-1) == wanted).float().mean())
    if agrees < AGREES_MIN:
        shutil.rmtree(folder / "adapter")
        raise NoRemedy(
            f"The weights with the remedy in them begin only {agrees:.0%} of {len(some)} responses "
            "as the remedy does: it is lost in rounding. Set model.dtype: float32."
        )
    models.save_merged(subject.model, subject.template.tokenizer, folder / "model")
    return agrees
