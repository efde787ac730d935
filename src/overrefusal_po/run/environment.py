"""Versions, hardware and code state, for a run's manifest."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from typing import TypedDict

PACKAGES = ("overrefusal-po", "torch", "transformers", "trl", "peft", "accelerate", "datasets")


class Environment(TypedDict):
    """Where a run was made."""

    versions: dict[str, str]
    hardware: str
    git_commit: str | None
    finished: str
    """UTC time."""


def environment() -> Environment:
    """Versions, hardware and code state now. No API keys, no environment variables."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "versions": {**versions, "python": platform.python_version()},
        "hardware": hardware(),
        "git_commit": git_commit(),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def hardware() -> str:
    """One line: cores, memory, and the GPUs if torch is loaded and sees some."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = (
        os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
        if hasattr(os, "sysconf")
        else 0
    )
    text = f"{cores} CPU cores ({platform.machine()}), {memory:.0f} GiB"
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        text += f", {torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"
    return text


def git_commit() -> str | None:
    """The commit of the working folder, with + if it has changes; None outside a checkout."""
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, timeout=10
        )
        changes = subprocess.run(
            ["git", "status", "--porcelain"], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if commit.returncode != 0:
        return None
    return commit.stdout.strip() + ("+" if changes.stdout.strip() else "")
