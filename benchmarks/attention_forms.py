"""In which form is attention over pairs that share a prompt (prompt, chosen, rejected) fastest?
Each is checked, then timed.

    python benchmarks/attention_forms.py --json OUT [--tiny]
    # a GPU; --tiny: small shapes, a CPU will do

    rows, causal    two rows a pair, causal flag only: the fastest kernel, on the prompt twice and on padding
    rows, mask      the same with the boolean mask that transformers makes when a batch is padded
    shared, mask    one row a pair, boolean mask
    shared, flex    one row a pair, FlexAttention with a block mask, padded to its blocks of 128 (has no backward pass on CPUs:
                    forward only, not timed)
    pairs (ours)    all pairs in one row without padding, what `overrefusal_po.exact.pair_attention` does: the first side causally,
                    then the rejected one over the prompt and itself
    pairs, varlen   the same row by flash attention on segments, in one call (a GPU kernel)

A form whose output or gradient (of queries, keys and values) differs by more than rounding from the
mask in float32 is reported and not timed. Times are medians of one layer's attention; heads are as
in Llama-3.1-8B, and tensors lie in memory as transformers leaves them there.
"""

from __future__ import annotations

import argparse
import inspect
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from overrefusal_po.exact.pair_attention import Pair, PairMask

HEADS = (32, 8, 128)
"""Query heads, key heads, width of a head: Llama-3.1-8B (config.json)."""

SHAPES = [(128, 512, 64), (1024, 256, 128), (1024, 512, 512)]
"""Most tokens of prompt, chosen and rejected side: a long answer against a short refusal, long
prompts, long sides too."""

BATCH, ROUNDING = 4, {torch.bfloat16: 0.02, torch.float32: 1e-4}
"""Pairs, and the allowed relative difference (norms) to float32; bfloat16 keeps 8 bits, 0.004 an
operand."""


class Layout(NamedTuple):
    """Pairs in shared rows. `prompt`, `chosen`, `rejected`: (batch,) tokens of each."""

    prompt: Tensor
    chosen: Tensor
    rejected: Tensor

    @property
    def split(self) -> Tensor:
        return self.prompt + self.chosen

    @property
    def length(self) -> Tensor:
        return self.split + self.rejected

    @property
    def width(self) -> int:
        """Columns of a shared row."""
        return int(self.length.max())

    def source(self) -> tuple[Tensor, Tensor]:
        """(batch, seq) columns of the shared row behind the chosen and the rejected row."""
        column = torch.arange(int((self.prompt + torch.maximum(self.chosen, self.rejected)).max()))
        column = column.to(self.prompt.device)[None]
        behind = torch.where(column < self.prompt[:, None], column, column + self.chosen[:, None])
        return column.expand(len(self.prompt), -1).clamp(max=self.width - 1), behind.clamp(
            max=self.width - 1
        )


class Form(NamedTuple):
    """(rows, heads, columns, width of a head) queries, keys and values -> attended values of that
    shape."""

    name: str
    lay: str
    """How it takes pairs, of LAYS: "rows" (all chosen ones, then all rejected ones), "shared" or
    "pairs"."""
    attend: Callable[[Tensor, Tensor, Tensor], Tensor]
    only: str = ""
    """Why nothing but the check is done on this machine."""
    backward: bool = True


def draw(shape: Sequence[int], batch: int, seed: int, device: str) -> Layout:
    """A batch whose prompts and sides are 75 % to 100 % of `shape`."""
    rng = random.Random(seed)
    return Layout(
        *(
            torch.tensor([rng.randint(3 * n // 4, n) for _ in range(batch)], device=device)
            for n in shape
        )
    )


def shared_mask(layout: Layout) -> Tensor:
    """(batch, 1, width, width), True where a query may look: back within its side, and from the
    tail at the beginning.

    Padding looks at itself, since a row of the softmax without any key is not a number.
    """
    start, split, length = (x[:, None, None] for x in (layout.prompt, layout.split, layout.length))
    column = torch.arange(layout.width, device=start.device)
    query, key = column[:, None], column[None, :]
    reachable = ((query >= split) == (key >= split)) | ((query >= split) & (key < start))
    return (((key <= query) & reachable & (key < length)) | (query == key))[:, None]


def rows_mask(layout: Layout) -> Tensor:
    """(2 * batch, 1, seq, seq): causal, and no padding is looked at."""
    lengths = torch.cat([layout.split, layout.prompt + layout.rejected])
    column = torch.arange(layout.source()[0].shape[1], device=lengths.device)
    causal = column[None, :] <= column[:, None]
    return (causal & (column < lengths[:, None])[:, None, :])[:, None]


def masked(mask: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """As transformers does it: with a mask, keys and values are repeated for their query heads."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    return scaled_dot_product_attention(q, k, v, attn_mask=mask)


def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


# ------------------------------------------------------------------------------------- flex, varlen


def flex(layout: Layout, device: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """FlexAttention on a block mask, compiled where there is a GPU. Its blocks want a multiple of
    128 columns."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    start, split, length = layout.prompt, layout.split, layout.length
    width = -(-layout.width // 128) * 128

    def visible(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        reachable = ((q >= split[b]) == (k >= split[b])) | ((q >= split[b]) & (k < start[b]))
        return ((k <= q) & reachable & (k < length[b])) | (q == k)

    block_mask = create_block_mask(visible, len(start), None, width, width, device=device)
    kernel = torch.compile(flex_attention, dynamic=False) if device == "cuda" else flex_attention

    def attend(*given: Tensor) -> Tensor:
        blocks = (pad(x, (0, 0, 0, width - layout.width)) for x in given)
        found: Tensor = kernel(*blocks, block_mask=block_mask, enable_gqa=True)
        return found[:, :, : layout.width]

    return attend


def pairs_of(layout: Layout) -> list[Pair]:
    return [Pair(p + c, r, p) for p, c, r in zip(*(x.tolist() for x in layout), strict=True)]


def varlen(
    layout: Layout, kernel: Callable[..., Tensor]
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Attention by `kernel` on two segments a pair: the first side, and the tail with a copy of the
    prompt's keys before it.

    A causal kernel for segments lets the last query see the last key, so that a rejected token sees
    prompt and own side.
    """
    index, lengths, begin = [], [], 0
    for first, tail, common in pairs_of(layout):
        row = torch.arange(begin, begin + first + tail)
        index += [row[:first], row[:common], row[first:]]
        lengths += [(first, first), (tail, common + tail)]
        begin += first + tail
    device = layout.prompt.device
    keys, sizes = torch.cat(index).to(device), torch.tensor(lengths)
    ends = [pad(side.cumsum(0), (1, 0)).to(device, torch.int32) for side in sizes.T]
    cuts = (*ends, *sizes.amax(0).tolist())

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        flat_q, flat_k, flat_v = (x[0].transpose(0, 1) for x in (q, k, v))
        return kernel(flat_q, flat_k[keys], flat_v[keys], *cuts).transpose(0, 1)[None]

    return attend


def flash_segments() -> Callable[..., Tensor]:
    """torch's flash attention on segments. ImportError in a torch that has none."""
    from torch.nn.attention.varlen import varlen_attn

    known = inspect.signature(
        varlen_attn
    ).parameters  # its options have changed from release to release
    options: dict[str, Any] = (
        {"window_size": (-1, 0)} if "window_size" in known else {"is_causal": True}
    )
    if "enable_gqa" in known:
        options["enable_gqa"] = True
    return partial(varlen_attn, **options)


def forms(layout: Layout, device: str) -> list[Form]:
    """All forms for one batch; what this machine or torch lacks is only checked, or left out with a
    line."""
    cpu = device == "cpu"
    made = [
        Form("rows, causal", "rows", causal),
        Form("rows, mask", "rows", partial(masked, rows_mask(layout))),
        Form("shared, mask", "shared", partial(masked, shared_mask(layout))),
        Form(
            "shared, flex",
            "shared",
            flex(layout, device),
            "no backward pass on CPUs" if cpu else "",
            not cpu,
        ),
        Form("pairs (ours)", "pairs", partial(masked, PairMask.of(pairs_of(layout), device))),
    ]
    try:
        if not cpu:
            made.append(Form("pairs, varlen", "pairs", varlen(layout, flash_segments())))
    except ImportError as error:
        print(f"pairs, varlen: left out, {error}", file=sys.stderr)
    return made


# -------------------------------------------------------------------------------------------------
# checking, timing


def laid_out(x: Tensor) -> Tensor:
    """The same values with the heads of a token side by side, as its layer made them."""
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def in_rows(layout: Layout, x: Tensor) -> Tensor:
    """Shared rows -> two rows a pair, each (batch, heads, columns, width)."""
    return torch.cat(
        [torch.stack([x[i, :, at] for i, at in enumerate(side)]) for side in layout.source()]
    )


def in_shared(layout: Layout, x: Tensor) -> Tensor:
    """Two rows a pair -> shared rows; the prompt is the chosen row's."""
    column = torch.arange(layout.width, device=x.device)
    made = []
    for i, (p, c) in enumerate(zip(layout.prompt.tolist(), layout.chosen.tolist(), strict=True)):
        first = x[i][:, column.clamp(max=x.shape[2] - 1)]
        second = x[i + len(layout.prompt)][:, (column - c).clamp(min=0, max=x.shape[2] - 1)]
        made.append(torch.where((column < p + c)[None, :, None], first, second))
    return torch.stack(made)


def in_pairs(layout: Layout, x: Tensor) -> Tensor:
    """Shared rows -> one row of all pairs, (1, heads, tokens, width)."""
    return torch.cat(
        [row[:, :length] for row, length in zip(x, layout.length.tolist(), strict=True)], dim=1
    )[None]


def from_pairs(layout: Layout, x: Tensor) -> Tensor:
    """One row of all pairs -> shared rows."""
    parts = x[0].split(layout.length.tolist(), dim=1)
    return torch.stack([pad(part, (0, 0, 0, layout.width - part.shape[1])) for part in parts])


def as_is(layout: Layout, x: Tensor) -> Tensor:
    return x


LAYS = {"rows": (in_rows, in_shared), "shared": (as_is, as_is), "pairs": (in_pairs, from_pairs)}
"""How a form takes pairs: from shared rows, and back."""


def passed(form: Form, layout: Layout, inputs: Sequence[Tensor], upstream: Tensor) -> list[Tensor]:
    """The output, and where the form has it the gradient of queries, keys and values, in shared
    rows without padding."""
    leaves = [x.detach().clone().requires_grad_(form.backward) for x in inputs]
    lay, back = LAYS[form.lay]
    out = back(layout, form.attend(*(lay(layout, x) for x in leaves)))
    valid = (torch.arange(layout.width, device=out.device) < layout.length[:, None])[
        :, None, :, None
    ]
    found = [out * valid]
    if form.backward:
        found += torch.autograd.grad(found[0], leaves, upstream.to(out.dtype))
    return [x.detach().float() for x in found]


def differences(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> tuple[float, float]:
    """(greatest relative difference by norms, greatest difference of a value) over output and
    gradients."""
    pairs = list(zip(found, wanted, strict=False))
    return max(float((a - b).norm() / b.norm()) for a, b in pairs), max(
        float((a - b).abs().max()) for a, b in pairs
    )


def median_ms(call: Callable[[], Any], device: str) -> float:
    if device == "cuda":
        from triton.testing import do_bench

        return float(
            do_bench(call, warmup=50, rep=300, return_mode="median")
        )  # empties the L2 cache before each
    times = []
    for _ in range(4):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return 1000 * statistics.median(times[1:])


def timed(form: Form, layout: Layout, inputs: Sequence[Tensor], device: str) -> dict[str, float]:
    """Milliseconds of the forward pass, of both passes, and the bytes that both take on top of
    their inputs (GPU)."""
    given = [laid_out(LAYS[form.lay][0](layout, x)).detach().requires_grad_() for x in inputs]
    upstream = torch.randn_like(given[0])

    def both() -> None:
        torch.autograd.grad(form.attend(*given), given, upstream)

    both()
    found = {
        "forward_ms": median_ms(lambda: form.attend(*given), device),
        "both_ms": median_ms(both, device),
    }
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        both()
        found["bytes"] = torch.cuda.max_memory_allocated() - before
    return found


def measure(
    shape: Sequence[int], heads: Sequence[int], batch: int, device: str, dtype: torch.dtype
) -> list[dict[str, Any]]:
    """A row a form for one shape."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    torch.manual_seed(0)
    layout = draw(shape, batch, 0, device)
    sizes = [
        (batch, count, layout.width, heads[2]) for count in (heads[0], heads[1], heads[1], heads[0])
    ]
    *inputs, upstream = (torch.randn(size, device=device).to(dtype) for size in sizes)
    reference = Form("mask in float32", "shared", partial(masked, shared_mask(layout)))
    with sdpa_kernel(SDPBackend.MATH):
        wanted = passed(reference, layout, [x.float() for x in inputs], upstream)
    found: list[dict[str, Any]] = []
    for form in forms(layout, device):
        row: dict[str, Any] = {
            "form": form.name,
            "shape": list(shape),
            "width": layout.width,
            "batch": batch,
        }
        try:
            row["relative_difference"], row["max_difference"] = differences(
                passed(form, layout, inputs, upstream), wanted
            )
            if not row["relative_difference"] <= ROUNDING[dtype]:
                row["wrong"] = f"differs by more than {ROUNDING[dtype]}; not timed"
            elif form.only:
                row["not_timed"] = form.only
            else:
                row |= timed(form, layout, inputs, device)
        except (
            RuntimeError,
            ValueError,
            NotImplementedError,
        ) as error:  # a kernel that this GPU or torch lacks
            row["failed"] = str(error).splitlines()[0]
        print(json.dumps(row), file=sys.stderr)
        found.append(row)
    return found


def results(*, tiny: bool) -> list[dict[str, Any]]:
    """Rows of all shapes on this machine's device."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    shapes, heads, batch = ([(24, 40, 9)], (4, 2, 16), 2) if tiny else (SHAPES, HEADS, BATCH)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    return [row for shape in shapes for row in measure(shape, heads, batch, device, dtype)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    arguments.json.write_text(json.dumps(results(tiny=arguments.tiny), indent=1))
