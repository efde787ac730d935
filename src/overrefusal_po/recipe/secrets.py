"""A recipe's values -> an error if one of them is a key: a recipe is printed, and kept in the run
folder.

check_no_secret({"name": "sk-proj-..."}, "dpo.yaml")    # ValueError, which does not repeat it
"""

from __future__ import annotations

import re

from overrefusal_po.recipe.overrides import nested_texts

SECRET = re.compile(
    r"(?<![\w-])(?:sk-(?:[a-z]+[0-9]*-)*|hf_|gsk_|xai-|nvapi-|ghp_|AIza|r8_)(?=[A-Za-z]*\d)"
    r"[A-Za-z0-9]{16,}|://[^/\s:@]*:[^/\s@]+@"
)
"""The keys of the usual services by how they begin, and an address with a password."""


def check_no_secret(values: object, where: object) -> None:
    """Raises ValueError for a value that looks like a key or a password, without repeating it."""
    for key, text in nested_texts(values):
        if SECRET.search(text):
            raise ValueError(
                f"{where}: {key} holds what looks like a key or a password (not shown), and "
                "recipes are printed and kept. Put it into an environment variable: HF_TOKEN for "
                "the hub, and for a server the one that api_key_env names."
            )
