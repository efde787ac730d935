"""Private names of TRL, transformers and accelerate stand in train/trl_private.py and
train/trl_private_state.py alone; that of DeepSpeed in model/zero_parts.py, with its canary in
test_deepspeed.

The source is read with `ast`. What stands elsewhere is in ALLOWED, with a reason, and has a canary.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import overrefusal_po

SOURCE = Path(overrefusal_po.__file__).parent
LIBRARIES = {"trl", "transformers", "accelerate", "peft", "datasets"}
HOMES = ("train/trl_private.py", "train/trl_private_state.py")

TUPLES = {"_asdict", "_replace", "_fields", "_make"}
"""What every NamedTuple has: documented, in spite of the underscore."""

OTHERS = {
    # torch's operators behind frozen weights; test_packed_weights has the canary
    ("model/packed_weights.py", "torch.ops.mkldnn._linear_pointwise"),
    ("model/packed_weights.py", "torch.ops.mkldnn._reorder_linear_weight"),
    ("exact/pair_attention.py", "torch._C"),  # torch, which has no public name for it
    ("run/ranks.py", "os._exit"),  # Python's own, and documented
    ("run/thread_starts.py", "os._exit"),
}

ALLOWED: dict[str, set[str]] = {"model/zero_parts.py": {"_convert_to_deepspeed_param"}}
"""Private names outside of HOMES, by file: DeepSpeed's one, and none of the libraries above."""


def is_private(name: object) -> bool:
    """Whether a name is private: one underscore before it, and not two."""
    return isinstance(name, str) and name.startswith("_") and not name.startswith("__")


def own_names(tree: ast.AST) -> set[str]:
    """Private methods and attributes that the classes of a tree define, TRL's subclasses apart."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            if any("Trainer" in ast.unparse(base) for base in node.bases):
                continue
            for inner in ast.walk(node):
                if isinstance(inner, ast.FunctionDef):
                    found.add(inner.name)
                elif isinstance(inner, ast.AnnAssign) and isinstance(inner.target, ast.Name):
                    found.add(inner.target.id)
                elif isinstance(inner, ast.Attribute) and isinstance(inner.ctx, ast.Store):
                    found |= {inner.attr} if ast.unparse(inner.value) == "self" else set()
    return found


def uses(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """(text, private name) of what a tree reads, sets or overrides that may be a library's."""
    own = own_names(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            if node.attr not in own:
                yield ast.unparse(node), node.attr
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in NAMED and len(node.args) > 1:
            name = node.args[1]
            if isinstance(name, ast.Constant) and is_private(name.value):
                yield ast.unparse(node), str(name.value)
        elif isinstance(node, ast.ClassDef) and any(
            "Trainer" in ast.unparse(b) for b in node.bases
        ):
            for member in node.body:
                if isinstance(member, ast.FunctionDef) and is_private(member.name):
                    yield f"def {member.name}", member.name
                elif isinstance(member, ast.Assign | ast.AnnAssign):
                    target = member.targets[0] if isinstance(member, ast.Assign) else member.target
                    if is_private(getattr(target, "id", None)):
                        yield ast.unparse(member), target.id  # type: ignore[union-attr]


NAMED = ("getattr", "hasattr", "setattr", "delattr")


def private_imports(tree: ast.AST) -> Iterator[str]:
    """Dotted names that a tree imports from a library's private part."""
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            top, *parts = name.split(".")
            if top in LIBRARIES and any(map(is_private, parts)):
                yield name


def found_in(file: str, tree: ast.AST) -> list[str]:
    """Uses of a file that neither we nor Python own and that are not allowed there."""
    allowed = ALLOWED.get(file, set()) | TUPLES
    found = [
        text for text, name in uses(tree) if name not in allowed and (file, text) not in OTHERS
    ]
    return found + list(private_imports(tree))


FILES = {str(path.relative_to(SOURCE)): path for path in sorted(SOURCE.rglob("*.py"))}


@pytest.mark.parametrize("file", [file for file in FILES if file not in HOMES])
def test_no_other_file_uses_a_private_name_of_a_library(file: str) -> None:
    found = found_in(file, ast.parse(FILES[file].read_text()))
    assert not found, f"{file} uses {found}; put it into one of {HOMES}, with a canary in this file"


def test_what_is_allowed_is_used() -> None:
    """Else the lists would let new uses in unseen."""
    for file, names in ALLOWED.items():
        used = {name for _, name in uses(ast.parse(FILES[file].read_text()))}
        assert names <= used, f"no longer used in {file}: {names - used}"
    for file, text in OTHERS:
        texts = {found for found, _ in uses(ast.parse(FILES[file].read_text()))}
        assert text in texts, f"{text} is no longer used in {file}"


@pytest.mark.parametrize(
    "code",
    [
        "trainer._tr_loss",
        "trainer.model._x = 3",
        "config._attn_implementation",
        "hasattr(trainer, '_metrics')",
        "setattr(model, '_x', 1)",
        "from transformers.utils._pytree import tree",
        "from trl.trainer.utils import _tokenize",
        "import accelerate._hidden",
        "class A(DPOTrainer):\n    def _compute_loss(self): pass",
        "class A(DPOTrainer):\n    _name = 'x'",
        "class A(DPOTrainer):\n    def f(self): return self._metrics",
    ],
)
def test_such_a_use_would_be_seen(code: str) -> None:
    assert found_in("train/new.py", ast.parse(code))


@pytest.mark.parametrize(
    "code",
    [
        "row._asdict()",
        "class A:\n    def __init__(self): self._x = 1\n    def f(self): return self._x",
        "class A:\n    def _f(self): return self._f()",
        "from torch.nn.modules.dropout import _DropoutNd",
        "from overrefusal_po.judges._texts import x",
        "x.__class__",
    ],
)
def test_our_own_and_pythons_are_no_such_use(code: str) -> None:
    assert not found_in("train/new.py", ast.parse(code))
