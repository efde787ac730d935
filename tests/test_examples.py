"""The examples in the docstrings of exact/ and train/ are run, and print what they say."""

import doctest
import importlib
from pathlib import Path

import pytest

import overrefusal_po

SOURCE = Path(overrefusal_po.__file__).parent
MODULES = sorted(
    f"overrefusal_po.{room}.{path.stem}"
    for room in ("exact", "train")
    for path in (SOURCE / room).glob("*.py")
    if ">>> " in path.read_text(encoding="utf-8")
)
TENSOR_CODE = (
    "exact.pair_attention.PairMask",
    "exact.pair_attention.attend",
    "exact.shared_prefix.pack",
    "train.derta_rows.DertaCollator",
)


@pytest.mark.parametrize("module", MODULES)
def test_the_examples_of_a_module_print_what_they_say(module: str) -> None:
    result = doctest.testmod(importlib.import_module(module))
    assert result.attempted > 0 and result.failed == 0


@pytest.mark.parametrize("name", TENSOR_CODE)
def test_tensor_code_that_changes_a_layout_has_an_example(name: str) -> None:
    module, _, item = f"overrefusal_po.{name}".rpartition(".")
    found = doctest.DocTestFinder().find(importlib.import_module(module))
    assert [test for test in found if test.name.endswith(f".{item}") and test.examples]
