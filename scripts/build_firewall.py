"""Maintainers only: benchmark files -> src/overrefusal_po/data/firewall.npz, signatures without any
text.

    python scripts/build_firewall.py --data FOLDER                      # builds all again
    python scripts/build_firewall.py --add jailbreakbench=FILE.jsonl
    # adds one to those that are there

A file is JSON Lines with `prompt` in each row. The prompts themselves are not copied.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from overrefusal_po.pairs.firewall import (
    build_firewall,
    joined,
    load_firewall,
    missing,
    save_firewall,
)
from overrefusal_po.records import read_objects

OUT = Path(__file__).resolve().parents[1] / "src" / "overrefusal_po" / "data" / "firewall.npz"
FILES = {
    "xstest": ("dev/overrefusal_xstest_safe.jsonl", "dev/harmful_xstest_unsafe.jsonl"),
    "orbench_hard": ("benchmarks/overrefusal_orbench_hard.jsonl",),
    "orbench_toxic": ("benchmarks/harmful_orbench_toxic.jsonl",),
    "harmbench_standard": ("dev/harmful_harmbench_standard.jsonl",),
    "strongreject": ("benchmarks/harmful_strongreject.jsonl",),
    "simple_safety_tests": ("dev/harmful_simple_safety_tests.jsonl",),
}


def prompts_in(path: Path) -> list[str]:
    """The prompt of every row; ValueError names the line that has none."""
    found = []
    for number, row in read_objects(path):
        if not isinstance(row.get("prompt"), str):
            raise ValueError(
                f"{path}, line {number}: the text `prompt` is missing; there is {', '.join(row)}."
            )
        found.append(row["prompt"])
    return found


def main() -> None:
    """Writes the file, and prints which benchmarks are in it and which are missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, help="the folder with dev/ and benchmarks/: build all again"
    )
    parser.add_argument("--add", action="append", default=[], metavar="NAME=FILE.jsonl")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    if not args.data and not args.add:
        parser.error("give --data, --add, or both")
    firewall = load_firewall(args.out) if not args.data else None
    if args.data:
        benchmarks = {
            name: [p for f in known for p in prompts_in(args.data / f)]
            for name, known in FILES.items()
        }
        firewall = build_firewall(benchmarks)
    for name, _, file in (text.partition("=") for text in args.add):
        firewall = (
            joined(firewall, build_firewall({name: prompts_in(Path(file))})) if firewall else None
        )
    assert firewall is not None
    save_firewall(firewall, args.out)
    for owner, name in enumerate(firewall.names):
        print(f"{name}: {(firewall.sketch_owners == owner).sum()} prompts")
    print(f"{args.out}: {args.out.stat().st_size / 1000:.0f} kB, {len(firewall.keys)} keys")
    print("\n".join(missing(firewall)))


if __name__ == "__main__":
    main()
