"""A key in the wrong section of a recipe -> where it stands. Imports no torch.

elsewhere("opening", {"task": "train", "method": "dpo"})    # " It stands in data.opening."
"""

from __future__ import annotations

from collections.abc import Mapping

from overrefusal_po.recipe.keys import keys_of
from overrefusal_po.recipe.methods import all_methods


def elsewhere(key: str | None, values: Mapping[str, object]) -> str:
    """A sentence, with a blank before it, that names the keys of this recipe's task and method that
    end in `key`; "" if there are none, and for None.

    Args:
        key: the last part of a key that its section does not have.
        values: the recipe.
    """
    task, method = str(values.get("task")), values.get("method")
    if key is None or (task == "train" and method not in all_methods()):
        return ""
    known = keys_of(task, str(method) if task == "train" else None)
    found = sorted(name for name in known if name.rpartition(".")[2] == key)
    return f" It stands in {' and in '.join(found)}." if found else ""
