"""The class that Transformers gets for ``--optim fromage``: it makes optimizers of param groups.

The stock Trainer calls ``cls(param_groups, **kwargs)`` with groups that only list the weights to
train, and gets the plan of the model. Other trainers pass groups with learning rates of their own,
and weights outside the model: those get the plan as well, with the options of their group on top.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from hf_relopt.errors import ConfigError
from hf_relopt.hf import arguments, guards, learning_rate, optim_args, trainers
from hf_relopt.hf.announcement import Announcement, announce, light
from hf_relopt.hf.caller_groups import (
    INSTEAD,
    CallerGroup,
    KnownWeights,
    plan_of_groups,
    read_groups,
    refuse_weight_decay,
    thawed,
)
from hf_relopt.hf.learning_rate import Choice
from hf_relopt.hf.log import say_once
from hf_relopt.optim.base import RelativeOptimizer
from hf_relopt.optim.create import from_plan
from hf_relopt.optim.create import plan as make_plan
from hf_relopt.plans import defaults
from hf_relopt.plans.defaults import Look, default_lrs, look_at
from hf_relopt.plans.entries import OPTIMIZERS, follows_spectral, preset_of
from hf_relopt.plans.plan import Plan


def class_and_options(args: Any, model: nn.Module | None) -> tuple[type, dict[str, Any]]:
    """The class and the keywords that ``Trainer.get_optimizer_cls_and_kwargs`` returns.

    Args:
        args: TrainingArguments that name one of our optimizers.
        model: None if the trainer does not pass it.

    Raises:
        ConfigError, UnsupportedSetup: see :func:`hf_relopt.hf.arguments.check`.
    """
    maker = Maker(args, model)
    kind: Any = OPTIMIZERS[maker.name].load()

    class Made(kind):
        """Makes the optimizer that the arguments ask for, which is a plain one of its base."""

        def __new__(cls, params: Any, lr: Any = None, **options: Any) -> Any:
            return maker.make(params, lr, options)

    Made.__name__ = Made.__qualname__ = kind.__name__
    return Made, {"lr": maker.lr}


class Maker:
    """Makes optimizers of what a trainer passes; one for each time a trainer asks for the class."""

    def __init__(self, args: Any, model: nn.Module | None) -> None:
        arguments.check(args)
        name = arguments.name_of(args)
        assert name is not None
        self.args, self.name = args, name
        trainer = trainers.trainer_of(args, model)
        model = model if model is not None else getattr(trainer, "model", None)
        # The class holds on to this, and Python lets go of classes late: the model must not wait.
        self._trainer = None if trainer is None else weakref.ref(trainer)
        self._model = None if model is None else weakref.ref(model)
        self._known: KnownWeights | None = None
        self._spoke = False
        self.said = optim_args.parse(name, args.optim_args)
        self.choice = self._choose()
        # What the trainer gets to pass back for weights whose group has no learning rate.
        self.lr = learning_rate.said_by(args) if self.choice is None else self.choice.lr

    @property
    def trainer(self) -> Any:
        """The Trainer that asked; None if it is unknown."""
        return None if self._trainer is None else self._trainer()

    @property
    def model(self) -> nn.Module | None:
        """The model to be trained; None if it is unknown."""
        return None if self._model is None else self._model()

    @property
    def look(self) -> Callable[[], Look] | None:
        """A function that looks at the model as it was at the start; None if it is unknown."""
        trainer, model = self.trainer, self.model
        if trainer is not None:
            return lambda: trainers.first_look(trainer)
        return None if model is None else lambda: look_at(model)

    def _choose(self) -> Choice | None:
        none_given = self.said.lr is None and learning_rate.given_in(self.args) is None
        look = self.look() if none_given and self.look is not None else None

        def steps() -> int | None:
            return None if self.trainer is None else trainers.steps_of(self.trainer)

        choice = learning_rate.choose(self.args, self.name, look, self.said.lr, steps)
        if choice is not None:
            learning_rate.write_back(self.args, choice.lr)
        return choice

    def make(self, params: Any, lr: Any, options: dict[str, Any]) -> RelativeOptimizer:
        """Make the optimizer of param groups, tensors, or a model.

        Args:
            params: as torch's optimizers take them, or a model.
            lr: the learning rate that the trainer passes; None or ``self.lr``: nothing of its own.
            options: what else the trainer passes.

        Raises:
            ConfigError: a bad option or group, or no learning rate and no model to choose it by.
            UnsupportedSetup: the launch mode would not be exact.
        """
        trainer = self.trainer
        keeps_state = not getattr(trainer, "_discard", False)  # RelOptTrainer may leave it out
        resumes = trainer is not None and trainers.is_resuming(trainer) and keeps_state
        guards.check_launch(self.model)
        rounds = "rounding" in {**self.said.options, **options}
        guards.check_accelerate(self.model, resumes=resumes, rounds=rounds)
        if isinstance(params, nn.Module):
            params = [param for param in params.parameters() if param.requires_grad]
        refuse_weight_decay(options.pop("weight_decay", 0), "the options", self.name)
        passed = read_groups(params, self.name)
        self._forget_a_model_without(passed)
        groups, choice = self._settle(passed, lr)
        chosen = self._plan(groups, choice, options)
        # Frozen weights may be thawed later, but the plan that is shown is of what moves.
        moving = tuple(entry for entry in chosen.entries if entry.param.requires_grad)
        optimizer = from_plan(chosen)
        arguments.check_in_backward(self.args, self.name, optimizer.param_groups, self.model)
        arguments.check_device(self.args, optimizer.param_groups)
        self._tell(replace(chosen, entries=moving), choice, optimizer)
        return optimizer

    def _forget_a_model_without(self, groups: Sequence[CallerGroup]) -> None:
        """Forget a model that holds none of the weights."""
        held = {id(param) for param in self.model.parameters()} if self.model is not None else ()
        if not any(id(param) in held for group in groups for _, param in group.params):
            self._model = None
            if self.choice is not None and not self.choice.is_given:
                self.choice = None

    def _settle(self, groups: Sequence[CallerGroup], lr: Any) -> tuple[list[CallerGroup], Choice]:
        """Which learning rate is the common one, and which groups have one of their own."""
        default = learning_rate.default_of(self.args)
        none_given = learning_rate.given_in(self.args) is None
        choice = self.choice
        if lr is not None and lr != self.lr:
            choice = Choice(float(lr), "as the trainer passes it")
        common = self.lr if choice is None else choice.lr
        # A trainer that reads learning_rate from the arguments by itself may find their default.
        unset = [common, default] if none_given else [common]
        own = [group.lr for group in groups if group.lr is not None and group.lr not in unset]
        if own and none_given and any(group.lr == default != common for group in groups):
            raise ConfigError(
                f"The trainer passes param groups with learning rates {default:g} and "
                f"{float(own[0]):g}. The first is the default of the arguments, since none was "
                f"given, and learning rates derived from it make no sense under {self.name}. Give "
                "learning_rate, from which the trainer derives those of its groups."
            )
        if choice is None and len(own) == len(groups):
            choice = Choice(float(own[0]), "that of the trainer's first param group")
        if choice is None:
            raise ConfigError(
                f"No learning rate is given, and {self.name} cannot choose one, since the trainer "
                f"does not pass its model. Give learning_rate: {default_lrs(self.name)}. "
                f"{INSTEAD.format(optim=self.name)}"
            )
        return [group.without_lr() if group.lr in unset else group for group in groups], choice

    def _plan(self, groups: Sequence[CallerGroup], choice: Choice, options: dict[str, Any]) -> Plan:
        """The plan of what the trainer passes."""
        model, optim, overrides = self.model, self.name, self.said.overrides
        if model is None and preset_of(optim) is not None:
            raise ConfigError(
                f"{optim} needs to know what each weight is for, but the trainer does not pass "
                f"its model. {INSTEAD.format(optim=optim)}"
            )
        said = {**self.said.options, **options}
        shares = model is not None and guards.every_process_has_all_weights(model)
        if shares and follows_spectral(optim, said):
            said.setdefault("share_work", True)
        with thawed(param for group in groups for _, param in group.params):
            # Some trainers make an optimizer for each weight: the model's plan is made once.
            if model is not None and (self._known is None or options or choice != self.choice):
                plan = make_plan(model, optim, choice.lr, overrides=overrides, **said)
                self._known = KnownWeights(plan)
            return plan_of_groups(
                groups, self._known, optim=optim, lr=choice.lr, overrides=overrides, options=said
            )

    def _tell(self, chosen: Plan, choice: Choice, optimizer: RelativeOptimizer) -> None:
        groups = optimizer.param_groups
        leaders = [i for i, group in enumerate(groups) if group["lr"] == choice.lr]
        leader = leaders[0] if leaders else None
        waiting = Announcement(self.args, light(chosen), choice, leader, is_made=self._spoke)
        self._spoke = True
        trainer = self.trainer
        resuming = trainer if trainer is not None and trainers.is_resuming(trainer) else None
        learning_rate.write_back(self.args, float(choice.lr))
        announce(waiting, optimizer, resuming)
        arguments.explain(self.args, self.name, groups)
        # A resumed run has the checkpoint's learning rates.
        for remark in self._remarks(chosen, choice) if resuming is None else ():
            say_once(logging.WARNING, remark)

    def _remarks(self, chosen: Plan, choice: Choice) -> Iterator[str]:
        """Warnings about learning rates that are unlikely to be intended."""
        overrides = self.said.overrides
        yield from defaults.remarks(chosen, overrides, lr_is_given=choice.is_given, look=self.look)
        known = {choice.lr, *(one["lr"] for one in overrides.values() if "lr" in one)}
        own = {e.options["lr"] for e in chosen.entries if e.options["rule"] != "adamw"} - known
        for lr in sorted(map(float, own)):
            name = "the lr of a param group"
            yield from filter(None, [defaults.remark_on_part(lr, self.name, name)])
