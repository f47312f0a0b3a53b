"""What Fromage and Madam share: groups, lazily made state, the step, checkpoints.

State is in ``state`` and ``param_groups`` alone, since distributed checkpoints save nothing else.
It is not made in ``__init__``, because Accelerate's FSDP2 path replaces the parameters later.
"""

from __future__ import annotations

import inspect
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from operator import is_
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from hf_relopt.errors import ConfigError
from hf_relopt.optim import changes, checkpoint, inputs
from hf_relopt.optim.current_plan import plan_of
from hf_relopt.optim.in_backward import InBackward
from hf_relopt.options.checks import (
    check_options,
    check_together,
    refuse_swallowed,
    require_rule,
    settle,
    unknown_option,
)
from hf_relopt.options.schema import Option
from hf_relopt.options.tables import OPTIONS
from hf_relopt.plans.plan import peak_lr
from hf_relopt.sharding.layout import refuse_inexact
from hf_relopt.step import pipeline
from hf_relopt.step.lineup import Slots
from hf_relopt.step.measured import Measured
from hf_relopt.step.slot import refuse_unfit
from hf_relopt.step.state import NUMBERS
from hf_relopt.step.telemetry import Measurement

_NOTHING_TO_DO = (
    "No weight of this optimizer has or ever had a gradient, so it trains nothing. Call "
    "backward() before step(). Make the optimizer after fully_shard(model), which replaces the "
    "model's weights."
)


class RelativeOptimizer(torch.optim.Optimizer):
    """Base class of Fromage and Madam; the ``rule`` key of a param group names its rule."""

    rule: str
    # All values in the groups as the last step saw them, and of each group those of its options.
    _given: list[Any]
    _watched: list[tuple[Any, ...]]
    _momenta: list[Any]
    # The weights as the step sees them, and what those that were made before have learned of the
    # state; None until they are made.
    _slots: Slots | None
    _before: Slots | None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # The table has the options once; help() and editors see them as if they stood here.
        options = OPTIONS.get(getattr(cls, "rule", ""))
        if options is not None:
            cls.__signature__ = _signature(options)  # type: ignore[attr-defined]

    def __init__(self, params: Any, lr: float | Tensor = 1e-2, **options: Any) -> None:
        given = {name: option.default for name, option in OPTIONS[self.rule].items()}
        for name in options:
            if name not in given:
                raise unknown_option(self.rule, name)
        given |= {**options, "lr": lr}
        settle(given)
        check_options(self.rule, given)
        self._in_backward = InBackward(self)
        super().__init__(inputs.as_list(params), {"rule": self.rule, **given})
        self._measurement: Measurement | None = None
        self._in_backward.watch(self.param_groups)

    def __repr__(self) -> str:
        """The current plan, and how far the schedule has lowered its learning rates."""
        if not self.param_groups:
            return f"{type(self).__name__}: no weights yet"
        first = self.param_groups[0]
        peak, now = peak_lr(first), float(first["lr"])
        title, *table = str(plan_of(self)).splitlines()
        if now != peak and peak > 0:
            title += f"; the schedule is at {now / peak:.3g} of these learning rates"
        return "\n".join([title, *table])

    # -- groups --------------------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, check it, and fill in the defaults of its rule.

        Args:
            param_group: ``params``, and the options in which it differs from the optimizer;
                ``rule`` gives it another rule.

        Raises:
            ConfigError: a bad option, or tensors that are already in the optimizer.
        """
        rule = require_rule(param_group.setdefault("rule", self.rule))
        refuse_swallowed(rule, param_group)
        for name, option in OPTIONS[rule].items():
            # An option of the same name may be another one under another rule.
            shared = OPTIONS[self.rule].get(name) is option
            param_group.setdefault(name, self.defaults[name] if shared else option.default)
        settle(param_group)
        check_options(rule, param_group)
        inputs.check_params(param_group, self.param_groups)
        check_together(rule, param_group)
        inputs.give_names(param_group, self.param_groups)
        super().add_param_group(param_group)
        # torch fills every default in; another rule's options would only mislead there.
        for name in set(OPTIONS[self.rule]) - set(OPTIONS[rule]):
            param_group.pop(name, None)
        self._note_shapes()
        self._forget()
        self._in_backward.watch(self.param_groups)

    def _note_shapes(self) -> None:
        """Keep what shapes the weights have; those of lazy modules may have none yet."""
        self._built_shapes = self._shapes()
        for group in self.param_groups:
            shapes = list(map(inputs.shape_of, group["params"]))
            group["shapes_crc32"] = inputs.shapes_crc32(shapes)

    def _shapes(self) -> list[tuple[int, ...] | None]:
        return [inputs.shape_of(param) for group in self.param_groups for param in group["params"]]

    # -- the step ------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step with the current gradients.

        Args:
            closure: re-evaluates the model, computes the gradients and returns the loss.

        Returns:
            The closure's loss, if there is one.

        Raises:
            ConfigError: sparse or complex gradients, or options that were changed to values out of
                range, such as a float ``lr`` or momentum that a schedule sets.
            UnsupportedSetup: a weight no longer has its full shape, as a tensor or a DTensor.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        slots = self._current_slots()
        beside = slots.numbers_of(self._in_backward.stepped)
        pipeline.step(slots, self._measurement, beside=beside)
        if not self.state:
            warnings.warn(_NOTHING_TO_DO, UserWarning, stacklevel=2)
        if self._measurement is not None:
            self._measurement.finish(slots.all)
        # Whoever shards the weights puts others in their place, and frozen ones may be thawed.
        self._in_backward.watch(self.param_groups)
        self._in_backward.begin()
        return loss

    @torch.no_grad()
    def step_some(self, params: Sequence[Tensor]) -> None:
        """Step weights whose gradients are complete, and drop these: for ``step_in_backward``.

        Raises:
            ConfigError, UnsupportedSetup: as for ``step``.
        """
        slots = self._slots
        if slots is None or not self._in_backward.goes_on:
            slots = self._current_slots()
            self._in_backward.goes_on = True
        pipeline.step(slots, self._measurement, only=slots.numbers_of(params))
        for param in params:
            param.grad = None

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients, as torch's optimizers do."""
        super().zero_grad(set_to_none)
        self._in_backward.watch(self.param_groups)
        self._in_backward.begin()

    def _current_slots(self) -> Slots:
        """The slots of the groups as they are now, once these are checked."""
        # Whatever is the same object as in the last step needs no second look.
        given = list(chain.from_iterable(map(dict.values, self.param_groups)))
        if len(given) != len(self._given) or not all(map(is_, given, self._given)):
            self._look_at_options()
        if self._slots is None or not self._slots.are_current(self.param_groups, self.state):
            self._check_shapes()
            self._slots = Slots(self.param_groups, self.state, self._before)
            self._before = self._slots
        return self._slots

    def measure_next_step(self) -> None:
        """Measure what the next step changes; ``take_measurement`` returns the metrics.

        With sharded weights, call it on every rank: the step then sums over the shards.
        """
        self._measurement = Measurement()

    def take_measurement(self) -> dict[str, float] | None:
        """The metrics of the last measured step, or None; synchronises with the device.

        Returns:
            A dict of ``relative_update`` (|dW|/|W| over all weights), ``at_bound`` (share of
                tensors held at ``p_bound``; under Madam the mean share of entries at ``p_scale``),
                ``changed_entries`` (share of entries that differ after the step),
                ``skipped_tensors`` (how many gradients were not finite so far), and of what else
                docs/telemetry.md lists.
        """
        measured = self.take_measured()
        return None if measured is None else measured.metrics

    def take_measured(self) -> Measured | None:
        """The same with the numbers of each layer; once for a measured step."""
        if self._measurement is None or self._measurement.empty:
            return None
        measured = self._measurement.read()
        self._measurement = None
        return measured

    def _look_at_options(self) -> None:
        """Check what somebody has changed since the last step: most often a learning rate."""
        watched = list(map(changes.watched_values, self.param_groups))
        if len(watched) != len(self._watched) or not all(
            map(changes.are_as_before, watched, self._watched)
        ):
            for group in self.param_groups:
                changes.check_group(group, self.state)
            self._slots = None
            watched = list(map(changes.watched_values, self.param_groups))
        self._watched = watched
        for group in self.param_groups:
            inputs.check_scheduled(group)
        momenta = [group.get("momentum") for group in self.param_groups]
        if momenta != self._momenta:
            self._slots, self._momenta = None, momenta  # it is part of what a weight follows
        self._given = list(chain.from_iterable(map(dict.values, self.param_groups)))

    def _check_shapes(self) -> None:
        """Refuse weights that are no longer what the optimizer was built with."""
        if len(self._built_shapes) != len(self._shapes()):
            raise ConfigError(
                f"The param groups hold {len(self._shapes())} weights, but this optimizer was "
                f"built with {len(self._built_shapes)}. Add weights by add_param_group; to leave "
                "some out, make a new optimizer."
            )
        built = iter(self._built_shapes)
        for group in self.param_groups:
            for param, name in zip(group["params"], inputs.names(group), strict=True):
                shape = next(built)
                if shape is not None:
                    refuse_inexact(param, torch.Size(shape), name)
                if not is_lazy(param):
                    refuse_unfit(group, param, name)
        # A lazy module's weights have their shapes by now, or soon.
        self._note_shapes()

    # -- checkpoints ---------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """State and options as torch's optimizers return them, readable with ``weights_only``."""
        for group in self.param_groups:
            settle(group)  # a schedule may have set a number of numpy's since the last step
        found = super().state_dict()
        groups = checkpoint.as_written(found["param_groups"])
        return {**found, "state": _own_numbers(found["state"]), "param_groups": groups}

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        return {**state, "state": defaultdict(dict, _own_numbers(state["state"]))}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict of the same optimizer over the same parameters.

        State keeps its dtype, where torch would cast it to the parameter's, and is copied. Options
        come from the checkpoint, except ``backend``, ``share_work`` and
        ``step_in_backward``.

        Weights with names are matched by name, so their order may differ.

        Args:
            state_dict: what ``state_dict()`` of such an optimizer returned.

        Raises:
            ConfigError: a checkpoint of another optimizer or model, or options or state out of
                range; the optimizer is unchanged then.
        """
        checkpoint.check_structure(state_dict)
        seen: dict[str, Any] = {}

        def inspect(_: torch.optim.Optimizer, final: dict[str, Any]) -> dict[str, Any]:
            seen.update(checkpoint.checked(self, final))
            return seen

        # Registered last, so that it sees what the hooks of others have made of the dict.
        handle = self.register_load_state_dict_pre_hook(inspect)
        own = [{n: group[n] for n in checkpoint.OWN & set(group)} for group in self.param_groups]
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()
        checkpoint.restore_values(self, seen)
        for group, kept in zip(self.param_groups, own, strict=True):
            group.update(kept)
        self._in_backward.watch(self.param_groups)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # Pickle and load_state_dict keep state and groups alone; the rest is made again here.
        self.__dict__.setdefault("_measurement", None)
        checkpoint.complete(self.param_groups)
        self.__dict__.setdefault("_built_shapes", self._shapes())
        self.__dict__.setdefault("_in_backward", InBackward(self))
        self._forget()

    def _forget(self) -> None:
        """Resolve options, shapes and slots again in the next step."""
        self._given = []
        self._watched = []
        self._momenta = []
        self._slots = self._before = None


@torch.no_grad()
def _own_numbers(states: Mapping[Any, Mapping[str, Any]]) -> dict[Any, dict[str, Any]]:
    """``states`` with a tensor of its own for each number that is packed with others.

    Pickle takes an alias for all that is packed: of a thousand weights, a thousand times as much.
    """
    return {
        key: {
            name: value.clone() if name in NUMBERS and isinstance(value, Tensor) else value
            for name, value in state.items()
        }
        for key, state in states.items()
    }


def _signature(options: Mapping[str, Option]) -> inspect.Signature:
    """That of an optimizer with these options."""
    either, named = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    return inspect.Signature(
        [
            inspect.Parameter("params", either),
            inspect.Parameter("lr", either, default=options["lr"].default),
            *[
                inspect.Parameter(name, named, default=option.default)
                for name, option in options.items()
                if name != "lr"
            ],
        ]
    )
