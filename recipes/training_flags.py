"""The flags of TrainingArguments, read from its source: to import it takes seconds.

Only what is certain is used. Where a release keeps them otherwise nothing is known, and the real
parser finds a mistake some seconds later.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class TrainingFlag:
    """One field.

    Attributes:
        name: with underscores.
        kind: "int", "float", "bool", "words" (some of them) or "word" (any text).
        choices: what it takes; empty for any.
    """

    name: str
    kind: str
    choices: tuple[str, ...] = ()


def training_flags(module: str, name: str) -> dict[str, TrainingFlag]:
    """The fields of a dataclass and of those it inherits from; empty if they are not found.

    Args:
        module: its package, as in "transformers".
        name: the class, as in "TrainingArguments".
    """
    try:
        return _fields_of(name, _Sources(module))
    except (OSError, SyntaxError, LookupError, ValueError, ImportError):
        return {}


_FILES = {
    "transformers": ("training_args.py", "trainer_utils.py", "debug_utils.py"),
    "trl": ("trainer/sft_config.py", "trainer/base_config.py"),
}


class _Sources:
    """The classes of the files that may hold training arguments, of transformers and of TRL."""

    def __init__(self, package: str) -> None:
        self.classes: dict[str, ast.ClassDef] = {}
        for needed in dict.fromkeys(("transformers", package)):
            found = importlib.util.find_spec(needed)
            (folder,) = list(found.submodule_search_locations or ()) if found else [""]
            for file in _FILES[needed]:
                path = Path(folder, file)
                tree = ast.parse(path.read_text("utf-8")) if path.is_file() else ast.Module([], [])
                classes = (node for node in tree.body if isinstance(node, ast.ClassDef))
                self.classes.update((node.name, node) for node in classes)

    def words_of(self, name: str) -> tuple[str, ...]:
        """The values of an enum; empty if there is none of this name."""
        found = self.classes.get(name)
        if found is None or "Enum" not in " ".join(map(ast.unparse, found.bases)):
            return ()
        values = [node.value for node in found.body if isinstance(node, ast.Assign)]
        return tuple(str(value.value) for value in values if isinstance(value, ast.Constant))


def _fields_of(name: str, sources: _Sources) -> dict[str, TrainingFlag]:
    own = sources.classes[name]
    fields: dict[str, TrainingFlag] = {}
    for base in own.bases:
        if isinstance(base, ast.Name) and base.id in sources.classes:
            fields |= _fields_of(base.id, sources)
    for node in own.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            field = _flag(node.target.id, ast.unparse(node.annotation), sources)
            fields[field.name] = field
    return fields


def _flag(name: str, annotation: str, sources: _Sources) -> TrainingFlag:
    words = set(re.findall(r"\w+", annotation)) - {"None", "Optional", "Union"}
    if words & {"list", "List"}:
        return TrainingFlag(name, "words")
    choices = [value for word in words for value in sources.words_of(word)]
    if choices:
        return TrainingFlag(name, "word", tuple(choices))
    for kind in ("int", "float", "bool"):
        if words == {kind}:
            return TrainingFlag(name, kind)
    return TrainingFlag(name, "word")
