"""The whole command line: a recipe's own arguments, every TrainingArguments flag, our defaults.

A default never overrides the user. What the first look cannot know is checked here: the optimizer's
options, on the model.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import torch
from clear_messages import blamed_on
from first_look import check_optimizer_words, optimizer_name, unknown_argument
from recipe import Recipe
from transformers import HfArgumentParser, Trainer, TrainingArguments

import hf_relopt  # noqa: F401  (adds fromage and others to the choices of --optim)
from hf_relopt import plan
from hf_relopt.errors import ConfigError, RelOptError
from hf_relopt.hf import optim_args
from hf_relopt.hf.guards import check_model_arguments
from hf_relopt.lns.tensor import is_lns
from hf_relopt.shipped import OPTIMIZER_NAMES

# Values of which every optimizer that reads an option at all makes something of at least one.
_PROBES = ("1", "0.1234567", "true", "false", "none")
# What --help shows of the 110 flags of TrainingArguments; --help_all shows the rest.
OFTEN_USED = {
    "run_name": "the run's name; everything goes to runs/NAME",
    "output_dir": "another folder for the run",
    "optim": f"{', '.join(OPTIMIZER_NAMES)}, adamw_torch or any other name the Trainer knows",
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
        words: flags and values.

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


def read_request(recipe: Recipe, words: Sequence[str]) -> tuple[Any, set[str]]:
    """What was asked for, with our defaults where nothing was, and the names of what was given.

    Args:
        recipe: what the script is.
        words: flags and values, see typed_command.expanded.

    Raises:
        ConfigError: arguments that cannot be used.
    """
    package, name = recipe.training
    with blamed_on(f"cannot load {package}", f"Try pip install -U {package}."):
        training = getattr(importlib.import_module(package), name)
    parts, given = parse_recipe_arguments(
        (*recipe.kinds, training),
        defaults={**machine_defaults(recipe), **recipe.defaults},
        about=recipe.about,
        words=words,
    )
    *own, run, args = parts
    request = recipe.request(args, run, *own)
    recipe.complete(request, given)
    return request, given


def machine_defaults(recipe: Recipe) -> dict[str, Any]:
    """Defaults that depend on the hardware."""
    gpu = torch.cuda.is_available()
    defaults: dict[str, Any] = {"dataloader_pin_memory": gpu}
    if recipe.training[1] == "SFTConfig":
        # TRL's own default is bfloat16 everywhere, and an error on a CPU.
        defaults["bf16"] = gpu and torch.cuda.is_bf16_supported()
    return defaults


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


def check_optimizer(args: TrainingArguments, model: torch.nn.Module) -> None:
    """Check --optim and --optim_args on the model before a run folder is changed.

    Raises:
        ConfigError: if they do not make an optimizer, or if the Trainer would not read an option.
        UnsupportedSetup: the launch mode cannot train such a model.
    """
    check_model_arguments(args, model)
    name = optimizer_name(args)
    named = model.named_parameters()
    coded = next((n for n, weight in named if weight.requires_grad and is_lns(weight)), None)
    if name == "integer_madam" and coded is None:
        remedy = "Pass --lns_format lns12 (or lns8, lns10, lns16), or name a model in codes."
        if hasattr(model, "peft_config"):
            remedy = "Adapters stay numbers: pass --optim madam, or leave --lora_rank out."
        raise ConfigError(
            f"--optim integer_madam steps weights in codes, and trains none here. {remedy}"
        )
    if name != "integer_madam" and coded is not None:
        raise ConfigError(
            f"{coded} is stored in codes, which {name} cannot step. Pass --optim integer_madam, or "
            "name the model in numbers."
        )
    if name in OPTIMIZER_NAMES:
        said = optim_args.parse(name, args.optim_args)
        plan(model, name, args.learning_rate, overrides=said.overrides, **said.options)
        return
    with blamed_on(f"--optim {name} cannot be built", "Check --optim and --optim_args."):
        maker, options = Trainer.get_optimizer_cls_and_kwargs(args, model)
        if isinstance(maker, type) and issubclass(maker, torch.optim.Optimizer):
            options.setdefault("params", list(model.parameters()))
            maker(**options)
    for piece in filter(None, (args.optim_args or "").replace(" ", "").split(",")):
        key, _, value = piece.partition("=")
        if not _is_read(args, model, key, value):
            raise ConfigError(
                f"--optim {name} does not read the option {key!r} from --optim_args. Leave it "
                "out; AdamW's options are --adam_beta1, --adam_beta2, --adam_epsilon and "
                "--weight_decay."
            )


def _is_read(args: TrainingArguments, model: torch.nn.Module, key: str, value: str) -> bool:
    """Whether the Trainer makes anything of an option: it passes over those it does not know."""
    without = _options(args, model, None)
    for probe in (value, *_PROBES):
        try:
            if _options(args, model, f"{key}={probe}") != without:
                return True
        except Exception:  # it was read, and the probe is of the wrong kind
            return True
    return False


def _options(args: TrainingArguments, model: torch.nn.Module, text: str | None) -> str:
    maker, options = Trainer.get_optimizer_cls_and_kwargs(_Said(args, text), model)
    return repr((maker, {name: value for name, value in options.items() if name != "params"}))


class _Said:
    """Training arguments with another optim_args, without their checks and side effects."""

    def __init__(self, args: TrainingArguments, text: str | None) -> None:
        self._args = args
        self.optim_args = text

    def __getattr__(self, name: str) -> object:
        return getattr(self._args, name)
