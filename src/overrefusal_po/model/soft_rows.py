"""Rows of a model's embedding that are trained while all else stands still, then plain weights.

    rows = SoftRows(model, soft)       # new rows, started as those of the text; all else is frozen
    trainer.train()                    # only `embed_tokens.soft_rows` (n, D) has a gradient
    rows.fold()                        # the rows stand in the embedding, and the model is plain

A hook puts the rows into the embedding's output. So gradients and optimiser hold n rows, not the
whole vocabulary, tied or untied: the output layer never sees them in training. peft's trainable
tokens do the same, but they are an adapter. An adapter needs a base that has the new rows already,
and nothing that serves adapters can serve it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from overrefusal_po.model.soft_tokens import SoftPrompt

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module
    from transformers import PreTrainedModel

NAME = "soft_rows"
"""The parameter of the embedding while it is trained."""


class SoftRows:
    """The rows of new tokens on a loaded model, which it changes.

    Args:
        model: its embedding gets the new rows; everything else is frozen until `fold`.
        soft: the new tokens, and those that they begin as.

    Raises ValueError for quantised weights, and for an embedding that does more than a look-up.
    """

    def __init__(self, model: PreTrainedModel, soft: SoftPrompt) -> None:
        import torch

        if getattr(model, "is_quantized", False) or hasattr(model, "peft_config"):
            raise ValueError(
                "Soft tokens are trained in a plain model. This one is quantised or has an "
                "adapter: load it in 16 or 32 bits, its adapter merged."
            )
        self.model, self.ids = model, soft.ids
        add_rows(model, soft)
        self.scale = scale_of(self.embedding, soft.start)
        self.frozen = {name: w.requires_grad for name, w in model.named_parameters()}
        for weight in model.parameters():
            weight.requires_grad_(False)
        begun = self.embedding.weight.data[soft.start].float().clone()
        self.embedding.register_parameter(NAME, torch.nn.Parameter(begun))
        self.handle = self.embedding.register_forward_hook(self.put_in)

    @property
    def embedding(self) -> Any:  # Any: an nn.Embedding, of a class of the model's own perhaps
        """The model's input embedding."""
        return self.model.get_input_embeddings()

    @property
    def folded(self) -> bool:
        """Whether the rows stand in the weights."""
        return not hasattr(self.embedding, NAME)

    def put_in(self, module: Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """(B, T, D): the embedding's output with the rows at the soft tokens of `inputs` (B, T)."""
        import torch

        rows: Tensor = getattr(module, NAME)  # (n, D)
        places = inputs[0] - self.ids[0]  # (B, T); the ids stand in a row
        own = (places >= 0) & (places < len(rows))
        taken = (rows * self.scale).to(output.dtype)[places.clamp(0, len(rows) - 1)]
        return torch.where(own[..., None], taken, output)

    def fold(self) -> None:
        """Writes the rows into the embedding and leaves a plain model. Once is enough."""
        import torch

        if self.folded:
            return
        with torch.no_grad():
            rows = getattr(self.embedding, NAME)
            self.embedding.weight[self.ids] = rows.to(self.embedding.weight.dtype)
        delattr(self.embedding, NAME)
        self.handle.remove()
        for name, weight in self.model.named_parameters():
            weight.requires_grad_(self.frozen.get(name, True))


def add_rows(model: PreTrainedModel, soft: SoftPrompt) -> None:
    """Gives the embedding a row for each new token, a copy of the one it begins as, and forbids the
    new tokens at generation.

    Many models have more rows than tokens; the embedding then keeps its size. The output rows of
    untied models are 0.
    """
    import torch

    size = model.config.get_text_config().vocab_size
    if size <= soft.ids[-1]:
        model.resize_token_embeddings(soft.ids[-1] + 1, mean_resizing=False)
    # Any: torch's types do not know their weights
    embedding: Any = model.get_input_embeddings()
    head: Any = model.get_output_embeddings()
    with torch.no_grad():
        if head is not None and head.weight is not embedding.weight:
            head.weight[soft.ids] = 0
            if getattr(head, "bias", None) is not None:
                head.bias[soft.ids] = 0
        embedding.weight[soft.ids] = embedding.weight[soft.start]
    config = model.generation_config
    if config is not None:
        known = config.suppress_tokens or []
        config.suppress_tokens = [*known, *(i for i in soft.ids if i not in known)]


def scale_of(embedding: Any, ids: list[int]) -> float:  # Any: as above
    """What the embedding multiplies its rows by: 1, or more in Gemma's. ValueError if it does
    something else with them."""
    import torch

    scale = float(getattr(embedding, "embed_scale", 1.0))
    with torch.no_grad():
        given = embedding(torch.tensor([ids], device=embedding.weight.device))[0]
    if not torch.allclose(given.float(), embedding.weight[ids].float() * scale, rtol=1e-2):
        raise ValueError(
            f"A {type(embedding).__name__} does more than look rows up, so no rows of it can be "
            "trained alone. Take another model."
        )
    return scale
