"""A first check of the command line, before torch, transformers and datasets are loaded.

It finds mistakes that need none of them: unknown flags, values that are not numbers, missing files,
a folder that cannot be written. Everything is checked again later, and more thoroughly.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import importlib.util
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, get_args, get_type_hints

from run_folder import RunFolder

from hf_relopt.errors import ConfigError
from hf_relopt.shipped import OPTIMIZER_NAMES

if TYPE_CHECKING:
    from recipe import Recipe
    from transformers import TrainingArguments

# The least that a training argument may be.
_AT_LEAST = {
    "per_device_train_batch_size": 1, "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 1, "warmup_steps": 0, "seed": 0, "dataloader_num_workers": 0,
    "max_grad_norm": 0,
}  # fmt: skip
_ABOVE_ZERO = ("num_train_epochs", "logging_steps", "eval_steps", "save_steps")
# Trackers for --report_to, and the package of each.
TRACKERS = {
    "tensorboard": "tensorboard", "trackio": "trackio", "wandb": "wandb", "mlflow": "mlflow",
    "comet_ml": "comet_ml", "clearml": "clearml", "dvclive": "dvclive", "neptune": "neptune",
    "swanlab": "swanlab", "codecarbon": "codecarbon",
}  # fmt: skip
HELP = {"-h", "--help", "--help_all", "--help-all"}
_BOOLEANS = ("yes", "true", "t", "y", "1", "no", "false", "f", "n", "0")  # HfArgumentParser's


def first_look(recipe: Recipe, words: Sequence[str]) -> None:
    """Find the mistakes in a command line that are quick to find.

    Args:
        recipe: whose script was called.
        words: flags and values.

    Raises:
        ConfigError: with the argument, the value, what is allowed, and the remedy.
    """
    if HELP & set(words):
        return
    parser = _Parser(recipe)
    said = parser.read(words)
    parts = [
        kind(**{field.name: said[field.name] for field in fields(kind) if field.name in said})
        for kind in recipe.kinds
    ]
    require_extras(recipe.extras(tuple(parts)))
    check_numbers(said)
    if parser.knows_training:
        check_optimizer_words({**recipe.defaults, **said}, parser.optimizers)
        folder = run_folder_of({**recipe.defaults, **said})
        RunFolder(folder).check_place()
        check_checkpoint(said.get("resume_from_checkpoint"))
        check_trackers(said.get("report_to"))
    for part in parts:
        if hasattr(part, "look"):
            part.look()


def run_folder_of(said: Mapping[str, Any]) -> Path:
    """Where a run goes: --output_dir, or runs/<run_name>."""
    if said.get("output_dir"):
        return Path(said["output_dir"]).expanduser()
    return Path("runs") / (said.get("run_name") or "run")


def check_numbers(said: Mapping[str, Any]) -> None:
    """Raise a ConfigError for counts with which nothing can be trained."""
    # A release may type a field so that it is not known to be a number here.
    numbers = {name: value for name, value in said.items() if isinstance(value, (int, float))}
    for name, least in _AT_LEAST.items():
        if numbers.get(name, least) < least:
            raise ConfigError(f"{name} is {numbers[name]}; it must be {least} or more.")
    for name in _ABOVE_ZERO:
        if not numbers.get(name, 1) > 0:
            raise ConfigError(f"{name} is {numbers[name]}; it must be above 0.")
    if numbers.get("max_steps", 1) < 1 and numbers["max_steps"] != -1:
        raise ConfigError(
            f"max_steps is {numbers['max_steps']}; it must be 1 or more, or -1 to train for "
            "num_train_epochs."
        )
    if said.get("run_name") == "":
        raise ConfigError("run_name is empty. Name the run, or leave --run_name out.")


def check_checkpoint(name: str | None) -> None:
    """Raise a ConfigError for a checkpoint that is not there; what is in it is looked at later."""
    if name is None or name.lower() in ("true", "false"):
        return
    try:
        there = Path(name).is_dir()
    except (OSError, ValueError):
        there = False
    if not there:
        raise ConfigError(
            f"resume_from_checkpoint is {name[:80]!r}: there is no such folder. Pass a folder "
            "such as runs/NAME/checkpoint-100, or leave it out: the run folder's own checkpoint "
            "is found anyway."
        )


def check_trackers(names: str | Sequence[str] | None) -> None:
    """Raise a ConfigError for a tracker of --report_to that is not installed."""
    for name in names.split() if isinstance(names, str) else names or ():
        if name in TRACKERS and importlib.util.find_spec(TRACKERS[name]) is None:
            extra = (
                "'hf_relopt[tracking]'" if name in ("tensorboard", "trackio") else TRACKERS[name]
            )
            raise ConfigError(
                f"--report_to {name} needs a package that is not installed. Install it: "
                f"pip install {extra}"
            )


def require_extras(packages: Mapping[str, str]) -> None:
    """Raise a ConfigError for a package that is not installed.

    Args:
        packages: its name -> the extra of hf_relopt that installs it.
    """
    for package, extra in packages.items():
        if importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"{package} is not installed, but needed here. Install it: pip install "
                f"'hf_relopt[{extra}]'"
            )


def optimizer_name(args: TrainingArguments) -> str:
    """The word the user gave for --optim."""
    return str(getattr(args.optim, "value", args.optim))


def check_optimizer_words(said: Mapping[str, Any], known: Sequence[str]) -> None:
    """Check --optim and what belongs to it against each other.

    That is --optim_args, --learning_rate, --weight_decay and --lns_format.

    Args:
        said: names and values; those that were not given may be missing.
        known: what --optim takes; empty if that is not known.

    Raises:
        ConfigError: with the value and what is allowed.
    """
    name, rate = str(said.get("optim")), said.get("learning_rate")
    ours = name in OPTIMIZER_NAMES
    if known and name not in known and not ours:
        raise unknown_optimizer(name, known)
    if rate is not None:
        check_learning_rate(name, rate)
    text = said.get("optim_args")
    check_pairs(text)
    if ours and said.get("weight_decay"):
        raise ConfigError(
            f"weight_decay is {said['weight_decay']}; {name} takes only 0: it keeps the norms of "
            "weights by itself. Drop --weight_decay."
        )
    if said.get("lns_format"):
        check_format(name, said["lns_format"])
    if ours and text:
        from hf_relopt.hf import optim_args  # loads torch

        optim_args.parse(name, text)


def check_format(optim: str, name: str) -> None:
    """Raise a ConfigError for a format that does not exist, or that this optimizer cannot step."""
    if optim != "integer_madam":
        raise ConfigError(
            f"lns_format is {name!r}, but {optim} cannot step weights in codes. Pass "
            "--optim integer_madam, or leave --lns_format out."
        )
    from hf_relopt.lns.format import FORMATS  # loads torch

    if name not in FORMATS:
        raise ConfigError(f"lns_format is {name!r}; use one of {', '.join(FORMATS)}.")


def check_learning_rate(name: str, rate: float) -> None:
    """Raise a ConfigError for a learning rate that the optimizer of this name cannot take."""
    if not math.isfinite(rate) or rate < 0:
        raise ConfigError(
            f"learning_rate is {rate}; it must be a finite number, 0 or above. Leave it out for "
            f"the default of {name}."
        )
    if name in OPTIMIZER_NAMES and rate >= 1:
        raise ConfigError(
            f"learning_rate is {rate}; {name} takes 0 <= learning_rate < 1, a fraction of each "
            "weight's norm. Leave it out for the default of the optimizer and the model."
        )


def check_pairs(text: str | None) -> None:
    """Raise a ConfigError unless --optim_args is empty or reads name=value,name=value."""
    for piece in (text or "").replace(" ", "").split(","):
        key, equals, value = piece.partition("=")
        if text and (not key or not equals or not value or "=" in value):
            raise ConfigError(
                f"optim_args has {piece!r}; each option has the form name=value, with commas "
                'between them, as in "p_bound=2.0,min_scale=0.01".'
            )


def unknown_optimizer(name: str, known: Sequence[str]) -> ConfigError:
    """The error for a name that neither we nor the Trainer know."""
    # The usual name of one that the Trainer has in several forms comes first.
    near = [each for each in known if each.startswith(f"{name.lower()}_torch")][:1]
    near = near or difflib.get_close_matches(name.lower(), [*OPTIMIZER_NAMES, *known], n=1)
    hint = f"Did you mean {near[0]}?" if near else "--help_all lists the Trainer's names."
    return ConfigError(
        f"optim is {name!r}, which is unknown; hf_relopt has {', '.join(OPTIMIZER_NAMES)}, and "
        f"the Trainer adamw_torch and more. {hint}"
    )


def unknown_argument(flag: str, known: Sequence[str]) -> ConfigError:
    """The error for an unknown flag, with the most similar one that exists."""
    name = flag.split("=")[0].replace("-", "_").strip("_")
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean --{near[0]}?" if near else ". --help lists the arguments."
    return ConfigError(f"unknown argument {flag.split('=')[0]}{hint}")


class _Parser(argparse.ArgumentParser):
    """Knows what RecipeParser knows, from sources that cost nothing to read."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
        training = training_flags(*recipe.training)
        self.knows_training = bool(training)
        self.optimizers = training["optim"].choices if "optim" in training else ()
        for kind in recipe.kinds:
            hints = get_type_hints(kind)
            for own in fields(kind):
                self._add(TrainingFlag(own.name, _kind_of(hints[own.name])))
        for flag in training.values():
            self._add(flag)

    def _add(self, flag: TrainingFlag) -> None:
        names = dict.fromkeys((f"--{flag.name}", f"--{flag.name.replace('_', '-')}"))
        if flag.kind == "bool":
            self.add_argument(*names, nargs="?", const=True, type=_boolean)
            no = dict.fromkeys((f"--no_{flag.name}", f"--no-{flag.name.replace('_', '-')}"))
            self.add_argument(*no, dest=flag.name, action="store_false")
        elif flag.kind == "words":
            self.add_argument(*names, nargs="*")
        else:
            kinds: dict[str, Any] = {"int": int, "float": float}
            # The names of optimizers are checked with a message of their own.
            choices = flag.choices if flag.name != "optim" else ()
            self.add_argument(*names, type=kinds.get(flag.kind, str), choices=choices or None)

    def read(self, words: Sequence[str]) -> dict[str, Any]:
        """What was said.

        Raises:
            ConfigError: an unknown flag, or a value of the wrong kind.
        """
        said, unknown = self.parse_known_args(list(words))
        if unknown and self.knows_training:
            raise unknown_argument(unknown[0], [action.dest for action in self._actions])
        return vars(said)

    def error(self, message: str) -> NoReturn:
        """Instead of usage and exit: one message.

        Raises:
            ConfigError: always.
        """
        # argparse names a flag in each of its spellings.
        raise ConfigError(re.sub(r"(--\w+)/--[\w-]+", r"\1", message) + ".")


def _kind_of(hint: Any) -> str:
    kinds = [kind for kind in (*get_args(hint), hint) if kind in (int, float, bool)]
    return kinds[0].__name__ if kinds else "word"


def _boolean(text: str) -> bool:
    if text.lower() not in _BOOLEANS:
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return _BOOLEANS.index(text.lower()) < 5


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


@cache  # the source stays as it is while a script runs
def training_flags(module: str, name: str) -> dict[str, TrainingFlag]:
    """The fields of a dataclass and of those it inherits from, read from its source.

    To import it takes seconds. Only what is certain is used: where a release keeps the fields
    otherwise, the result is empty, and the real parser finds a mistake some seconds later.

    Args:
        module: its package, as in "transformers".
        name: the class, as in "TrainingArguments".
    """
    try:
        return _fields_of(name, _Sources(module))
    except (OSError, SyntaxError, LookupError, ValueError, ImportError):
        return {}


# The files of a package that may hold training arguments.
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
