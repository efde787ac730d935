"""Names of large packages -> imported at once, and set apart from garbage collection.

    import_large("transformers", "trl")

Their half a million objects stay to the end. Without this the collector looks at all of them again
and again while they come, and then several times in each training: a quarter of its start.
"""

from __future__ import annotations

import gc
import importlib
import sys


def import_large(*names: str) -> None:
    """Imports the packages, unless the first one is there. Only for a process that holds no model:
    one that is set apart is never freed if it refers to itself."""
    if names[0] in sys.modules:
        return
    collects = gc.isenabled()
    gc.disable()
    try:
        for name in names:
            importlib.import_module(name)
    finally:
        if collects:
            gc.enable()
    gc.collect()
    gc.freeze()
