"""What to try after a run: the user's own command with another optimizer, data or length."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from recipe_arguments import optimizer_name
from transformers import TrainingArguments
from typed_command import TypedCommand, typed_command

# Words for each, and the name for --optim. In this order: the most useful first.
OPTIMIZERS = (
    ("fromage_spectral", "fromage_spectral"),
    ("AdamW, to compare", "adamw_torch"),
    ("the paper's Fromage", "fromage"),
)
_DATA = (
    "dataset_name", "dataset_config_name", "train_file", "validation_file", "text_column",
    "text_pair_column", "label_column",
)  # fmt: skip
_LENGTHS = ("max_steps", "num_train_epochs")
OWN_SCRIPT = ("your own script", "import hf_relopt, then pass --optim fromage_spectral")


@dataclass(frozen=True)
class Rates:
    """The learning rate of each optimizer in a recipe.

    Attributes:
        by_name: "adamw_torch", "fromage", ... -> peak learning rate.
        said: names whose learning rate must be given, since the script's default is another one.
    """

    by_name: Mapping[str, float]
    said: Collection[str] = ()


def other_optimizers(args: TrainingArguments, rates: Rates) -> list[tuple[str, str]]:
    """The same run with each of the other optimizers, as pairs of words and command."""
    current, command = optimizer_name(args), typed_command()
    found = []
    for words, name in OPTIMIZERS:
        if current == name or (current.startswith("adamw") and name.startswith("adamw")):
            continue
        run = "adamw" if name.startswith("adamw") else name
        changed = command.with_optimizer(
            name, run, rates.by_name[name], implied=name not in rates.said
        )
        found.append((words, str(changed)))
    return found


def longer(args: TrainingArguments) -> tuple[str, str]:
    """The same run with more steps, or passes over the data if those were asked for."""
    command, steps = typed_command(), ["--max_steps", str(6 * args.max_steps)]
    if args.max_steps <= 0:
        steps = ["--num_train_epochs", f"{3 * args.num_train_epochs:g}"]
    return "longer", str(command.changed("longer", steps, without=_LENGTHS))


def own_data(words: str, more: Sequence[str]) -> list[tuple[str, str]]:
    """The same run on the user's data; nothing where it is already.

    Args:
        words: what to call it, as in "your own text".
        more: flags that name it, as in ["--train_file", "notes.txt"].
    """
    command: TypedCommand = typed_command()
    if command.said.get("train_file"):
        return []
    return [(words, str(command.changed("mine", more, without=_DATA)))]
