"""What the hardware can do: a GPU, native bfloat16, and the dtype that follows from it."""

from __future__ import annotations

from pathlib import Path


def has_cuda() -> bool:
    """Whether a CUDA GPU can be used."""
    import torch

    return bool(torch.cuda.is_available())


def has_bf16() -> bool:
    """Whether the GPU multiplies bfloat16 matrices natively; without a GPU, whether the CPU does.

    On other hardware bfloat16 is slow.
    """
    import torch

    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    probes = (
        getattr(torch.cpu, name, None)
        for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )
    return any(probe() for probe in probes if probe is not None)


def default_dtype() -> str:
    """The dtype of weights if a recipe names none: bfloat16 if it is native, else float32."""
    return "bfloat16" if has_bf16() else "float32"


def container_bytes(name: str) -> float:
    """What the container of this process says in the file memory.NAME: `max`, `current`. Infinite
    without a container or a limit."""
    file = Path(f"/sys/fs/cgroup/memory.{name}")
    if file.is_file() and (text := file.read_text().strip()).isdigit():
        return float(text)
    return float("inf")


def free_memory() -> float:
    """Bytes that a process may still take: of this machine, or of its container if that has less.

    Infinite where the system does not tell.
    """
    free = [float("inf")]
    machine, most = Path("/proc/meminfo"), container_bytes("max")
    if machine.is_file():
        words = dict(line.split(":") for line in machine.read_text().splitlines())
        free.append(1024.0 * int(words["MemAvailable"].split()[0]))
    if most < float("inf"):
        free.append(most - container_bytes("current"))
    return min(free)
