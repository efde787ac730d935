"""packages.py: large packages are imported without garbage collection, and stay out of it."""

import gc
import sys
from pathlib import Path

import pytest

from overrefusal_po.run.packages import import_large

LARGE = """
import gc
collected = gc.isenabled()
objects = [[] for _ in range(1000)]
"""


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a package that nobody has imported yet."""
    name = f"large_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(LARGE)
    (tmp_path / f"{name}_and_broken.py").write_text("raise RuntimeError('broken')")
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def test_what_is_imported_is_never_collected(large: str) -> None:
    gc.unfreeze()
    import_large(large)
    assert sys.modules[large].collected is False and gc.isenabled()
    assert gc.get_freeze_count() > 1000


def test_a_package_that_is_there_leaves_all_as_it_is(large: str) -> None:
    import_large(large)
    gc.unfreeze()
    import_large(large, "no_such_package")
    assert gc.get_freeze_count() == 0


def test_a_package_that_cannot_be_imported_leaves_the_collector_on(large: str) -> None:
    with pytest.raises(RuntimeError, match="broken"):
        import_large(f"{large}_and_broken")
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off(large: str) -> None:
    gc.disable()
    try:
        import_large(large)
        assert not gc.isenabled()
    finally:
        gc.enable()
