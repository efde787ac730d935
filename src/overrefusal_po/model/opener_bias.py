"""A bias on the tokens that open a refusal, at the first token of a response, as plain weights.

    site = bias_site(model)                          # UnfitModel if there is no place for it
    states = first_states(model, site, batches)      # what the last layer holds at first positions
    bias = opener_bias(model, site, states, openers=[40, 2121])
    flips = flip_points(model, site, states, bias, openers, limit=8.0)
    folding.fold(model, site, bias, 1.5)             # the openers' logits rise by about 1.5

A model decides at its first token whether it refuses. A constant on the logits of the refusals'
first tokens moves it along its own curve: more refusals, or more answers. The last layer's MLP
adds `W x` to the residual stream. `W + b v a^T` adds `b (a.x) v` as well. `a` is chosen by ridge
regression so that `a.x` is 1 at the first position of a response and 0 elsewhere. `v` is the least
change of the logits (in squares, over the vocabulary) that raises all openers by 1. So the bias is
a matrix of rank 1, and no server needs to know of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, cast

from overrefusal_po.model.blocks import UnfitModel

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor
    from torch.nn import Linear, Module
    from transformers import PreTrainedModel

DOWN_NAMES = ("mlp.down_proj", "mlp.fc2", "mlp.dense_4h_to_h")
"""Where a layer keeps the matrix that its MLP writes into the residual stream with."""

NORM_NAMES = ("norm", "final_layernorm", "final_layer_norm", "ln_f")
"""Where a model keeps the norm before its output layer."""

AFTER_MLP = ("post_feedforward_layernorm", "post_mlp_layernorm")
"""Norms on what the MLP adds: then no constant can be added to the residual stream there."""

RIDGE = 0.1
"""Weight of the penalty, as a share of the mean square. With 0.001 the positions that it is fitted
on are read exactly, and those of other prompts with twice the error (benchmarks/RESULTS.md)."""

OTHER_STATES = 4096
"""Positions that are no first ones, about at most; they are thinned out evenly."""

READ_STATES = 2 * OTHER_STATES
"""Positions that are read for them, about: a whole pass over every text costs more than it says."""

BISECTIONS = 14
"""Halvings in the search for a flip point: the interval of 2 * limit shrinks to a 16,000th."""


class Site(NamedTuple):
    """The paths of the last layer's down projection and of the norm before the output layer."""

    down: str
    norm: str


class FirstStates(NamedTuple):
    """What the last layer holds, in float32 on the CPU.

    Attributes:
        inputs: (N, F) inputs of the down projection at the first position of N responses.
        residual: (N, D) the residual stream there, before the last norm.
        others: (M, F) inputs of the down projection at other positions.
    """

    inputs: Tensor
    residual: Tensor
    others: Tensor


class OpenerBias(NamedTuple):
    """The matrix `direction x position`, for a bias of one logit.

    Attributes:
        position: (F,) `a`: the input of the down projection times `a` says if it is a first one.
        direction: (D,) `v`, times the mean size of the residual stream.
        input: (F,) the mean input of the down projection at a first position.
    """

    position: Tensor
    direction: Tensor
    input: Tensor


class TextIds(NamedTuple):
    """Token ids of a prompt and of the response to it."""

    prompt: Sequence[int]
    response: Sequence[int]


def bias_site(model: PreTrainedModel | PeftModel) -> Site:
    """Where a bias can be folded in; it reads names alone, so a model without weights will do.

    Raises UnfitModel for a model that is built otherwise.
    """
    plain = base_model(model)
    inner = plain.base_model
    paths = {module: path for path, module in plain.named_modules()}
    last = getattr(inner, "layers", None) or getattr(inner, "h", None)
    norm = next((n for n in NORM_NAMES if hasattr(inner, n)), None)
    down = next((found for n in DOWN_NAMES if last and (found := descend(last[-1], n))), None)
    blocked = next((n for n in AFTER_MLP if last and hasattr(last[-1], n)), None)
    if norm is None or down is None or blocked or plain.get_output_embeddings() is None:
        why = "its last layer, last norm or output layer is built otherwise"
        why = f"its last layer has {blocked}" if blocked else why
        raise UnfitModel(
            f"no bias can be folded into a {type(plain).__name__} ({why}; known are layers that "
            f"end with {', '.join(DOWN_NAMES)})"
        )
    return Site(paths[down], paths[getattr(inner, norm)])


def descend(module: Module, path: str) -> Module | None:
    """The module at a path below, if it is there."""
    found: Module | None = module
    for name in path.split("."):
        found = getattr(found, name, None)
    return found


def base_model(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The model in an adapter's wrapper."""
    found = model.get_base_model() if hasattr(model, "peft_config") else model  # type: ignore[operator]  # a module
    return cast("PreTrainedModel", found)


@contextlib.contextmanager
def watched(model: PreTrainedModel, site: Site) -> Iterator[dict[str, Tensor]]:
    """What goes into the site's two modules in the last pass: {"down": (B, T, F), "norm": ...}."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> object:
        return lambda _, inputs: seen.__setitem__(name, inputs[0].detach())

    handles = [
        model.get_submodule(path).register_forward_pre_hook(keep(name))  # type: ignore[arg-type]
        for name, path in site._asdict().items()
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def first_states(
    model: PreTrainedModel | PeftModel,
    site: Site,
    texts: Sequence[TextIds],
    *,
    batch_size: int,
    firsts: int | None = None,
) -> FirstStates:
    """The states of the last layer at the first positions of the responses, in order of `texts`,
    and at others.

    `firsts`: of so many texts, the first ones; None: of all. The rest are read for other positions
    alone, and of all texts no more are read whole than have enough of those.
    """
    import torch

    plain = base_model(model)
    inner = plain.base_model
    firsts = len(texts) if firsts is None else firsts
    reads = texts_to_read(texts, firsts)
    order = sorted(reads, key=lambda at: sum(map(len, reads[at])))
    whole = {at for at in order if reads[at] == texts[at]}
    stride = -(-sum(sum(map(len, texts[at])) for at in whole) // OTHER_STATES)
    inputs: dict[int, Tensor] = {}
    residual: dict[int, Tensor] = {}
    others = []
    with torch.inference_mode(), watched(plain, site) as seen:
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            ids, mask, first = padded([reads[at] for at in chosen])
            inner(
                input_ids=ids.to(plain.device),
                attention_mask=mask.to(plain.device),
                use_cache=False,
            )
            rows = torch.arange(len(chosen))
            at_first = {name: value[rows, first].float().cpu() for name, value in seen.items()}
            inputs |= dict(zip(chosen, at_first["down"], strict=True))
            residual |= dict(zip(chosen, at_first["norm"], strict=True))
            mask[rows, first] = 0
            mask[torch.tensor([at not in whole for at in chosen])] = 0
            others.append(seen["down"][mask.bool()][::stride].float().cpu())
    return FirstStates(
        torch.stack([inputs[at] for at in range(firsts)]),
        torch.stack([residual[at] for at in range(firsts)]),
        torch.cat(others),
    )


def texts_to_read(texts: Sequence[TextIds], firsts: int) -> dict[int, TextIds]:
    """{number: what is read of a text}: an even share of all texts whole, with about `READ_STATES`
    positions; of the other ones among the first `firsts`, the prompt."""
    total = sum(map(len, (ids for text in texts for ids in text)))
    step = max(1, round(total / READ_STATES))
    whole = {at: text for at, text in enumerate(texts) if at % step == 0}
    return {at: TextIds(texts[at].prompt, ()) for at in range(firsts)} | whole


def padded(texts: Sequence[TextIds]) -> tuple[Tensor, Tensor, Tensor]:
    """(B, T) ids and mask, padded on the right, and (B,) the last position of each prompt."""
    import torch

    rows = [[*prompt, *response] for prompt, response in texts]
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return ids, mask, torch.tensor([len(prompt) - 1 for prompt, _ in texts])


def opener_bias(
    model: PreTrainedModel | PeftModel, site: Site, states: FirstStates, openers: Sequence[int]
) -> OpenerBias:
    """The bias of one logit on `openers` (token ids) at the first position of a response."""
    plain = base_model(model)
    size = float(states.residual.square().mean(-1).sqrt().mean())
    direction = logit_direction(plain, site, openers)
    return OpenerBias(position_reader(states), direction * size, states.inputs.mean(0))


def position_reader(states: FirstStates) -> Tensor:
    """(F,) `a` with `a.x` near 1 for first positions (in their mean it is 1) and near 0 for others
    (ridge, dual form)."""
    import torch

    rows = torch.cat([states.inputs, states.others]).double()  # (N + M, F)
    wanted = torch.zeros(len(rows), dtype=torch.float64)
    wanted[: len(states.inputs)] = 1
    # first positions are few: together they count as much as all others
    weight = torch.ones_like(wanted)
    weight[: len(states.inputs)] = max(1.0, len(states.others) / len(states.inputs))
    scaled = rows * weight.sqrt()[:, None]
    gram = scaled @ scaled.T
    gram.diagonal().add_(RIDGE * gram.diagonal().mean())
    found = (scaled.T @ torch.linalg.solve(gram, wanted * weight.sqrt())).float()
    return cast("Tensor", found / (states.inputs @ found).mean())


def logit_direction(model: PreTrainedModel, site: Site, openers: Sequence[int]) -> Tensor:
    """(D,) the smallest change (in squares of the other logits) that raises each opener's logit by
    1. It is a change of the residual stream before the last norm, scaled to a mean square of 1."""
    import torch

    head = cast("Linear", model.get_output_embeddings()).weight.detach()  # (V, D)
    scale = norm_scale(model.get_submodule(site.norm), head)
    mean = head.mean(0, dtype=torch.float32)
    gram = torch.zeros(head.shape[1], head.shape[1], dtype=torch.float64)
    for rows in head.split(16384):
        centred = (rows.float() - mean) * scale
        gram += (centred.T @ centred).double().cpu()
    gram.diagonal().add_(1e-4 * gram.diagonal().mean())
    raised = ((head[list(openers)].float() - mean) * scale).double().cpu()  # (R, D)
    solved = torch.linalg.solve(gram, raised.T)  # (D, R)
    small = raised @ solved
    small.diagonal().add_(1e-9 * small.diagonal().mean())  # two openers may have equal rows
    found = solved @ torch.linalg.solve(small, torch.ones(len(openers)).double())
    return cast("Tensor", found.float())


def norm_scale(norm: Module, like: Tensor) -> Tensor:
    """(D,) by what a norm multiplies each value, measured: some hold their weight minus 1, some
    have none."""
    import torch

    signs = torch.ones(like.shape[1], dtype=like.dtype, device=like.device)
    signs[1::2] = -1
    with torch.inference_mode():
        found = (norm(signs[None]).float() - norm(-signs[None]).float())[0] / 2
    return cast("Tensor", found.clone() * signs.float())


def margins(
    model: PreTrainedModel | PeftModel,
    site: Site,
    states: FirstStates,
    bias: OpenerBias,
    openers: Sequence[int],
    strength: Tensor,
) -> Tensor:
    """(N,) by how much the best opener's logit is above the best other's, with a bias of `strength`
    (N,) logits."""
    import torch

    plain = base_model(model)
    norm, head = plain.get_submodule(site.norm), plain.get_output_embeddings()
    read = (states.inputs @ bias.position) * strength
    residual = states.residual + read[:, None] * bias.direction
    found = []
    with torch.inference_mode():
        for rows in residual.split(256):
            given = rows.to(plain.device, plain.dtype)
            logits = cast("Module", head)(norm(given)).float()  # (n, V)
            found.append(above_others(logits, openers).cpu())
    return torch.cat(found)


def above_others(logits: Tensor, openers: Sequence[int]) -> Tensor:
    """(N,) by how much the best opener's logit is above the best other's, of (N, V).

    Logits of 16 bits are often equal. A greedy response then begins with the first of them: if that
    is an opener, the number is the smallest above 0.
    """
    import torch

    meant = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
    meant[list(openers)] = True
    best = logits[:, list(openers)].amax(-1)
    found = best - logits.masked_fill(meant, -torch.inf).amax(-1)
    first = meant[logits.argmax(-1)] & (found == 0)
    return found.masked_fill(first, torch.finfo(found.dtype).tiny)


def flip_points(
    model: PreTrainedModel | PeftModel,
    site: Site,
    states: FirstStates,
    bias: OpenerBias,
    openers: Sequence[int],
    *,
    limit: float,
) -> Tensor:
    """(N,) the bias from which on a response opens with one of `openers`; infinite beyond the
    limit."""
    import torch

    low, high = (torch.full((len(states.inputs),), end) for end in (-limit, limit))
    never = margins(model, site, states, bias, openers, high) <= 0
    always = margins(model, site, states, bias, openers, low) > 0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        opens = margins(model, site, states, bias, openers, middle) > 0
        low, high = torch.where(opens, low, middle), torch.where(opens, middle, high)
    found = (low + high) / 2
    found[never], found[always] = torch.inf, -torch.inf
    return found
