"""The command that started this run, as the user typed it, and the same with a few changes.

A file of arguments in it becomes the same arguments as flags. The changes are what a run suggests
at its end: another optimizer, data of the user's own, more steps.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from first_look import optimizer_name

from hf_relopt.cli import flags
from hf_relopt.cli.as_typed import from_here, program_word, python_word
from hf_relopt.errors import ConfigError
from hf_relopt.shipped import DOOR, OPTIMIZER_NAMES

if TYPE_CHECKING:
    from transformers import TrainingArguments

# Of other folders or moments than the run that is suggested.
_OF_THIS_RUN = ("run_name", "output_dir", "overwrite_output_dir", "resume_from_checkpoint")
_OF_THE_OPTIMIZER = ("optim", "optim_args", "learning_rate", "lns_format")
_MAKE = ["make", "demo"]
# What the Makefile says itself; the user's words come behind.
_MAKE_SAYS = ["--run_name", "demo"]
_LAUNCHERS = {
    "accelerate", "accelerate-launch", "accelerate.commands.launch", "hf_relopt.cli.launch",
    "torchrun", "torch.distributed.run",
}  # fmt: skip
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
class TypedCommand:
    """One command in its parts.

    Attributes:
        front: words before those that can be changed: launcher and script, or `hf-relopt recipes
            run`.
        file: a file of arguments, or a recipe's name; None if there is none.
        words: flags as typed.
        is_make: whether it was `make demo ARGS="..."`.
    """

    front: tuple[str, ...]
    file: str | None
    words: tuple[str, ...]
    is_make: bool = False

    def __str__(self) -> str:
        words = [*self.front, *filter(None, [self.file]), *self.words]
        if not self.is_make:
            return shlex.join(words)
        # Make expands what the shell then reads.
        text = shlex.join(self.words).replace("$", "$$")
        return " ".join([shlex.join(self.front), *([f"ARGS={_quoted(text)}"] if text else [])])

    @property
    def said(self) -> dict[str, str]:
        """Flags by name, those of a file of arguments included."""
        return {**self._in_file(), **{flag.name: flag.value for flag in _flags(self.words)}}

    def changed(
        self, run: str, more: Sequence[str] = (), *, without: Collection[str] = ()
    ) -> TypedCommand:
        """The same command for another run.

        Args:
            run: what is put behind the run's name, as in "adamw".
            more: flags to add.
            without: names of flags to leave out, besides those that name this run.
        """
        gone = {*_OF_THIS_RUN, *without}
        kept = [flag for flag in _flags(self.words) if flag.name not in gone]
        words = [*flags.joined(kept), *self._name_of(run), *more]
        return TypedCommand(self.front, self.file, tuple(words), self.is_make)

    def with_optimizer(self, name: str, run: str, rate: float, *, implied: bool) -> TypedCommand:
        """The same command with another optimizer at a learning rate of its own.

        Args:
            name: of the optimizer, for --optim.
            run: what is put behind the run's name.
            rate: the learning rate.
            implied: whether the script uses this learning rate by default.
        """
        gone = set(_OF_THE_OPTIMIZER)
        ours = name in OPTIMIZER_NAMES
        if ours:
            gone.add("weight_decay")  # they take none
        sibling = self._sibling(name)
        if sibling is not None:  # a recipe with a run name and a learning rate of its own
            command = TypedCommand(self.front, sibling, self.words).changed(run, without=gone)
            names = _OF_THIS_RUN[:2]
            if any(flag.name in names for flag in _flags(self.words)):
                return command
            kept = [flag for flag in _flags(command.words) if flag.name not in names]
            return TypedCommand(self.front, sibling, tuple(flags.joined(kept)))
        words, in_file = ["--optim", name], self._in_file()
        if not implied or "learning_rate" in in_file:
            words += ["--learning_rate", f"{rate:g}"]
        if ours and in_file.get("weight_decay", "0").strip("0."):
            words += ["--weight_decay", "0"]
        words += [f"--{flag}=" for flag in ("optim_args", "lns_format") if flag in in_file]
        return self.changed(run, words, without=gone)

    def _name_of(self, run: str) -> list[str]:
        said = self.said
        if said.get("output_dir"):
            return ["--output_dir", f"{said['output_dir'].rstrip('/')}-{run}"]
        if said.get("run_name"):
            return ["--run_name", f"{said['run_name']}-{run}"]
        return ["--run_name", f"demo-{run}" if self.is_make else run]

    def _in_file(self) -> dict[str, str]:
        if self.file is None or not Path(self.file).is_file():
            return {}
        try:
            written = arguments_file(Path(self.file))
        except ConfigError:
            return {}
        return {name: str(value) for name, value in written.items() if value is not None}

    def _sibling(self, optimizer: str) -> str | None:
        """The recipe of another optimizer beside this one; None where there is none."""
        if self.file is None:
            return None
        stem = "adamw" if optimizer.startswith("adamw") else optimizer
        recipes = Path(__file__).resolve().parent
        path = Path(self.file)
        if path.is_file():
            beside = path.with_name(f"{stem}{path.suffix}")
            shipped = path.resolve().parent.parent == recipes
            return str(beside) if shipped and beside.is_file() else None
        task = self.file.strip("/").partition("/")[0]
        return f"{task}/{stem}" if (recipes / task / f"{stem}.yaml").is_file() else None


def typed_command() -> TypedCommand:
    """How this process was started."""
    argv = sys.argv[1:]
    front, rest = _door()
    if front[: len(_MAKE)] == _MAKE:
        rest = argv[len(_MAKE_SAYS) :] if argv[: len(_MAKE_SAYS)] == _MAKE_SAYS else argv
        return TypedCommand(tuple(front), None, tuple(rest), is_make=True)
    if front:
        return _of_words(front, rest)
    return _of_words([*_launcher(), from_here(sys.argv[0])], argv)


def _door() -> tuple[list[str], list[str]]:
    """The command of ours that started the launcher, and what was typed behind it; or nothing."""
    try:
        front, rest = json.loads(os.environ[DOOR])
        return [str(word) for word in front], [str(word) for word in rest]
    except (KeyError, ValueError, TypeError):
        return [], []


def _flags(words: Sequence[str]) -> list[flags.Flag]:
    """Flags with their values; words before the first flag stay in front, without a name."""
    first = next((i for i, word in enumerate(words) if word.startswith("--")), len(words))
    return [*(flags.Flag("", (word,)) for word in words[:first]), *flags.split(words[first:])]


def _of_words(front: Sequence[str], rest: Sequence[str]) -> TypedCommand:
    named = bool(rest) and not rest[0].startswith("-")
    return TypedCommand(tuple(front), rest[0] if named else None, tuple(rest[named:]))


def _launcher() -> list[str]:
    """The words of `accelerate launch` or `torchrun` before the script; else Python's."""
    words = _words_of_parent()
    place = len(words) - len(sys.argv)
    started_us = place > 0 and words[place:] == sys.argv
    if not started_us or not _LAUNCHERS & {Path(word).name for word in words[:3]}:
        return [python_word()]
    if Path(words[1]).name in _LAUNCHERS:
        return [program_word(words[1]), *words[2:place]]
    return [python_word(), *words[1:place]]


def _words_of_parent() -> list[str]:
    try:
        import psutil

        return psutil.Process(os.getppid()).cmdline()
    except Exception:  # gone, or somebody else's: its words are a comfort, not needed
        return []


def _quoted(text: str) -> str:
    return f'"{text}"' if not set('"\\$`!') & set(text) else shlex.quote(text)


@dataclass(frozen=True)
class Rates:
    """The learning rate of each optimizer in a recipe.

    Attributes:
        by_name: "adamw_torch", "fromage", ... -> peak learning rate.
        said: names whose learning rate must be given, since the script's default is another one.
    """

    by_name: Mapping[str, float]
    said: Collection[str] = ()


def next_steps(
    args: TrainingArguments, rates: Rates, data: str, more: Sequence[str]
) -> list[tuple[str, str]]:
    """What to try after a run: another optimizer, more steps, the user's own data.

    Args:
        args: of the run.
        rates: what the other optimizers' learning rates are in this recipe.
        data: what to call the user's own data, as in "your own text".
        more: flags that name it, as in ["--train_file", "notes.txt"].

    Returns:
        Pairs of words and command.
    """
    return [*other_optimizers(args, rates), longer(args), *own_data(data, more)]


def other_optimizers(args: TrainingArguments, rates: Rates) -> list[tuple[str, str]]:
    """The same run with each of the other optimizers, as pairs of words and command."""
    current, command = optimizer_name(args), typed_command()
    if current == "integer_madam" and not command.said.get("lns_format"):
        return []  # the model is in codes already, and no other can step it
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


def expanded(argv: Sequence[str]) -> list[str]:
    """The flags of a command line, with those of a file in front of them that they do not set.

    Args:
        argv: ``[FILE.json or FILE.yaml] [--flag value ...]``.

    Raises:
        ConfigError: a first word that is neither, or a file that cannot be used.
    """
    if not argv or argv[0].startswith("-"):
        return list(argv)
    written, said = arguments_file(Path(argv[0])), flags.split(argv[1:])
    kept = flags.without({flag.name for flag in said}, written)
    words = [word for name, value in kept.items() for word in flags.as_words(name, value)]
    return [*words, *flags.joined(said)]


def arguments_file(path: Path) -> dict[str, Any]:
    """The names and values in a JSON or YAML file.

    Raises:
        ConfigError: there is no such file, or it holds something else.
    """
    try:
        there = path.is_file()
    except (OSError, ValueError):
        there = False
    if not there:
        raise ConfigError(f"{path} is neither a flag (--name value) nor a file of arguments.")
    import yaml

    try:
        text = path.read_text("utf-8")
        written = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, OSError, yaml.YAMLError, RecursionError) as error:
        words = " ".join(str(error).split()).rstrip(".")
        raise ConfigError(
            f"cannot read the arguments in {path}: {words or type(error).__name__}."
        ) from error
    if not isinstance(written, dict) or not all(isinstance(name, str) for name in written):
        kind = "names that are not words" if isinstance(written, dict) else _kind(written)
        raise ConfigError(f"{path} must hold names and values, as in `max_steps: 100`, not {kind}.")
    for name, value in written.items():
        if isinstance(value, list) and any(isinstance(one, (dict, list)) for one in value):
            raise ConfigError(f"{path} has lists in the list {name}; no argument takes them.")
    return written


def _kind(value: object) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"
