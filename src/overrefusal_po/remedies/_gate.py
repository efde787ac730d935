"""A gate: a linear probe on the residual stream that tells harmful prompts from harmless ones.

    found = fit_gate(subject, train, dev)
    found.auc                                     # harmful against benign dev prompts
    found.at(0.85)                                # a Gate; 85 % of the harmful ones are above

A logistic regression reads the standardised state behind one block at the prompt's last token. It
learns harmful prompts against benign and ordinary ones together: with ordinary ones alone it learns
what sounds dangerous. It is chosen and reported by harmful against benign prompts alone: ordinary
ones are easy to tell from harmful ones, so they would flatter every probe.

Published gates (SCANS, arXiv 2408.11491; CAST, arXiv 2409.05907) compare cosines, and their
thresholds were tuned on the sets that were measured. This one takes everything from the train and
the dev prompts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, cast

from overrefusal_po.model.remedy import Gate
from overrefusal_po.remedies import Anchors, NoRemedy, Subject

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    # Any: numpy's shape parameter
    Array = np.ndarray[Any, np.dtype[np.float64]]

PENALTIES = (0.001, 0.003, 0.01, 0.03)
"""C of the logistic regression: the weight of one row against half the squared norm of the
coefficients. States are wide and prompts are few, so small values are best."""

LAXER = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""How many times as many harmful prompts a gate lets through as may be answered at most. Above 1,
the changed model still refuses some of them. Below 1, each source of prompts holds its own rate.
A gate more costs no generation."""


class Probed(NamedTuple):
    """A probe of one layer: its AUC and its scores (N,) on the harmful and benign dev prompts."""

    auc: float
    penalty: float
    gate: Gate
    scores: Tensor


class FoundGate(NamedTuple):
    """The best probe, and its scores of the dev prompts.

    Attributes:
        gate: with threshold 0.
        auc: the probability that a harmful dev prompt has a higher score than a benign one, for the
            best layer and C. It is the best of many, so it is too good by a little.
        by_layer: the best AUC of each block.
        by_source: the AUC on the dev prompts of each source that has harmful and benign ones.
        penalty: C.
        refused: (n,) scores of the harmful dev prompts that the model refuses.
        harmful: (n,) scores of all harmful dev prompts.
    """

    gate: Gate
    auc: float
    by_layer: list[float]
    by_source: dict[str, float]
    penalty: float
    refused: Tensor
    harmful: Tensor

    def at(self, keep: float) -> Gate:
        """The gate that counts this share of the refused harmful dev prompts as harmful."""
        return self.gate._replace(threshold=threshold_at(self.refused, keep))

    def gates(self, tolerance: float, laxer: tuple[float, ...] = LAXER) -> list[Gate]:
        """The gates to try, the strictest first; no threshold comes twice.

        `tolerance` is how far the share of refused harmful prompts may fall. If it was q, a gate
        that lets tolerance / q of the refused ones through is safe whatever the change does.
        """
        spare = tolerance * len(self.harmful) / max(1, len(self.refused))
        found = {self.at(max(0.0, 1 - spare * times)).threshold for times in laxer}
        return [self.gate._replace(threshold=threshold) for threshold in sorted(found)]

    def facts(self, gate: Gate) -> dict[str, object]:
        """What remedy.json says about a gate."""
        passed = float((self.harmful < gate.threshold).float().mean())
        return {
            "gate_auc": round(self.auc, 4),
            "gate_auc_of": "harmful against benign",
            "gate_layer": gate.layer,
            "gate_c": self.penalty,
            "gate_auc_by_layer": [round(auc, 4) for auc in self.by_layer],
            "gate_auc_by_source": {k: round(v, 4) for k, v in self.by_source.items()},
            "gate_harmful_let_through": round(passed, 4),
        }


def fit_gate(subject: Subject, train: Anchors, dev: Anchors) -> FoundGate:
    """The probe of the layer and the C that best tell harmful from benign dev prompts. Ordinary
    dev prompts choose nothing. NoRemedy if the model refuses none of the harmful ones: then no
    threshold can be chosen. ValueError if a kind is missing."""
    import torch

    states, harmful = labelled_states(subject, train)
    if not dev.benign:
        raise ValueError(
            f"A gate is chosen by harmful and benign dev prompts; there are {len(dev.harmful)} and "
            "0. Name sets that have both kinds (data.choose.sets)."
        )
    dev = dev._replace(ordinary=())
    dev_states, dev_harmful = labelled_states(subject, dev)
    refused = [outcome.verdict.refused for outcome in subject.outcomes(dev.harmful)]
    if not any(refused):
        raise NoRemedy(
            f"The model refuses none of the {len(refused)} harmful dev prompts, so a gate has "
            "nothing to protect."
        )

    def best_of(layer: int) -> Probed:
        tried = []
        for penalty in PENALTIES:
            gate = probe(states[:, layer], harmful, layer=layer, penalty=penalty)
            scores = gate.scores(dev_states[:, layer])
            tried.append(Probed(auc(scores, dev_harmful), penalty, gate, scores))
        return max(tried, key=lambda row: row.auc)  # the first of equals: the smallest C

    layers = [best_of(layer) for layer in range(states.shape[1])]
    best = max(layers, key=lambda row: row.auc)
    above = best.scores[dev_harmful]
    return FoundGate(
        best.gate,
        best.auc,
        [row.auc for row in layers],
        source_aucs(best.scores, dev),
        best.penalty,
        above[torch.tensor(refused)],
        above,
    )


def source_aucs(scores: Tensor, dev: Anchors) -> dict[str, float]:
    """{source: AUC} over its own harmful and benign prompts, for the sources that have both.

    Prompts of a source that nothing is fitted on say how far the gate carries.
    """
    import torch

    prompts = [*dev.harmful, *dev.benign]
    positive = torch.tensor([prompt.kind == "harmful" for prompt in prompts])
    found = {}
    for source in dict.fromkeys(prompt.source for prompt in prompts):
        own = torch.tensor([prompt.source == source for prompt in prompts])
        if positive[own].any() and not positive[own].all():
            found[source] = auc(scores[own], positive[own])
    return found


def labelled_states(subject: Subject, anchors: Anchors) -> tuple[Tensor, Tensor]:
    """((N, layers, D) states, (N,) whether the prompt is harmful). ValueError if a side is
    empty."""
    import torch

    harmless = [*anchors.benign, *anchors.ordinary]
    if not (anchors.harmful and harmless):
        raise ValueError(
            f"A gate is fitted on harmful and harmless prompts; there are {len(anchors.harmful)} "
            f"and {len(harmless)}. Name sets that have both kinds."
        )
    parts = [subject.states(part) for part in anchors if part]
    labels = torch.zeros(len(anchors.harmful) + len(harmless), dtype=torch.bool)
    labels[: len(anchors.harmful)] = True
    return torch.cat(parts), labels


def probe(states: Tensor, harmful: Tensor, *, layer: int, penalty: float) -> Gate:
    """A logistic regression on standardised states (N, D), with threshold 0. Both classes have the
    same weight in it, whatever their sizes."""
    import torch

    mean, scale = states.mean(0), states.std(0, unbiased=False)
    # a state that never changes says nothing; it may not divide by zero
    scale = torch.where(scale > 1e-6 * scale.max(), scale, scale.max().clamp(min=1e-12))
    x = ((states - mean) / scale).double().numpy()
    weights = coefficients(x, harmful.numpy(), penalty)
    found = torch.from_numpy(weights[:-1]).float()
    return Gate(layer, mean, scale, found, float(weights[-1]), 0.0)


def coefficients(x: Array, positive: Array, penalty: float) -> Array:
    """(D + 1,) the coefficients and the intercept that minimise
    |w|^2 / 2 + C sum_i s_i log(1 + exp(-y_i (w.x_i + b))), y = +-1; s_i balances the classes."""
    import numpy as np
    from scipy.optimize import minimize

    y = np.where(positive, 1.0, -1.0)
    share = np.where(positive, positive.mean(), 1 - positive.mean())
    row = penalty / (2 * share)

    def loss(w: Array) -> tuple[float, Array]:
        margin = y * (x @ w[:-1] + w[-1])
        slope = -row * y * np.exp(-np.logaddexp(0, margin))
        value = w[:-1] @ w[:-1] / 2 + row @ np.logaddexp(0, -margin)
        return float(value), np.append(w[:-1] + x.T @ slope, slope.sum())

    start = np.zeros(x.shape[1] + 1)
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 1000})
    return cast("Array", found.x)


def auc(scores: Tensor, positive: Tensor) -> float:
    """The share of (positive, other) pairs in which the positive one has the higher score; a tie
    counts half."""
    above = scores[positive][:, None] - scores[~positive][None]
    return float(((above > 0).float() + (above == 0).float() / 2).mean())


def threshold_at(scores: Tensor, keep: float) -> float:
    """The threshold that leaves this share of the scores at or above it: a linear quantile. Scores
    1..20 and keep .85 give 3.85."""
    import numpy as np

    return float(np.quantile(scores.double().numpy(), 1 - keep))
