"""What Fromage and Madam share: groups, lazily made state, the step, checkpoints.

State is in ``state`` and ``param_groups`` alone, since distributed checkpoints save nothing else.
It is not made in ``__init__``, because Accelerate's FSDP2 path replaces the parameters later.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from hf_relopt.backends import BACKENDS
from hf_relopt.backends.batch import Batch, Work
from hf_relopt.errors import ConfigError
from hf_relopt.groups import peak_lr
from hf_relopt.optim import changes, checkpoint, inputs
from hf_relopt.optim.current_plan import plan_of
from hf_relopt.optim.frame_step import refuse_unframeable, step_framed
from hf_relopt.optim.measure import Measurement
from hf_relopt.optim.memory import Framed, memory_work, summed, take_in
from hf_relopt.optim.options import (
    OPTIONS,
    check_options,
    check_together,
    refuse_swallowed,
    settle,
    unknown_option,
)
from hf_relopt.optim.places import Places
from hf_relopt.optim.rules import require_rule, rule_of
from hf_relopt.optim.state import has_state, new_state, numbers
from hf_relopt.optim.work import work_of
from hf_relopt.sharding import is_sharded, local, refuse_inexact, takes_part, whole_norms

_NOTHING_TO_DO = (
    "No weight of this optimizer has or ever had a gradient, so it trains nothing. Call "
    "backward() before step(). Make the optimizer after fully_shard(model), which replaces the "
    "model's weights."
)

# A param group, some of its parameters, and their index among all of the optimizer's.
_Batch = tuple[dict[str, Any], list[Tensor], list[int]]


class RelativeOptimizer(torch.optim.Optimizer):
    """Base class of Fromage and Madam; the ``rule`` key of a param group names its rule."""

    rule: str
    # The options of each group as they were checked last.
    _watched: list[tuple[Any, ...]]

    def __init__(self, params: Any, unknown: Mapping[str, Any], **options: Any) -> None:
        for name in unknown:
            raise unknown_option(self.rule, name)
        settle(options)
        check_options(self.rule, options)
        super().__init__(inputs.as_list(params), {"rule": self.rule, **options})
        self._measurement: Measurement | None = None

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
        self._check_changes()
        if not self._checked_shapes or self._shapes() != self._built_shapes:
            self._check_shapes()
        # All of them are looked at before the first one moves: an error leaves no half-made step.
        batches = list(self._batches())
        if not batches and not self.state:
            warnings.warn(_NOTHING_TO_DO, UserWarning, stacklevel=2)
        left = (self._step_alone(*batch) for batch in batches)
        self._step_together([batch for batch in left if batch is not None])
        for group, params, indices in batches:
            rule = rule_of(group, params[0])
            if rule.anchored and (rule.framed or rule.sums(group) == "grad"):
                self._note_anchors(params, indices)
        if self._measurement is not None:
            self._measurement.finish()
        return loss

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
                ``changed_entries`` (share of entries that differ after the step) and
                ``skipped_tensors`` (how many gradients were not finite so far).
        """
        if self._measurement is None or self._measurement.empty:
            return None
        figures = self._measurement.figures()
        self._measurement = None
        skipped = [state["skipped"] for state in self.state.values() if has_state(state)]
        figures["skipped_tensors"] = sum(float(value) for value in skipped)
        return figures

    def _check_changes(self) -> None:
        """Check the options of groups that somebody has changed since the last step."""
        if len(self._watched) == len(self.param_groups) and all(
            map(changes.are_as_before, self.param_groups, self._watched)
        ):
            return
        for group in self.param_groups:
            changes.check_group(group, self.state)
        self._forget()
        self._watched = list(map(changes.watched_values, self.param_groups))

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
                    refuse_unframeable(group, param, name)
        # A lazy module's weights have their shapes by now, or soon.
        self._note_shapes()
        self._checked_shapes = True

    def _batches(self) -> Iterator[_Batch]:
        """Parameters to step, by group, device and dtype, with their index among all."""
        first = 0
        for group in self.param_groups:
            inputs.check_scheduled(group)
            kinds: dict[Any, tuple[list[Tensor], list[int]]] = {}
            for index, param in enumerate(group["params"], first):
                if not takes_part(param):
                    continue
                grad = param.grad
                if grad is not None:
                    inputs.check_gradient(param, group, index - first)
                dtype = param.dtype if grad is None else grad.dtype
                rule = rule_of(group, param)
                kind = (param.device, param.dtype, dtype, is_sharded(param), id(rule))
                params, indices = kinds.setdefault(kind, ([], []))
                params.append(param)
                indices.append(index)
            first += len(group["params"])
            for params, indices in kinds.values():
                yield group, params, indices

    def _step_alone(
        self, group: dict[str, Any], params: list[Tensor], indices: list[int]
    ) -> _Batch | None:
        """Step what the backend steps without the others; return the rest, or None."""
        step_alone = BACKENDS[group["backend"]].step_alone
        for param, index in zip(params, indices, strict=True):
            if not has_state(self.state[param]):
                self.state[param].update(new_state(group, param))
                self._anchored.discard(index)
        together = is_sharded(params[0]) or rule_of(group, params[0]).framed
        if step_alone is None or together:
            return group, params, indices
        if self._measurement is None:
            left = step_alone(self._work(group, params, indices))
        else:
            left = []
            for place, (param, index) in enumerate(zip(params, indices, strict=True)):
                work = self._work(group, [param], [index])
                with self._measurement.around(param, index, group, self.state[param]) as seen:
                    seen.counts = not step_alone(work)
                if not seen.counts:
                    left.append(place)
        if not left:
            return None
        return group, [params[place] for place in left], [indices[place] for place in left]

    def _step_together(self, batches: list[_Batch]) -> None:
        """Step batches whose norms are summed over shards at once."""
        works = [self._work(*batch) for batch in batches]
        rows = [
            BACKENDS[batch[0]["backend"]].local_sums(summed(work, *batch), work.grads, work.sums)
            for work, batch in zip(works, batches, strict=True)
        ]
        norms = whole_norms([batch[1] for batch in batches], [batch[2] for batch in batches], rows)
        framed: list[Framed] = []
        for (group, params, indices), work, norm in zip(batches, works, norms, strict=True):
            kept = {name: numbers(work.state, name) for name in work.state[0]}
            before = {name: torch.stack(each).to(norm.grad.dtype) for name, each in kept.items()}
            decision = work.decide(before, norm, work.numel, work.index, work.lr)
            for name, value in decision.state.items():
                torch._foreach_copy_(kept[name], list(value.unbind()))
            batch, backend = Batch.of(work, decision), BACKENDS[group["backend"]]
            if rule_of(group, params[0]).framed:
                take_in(work, decision, backend.apply)
                states = [self.state[param] for param in params]
                finite = decision.state["skipped"] == before["skipped"]
                seen = (decision.learn, finite, self._anchored.issuperset(indices))
                framed.append(Framed(group, params, indices, states, work, *seen, norm.param))
                continue
            if self._measurement is None:
                backend.apply(batch)
                continue
            for place, (param, index) in enumerate(zip(params, indices, strict=True)):
                with self._measurement.around(param, index, group, self.state[param]):
                    backend.apply(batch.only(place))
        step_framed(framed, self._places, self._measurement)

    def _work(self, group: dict[str, Any], params: list[Tensor], indices: list[int]) -> Work:
        rule = rule_of(group, params[0])
        states = [self.state[param] for param in params]
        sums = rule.sums(group)
        # Weights' norms only if the rule or an anchor needs them.
        if sums == "grad" and rule.anchored and not self._anchored.issuperset(indices):
            sums = "norms"
        work = memory_work if rule.framed else work_of
        return work(group, params, indices, states, sums, self._places)

    def _note_anchors(self, params: list[Tensor], indices: list[int]) -> None:
        """Remember on the host which anchors are made: one synchronisation, when some were not."""
        if not self._anchored.issuperset(indices) and not params[0].is_meta:
            anchors = (local(self.state[param]["anchor_norm"]) for param in params)
            made = torch.stack([~anchor.isnan().any() for anchor in anchors]).tolist()
            self._anchored.update(n for n, is_made in zip(indices, made, strict=True) if is_made)

    # -- checkpoints ---------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """State and options as torch's optimizers return them, readable with ``weights_only``."""
        for group in self.param_groups:
            settle(group)  # a schedule may have set a number of numpy's since the last step
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict of the same optimizer over the same parameters.

        State keeps its dtype, where torch would cast it to the parameter's, and is copied. Options
        come from the checkpoint, except ``backend`` and ``share_work``.

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

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # Pickle and load_state_dict keep state and groups alone; the rest is made again here.
        self.__dict__.setdefault("_measurement", None)
        checkpoint.complete(self.param_groups)
        self.__dict__.setdefault("_built_shapes", self._shapes())
        self._forget()

    def _forget(self) -> None:
        """Look at options, shapes, places and anchors again in the next step."""
        self._watched = []
        self._checked_shapes = False
        self._places = Places()
        self._anchored: set[int] = set()
