"""The command line of a recipe: its own arguments, every TrainingArguments flag, our defaults.

A default never overrides the user.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from first_look import check_optimizer_words, unknown_argument
from transformers import HfArgumentParser, TrainingArguments

import hf_relopt  # noqa: F401  (adds fromage and others to the choices of --optim)
from hf_relopt.errors import ConfigError, RelOptError
from hf_relopt.hf import optim_args
from hf_relopt.optim.create import OPTIMIZERS

RELATIVE_OPTIMIZERS = tuple(OPTIMIZERS)

# What --help shows of the 110 flags of TrainingArguments; --help_all shows the rest.
OFTEN_USED = {
    "run_name": "the run's name; everything goes to runs/NAME",
    "output_dir": "another folder for the run",
    "optim": f"{', '.join(RELATIVE_OPTIMIZERS)}, adamw_torch or any other name the Trainer knows",
    "optim_args": 'options of the optimizer, as in "p_bound=2.0,vector.rule=adamw,vector.lr=1e-3"',
    "learning_rate": "peak learning rate; for hf_relopt's optimizers a fraction of each weight's "
    "norm, as in 0.01 (default: chosen from optimizer and model)",
    "lr_scheduler_type": "linear, cosine, ...; hf_relopt's optimizers need one that decays",
    "warmup_steps": "warm-up steps (below 1: a share of all steps)",
    "max_steps": "optimizer steps to train",
    "num_train_epochs": "epochs, instead of max_steps",
    "per_device_train_batch_size": "sequences per step and process",
    "per_device_eval_batch_size": "sequences evaluated at once per process",
    "gradient_accumulation_steps": "batches per optimizer step",
    "logging_steps": "steps between two progress lines",
    "eval_steps": "steps between two evaluations",
    "save_steps": "steps between two checkpoints",
    "save_total_limit": "checkpoints to keep",
    "seed": "seed of initial weights and of the order of the data",
    "bf16": "train in bfloat16 mixed precision",
    "use_cpu": "use the CPU even if there is a GPU",
    "report_to": "none, tensorboard, trackio, wandb, ...",
    "resume_from_checkpoint": "resume from this checkpoint (the run folder's own is found anyway)",
    "push_to_hub": "upload the result",
}


class RecipeParser(HfArgumentParser):
    """HfArgumentParser with grouped help, our defaults and no guessing of abbreviated flags."""

    def __init__(self, kinds: Sequence[type], defaults: dict[str, Any], about: str) -> None:
        super().__init__(
            kinds,
            usage="%(prog)s [FILE.yaml] [--run_name NAME] [--flag value ...]",
            description=about,
            allow_abbrev=False,
            formatter_class=_HelpFormatter,
            epilog="Every other flag of transformers.TrainingArguments works too; --help_all "
            "lists them. FILE.yaml or FILE.json holds flags; those on the command line "
            "override it.",
        )
        self.add_argument("--help_all", action=_HelpAll, nargs=0, help="show every flag and exit")
        self.set_defaults(**defaults)
        self._optionals.title = "Training"
        self._action_groups.sort(key=lambda group: group is self._optionals)
        self.long_help = {action: action.help for action in self._actions}
        own = {name for kind in kinds[:-1] for name in kind.__dataclass_fields__}
        for action in self._actions:
            if action.dest in OFTEN_USED:
                action.help = OFTEN_USED[action.dest]
                action.metavar = "X"
            elif action.dest not in own | {"help", "help_all"}:
                action.help = argparse.SUPPRESS

    def given(self, argv: Sequence[str]) -> set[str]:
        """Names of the arguments the user wrote on this command line."""
        nothing = object()
        blank = argparse.Namespace(**{action.dest: nothing for action in self._actions})
        known, _ = self.parse_known_args(argv, blank)
        return {name for name, value in vars(known).items() if value is not nothing}

    def error(self, message: str) -> NoReturn:
        """Instead of usage and exit: one message.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(f"{message}.")


class _HelpFormatter(argparse.HelpFormatter):
    """Shows the default where there is one, and one spelling of a flag."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        left_out = (None, False, argparse.SUPPRESS, "")
        shows_default = action.nargs != 0 and action.default not in left_out
        shows_default = shows_default and action.dest not in ("learning_rate", "num_train_epochs")
        return text + " (default: %(default)s)" if shows_default and text else text

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings:
            return super()._format_action_invocation(action)
        flag = action.option_strings[0 if len(action.option_strings[0]) > 2 else -1]
        takes_no_value = action.nargs == 0 or isinstance(action.default, bool)
        return flag if takes_no_value else f"{flag} {action.metavar or 'X'}"


class _HelpAll(argparse.Action):
    def __call__(self, parser: Any, *_: Any) -> None:
        for action, text in parser.long_help.items():
            action.help = text
        parser.print_help()
        parser.exit()


def parse_recipe_arguments(
    kinds: Sequence[type], *, defaults: Mapping[str, Any], about: str, words: Sequence[str]
) -> tuple[tuple[Any, ...], set[str]]:
    """Read a recipe's arguments.

    Args:
        kinds: the recipe's own argument dataclasses and, last, TrainingArguments.
        defaults: the recipe's values of arguments that the user does not give.
        about: one paragraph for --help.
        words: flags and values, see argument_words.

    Returns:
        The filled dataclasses, and the names of the arguments the user gave.

    Raises:
        ConfigError: if an argument is unknown, or a value cannot be used.
    """
    parser = RecipeParser(kinds, dict(defaults), about)
    try:
        given = parser.given(words)
        parser.set_defaults(**_giving_way(defaults, given))
        *filled, unknown = parser.parse_args_into_dataclasses(
            list(words), return_remaining_strings=True, look_for_args_file=False
        )
    except RelOptError:
        raise
    except (ValueError, TypeError, ImportError, RuntimeError) as error:
        raise ConfigError(" ".join(str(error).split())) from error
    if unknown:
        raise unknown_argument(unknown[0], [action.dest for action in parser._actions])
    return tuple(part for part in filled if not isinstance(part, argparse.Namespace)), given


def _giving_way(defaults: Mapping[str, Any], given: set[str]) -> dict[str, Any]:
    """Drop the default number of steps if the user gives epochs."""
    epochs_asked_for = "num_train_epochs" in given and "max_steps" in defaults
    return {**defaults, "max_steps": -1} if epochs_asked_for else dict(defaults)


def check_training_arguments(args: TrainingArguments) -> None:
    """Refuse a learning rate or optim_args that cannot work, before anything else is done.

    Raises:
        ConfigError: with the value and what is allowed.
    """
    names = ("optim_args", "learning_rate", "weight_decay")
    said = {name: getattr(args, name) for name in names}
    check_optimizer_words({**said, "optim": optimizer_name(args)}, ())


def clips_for_nothing(args: TrainingArguments) -> bool:
    """True if each gradient is divided by its own norm anyway, and nothing remembers its size."""
    if optimizer_name(args) != "fromage":
        return False
    said = optim_args.parse("fromage", args.optim_args)
    return all(
        given.get("rule", "fromage") == "fromage"
        and given.get("direction", "gradient") == "gradient"
        for given in (said.options, *said.overrides.values())
    )


def optimizer_name(args: TrainingArguments) -> str:
    """The word the user gave for --optim."""
    return str(getattr(args.optim, "value", args.optim))
