"""What Fromage and Madam share: groups, lazily made state, the step, checkpoints.

State lives in ``state`` and ``param_groups`` alone: distributed checkpoints keep nothing else. None
is made in ``__init__``, because Accelerate's FSDP2 path swaps the parameters later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from hf_relopt.backends import BACKENDS
from hf_relopt.backends.batch import Batch, compute_dtype, needs_noise
from hf_relopt.errors import ConfigError
from hf_relopt.lns.rounding import noise_keys
from hf_relopt.optim import checkpoint, inputs
from hf_relopt.optim.measure import Measurement
from hf_relopt.optim.options import OPTIONS, check_options, refuse_misspelt, unknown_option
from hf_relopt.optim.rules import RULES, Facts, Rule
from hf_relopt.sharding import refuse_inexact, whole_norms


class RelativeOptimizer(torch.optim.Optimizer):
    """Base of the optimizers; each param group follows the rule that its ``rule`` key names."""

    rule: str

    def __init__(self, params: Any, unknown: Mapping[str, Any], **options: Any) -> None:
        for name in unknown:
            raise unknown_option(self.rule, name)
        check_options(self.rule, options)
        super().__init__(inputs.as_list(params), {"rule": self.rule, **options})
        self._measurement: Measurement | None = None

    # -- groups --------------------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, completed with the defaults of its rule and checked.

        Raises:
            ConfigError: for a bad option or tensors that are already there.
        """
        rule = param_group.setdefault("rule", self.rule)
        if rule not in RULES:
            raise ConfigError(
                f"rule is {rule!r}; a group follows one of {', '.join(map(repr, RULES))}. Leave it "
                f"out for {self.rule!r}."
            )
        refuse_misspelt(rule, param_group)
        for name, option in OPTIONS[rule].items():
            param_group.setdefault(name, self.defaults.get(name, option.default))
        if "betas" in param_group:
            param_group["betas"] = tuple(param_group["betas"])
        check_options(rule, param_group)
        inputs.check_params(param_group, self.param_groups)
        super().add_param_group(param_group)
        # torch fills every default in; another rule's options would only mislead there.
        for name in set(OPTIONS[self.rule]) - set(OPTIONS[rule]):
            param_group.pop(name, None)
        self._checked_shapes = False
        self._built_shapes = self._shapes()

    def _shapes(self) -> list[torch.Size]:
        return [param.shape for group in self.param_groups for param in group["params"]]

    # -- the step ------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Take one step with the gradients at hand.

        Args:
            closure: evaluates the model again, with gradients, and returns the loss.
        Returns: the closure's loss, if there is one.

        Raises:
            ConfigError: for sparse or complex gradients, or a float ``lr`` out of range.
            UnsupportedSetup: if the weights are not the whole tensors that were given at
                construction.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if not self._checked_shapes:
            self._check_shapes()
        for group, params, indices in self._batches():
            self._step_batch(group, params, indices)
        return loss

    def measure_next_step(self) -> None:
        """Let the next step measure what it changes; read :meth:`take_measurement` afterwards."""
        self._measurement = Measurement()

    def take_measurement(self) -> dict[str, float] | None:
        """Figures of the step measured last, or None; synchronises with the device.

        Returns: ``relative_update`` (|dW|/|W| over all weights), ``at_bound`` (share of tensors
            held at p_bound; under Madam the mean share of entries at p_scale), ``changed_entries``
            (share of entries that differ after the step) and ``skipped_tensors`` (gradients that
            were not finite, so far).
        """
        if self._measurement is None or self._measurement.empty:
            return None
        figures = self._measurement.figures()
        self._measurement = None
        skipped = [state["skipped"] for state in self.state.values() if "skipped" in state]
        figures["skipped_tensors"] = sum(float(value) for value in skipped)
        return figures

    def _check_shapes(self) -> None:
        names = [n for group in self.param_groups for n in inputs.names(group)]
        params = [param for group in self.param_groups for param in group["params"]]
        for param, shape, name in zip(params, self._built_shapes, names, strict=True):
            refuse_inexact(param, shape, name)
        self._checked_shapes = True

    def _batches(self) -> Iterator[tuple[dict[str, Any], list[Tensor], list[int]]]:
        """Parameters with gradients, by group, device and dtype, with their index among all."""
        first = 0
        for group in self.param_groups:
            inputs.check_lr(group)
            kinds: dict[Any, tuple[list[Tensor], list[int]]] = {}
            for index, param in enumerate(group["params"], first):
                if param.grad is None:
                    continue
                inputs.check_gradient(param, group, index - first)
                kind = (param.device, param.dtype, param.grad.dtype)
                params, indices = kinds.setdefault(kind, ([], []))
                params.append(param)
                indices.append(index)
            first += len(group["params"])
            for params, indices in kinds.values():
                yield group, params, indices

    def _step_batch(self, group: dict[str, Any], params: list[Tensor], indices: list[int]) -> None:
        rule, backend = RULES[group["rule"]], BACKENDS[group["backend"]]
        for param in params:
            if not self.state[param]:
                self.state[param] = _new_state(rule, param)
        grads: list[Tensor] = [param.grad for param in params]  # type: ignore[misc]
        norms = whole_norms(
            params,
            grads,
            cosine=rule.needs_cosine(group),
            local_sums=backend.local_sums,
        )
        if norms.cosine is not None and group["maximize"]:
            norms = type(norms)(norms.param, norms.grad, -norms.cosine)
        lr = _as_scalar(group["lr"], norms.grad)
        finite = torch.isfinite(norms.grad)
        learn = finite & (norms.grad > 0)
        facts = self._advance(rule, params, norms, lr, finite, learn)
        wide = compute_dtype(params[0].dtype)
        coefficients = {
            name: value if value.dtype is torch.bool else value.to(wide)
            for name, value in rule.coefficients(facts, group).items()
        }
        keys = None
        if needs_noise(params[0], learn) and group["rounding"] != "nearest":
            index = torch.tensor(indices).to(learn.device, non_blocking=True)
            keys = noise_keys(group["seed"], index, facts.step)
        batch = Batch(
            params=params,
            grads=grads,
            buffers=[tuple(self.state[p][name] for name in rule.buffers) for p in params],
            update=rule.update,
            coefficients=coefficients,
            constants={name: group[name] for name in rule.constants},
            learn=learn,
            move=learn & (lr != 0),
            keys=keys,
            maximize=group["maximize"],
        )
        if self._measurement is None:
            backend.apply(batch)
        else:
            self._measurement.apply(
                backend, batch, norms.param, self._at_bound(rule, group, params)
            )

    def _at_bound(
        self, rule: Rule, group: Mapping[str, Any], params: list[Tensor]
    ) -> Callable[[int], Tensor]:
        def share(index: int) -> Tensor:
            state = self.state[params[index]]
            return rule.at_bound(params[index], state.get("anchor_norm", state["step"]), group)

        return share

    def _advance(
        self,
        rule: Rule,
        params: list[Tensor],
        norms: Any,
        lr: Tensor,
        finite: Tensor,
        learn: Tensor,
    ) -> Facts:
        """Update step counts, anchors and counters; return the facts of this step."""
        states = [self.state[param] for param in params]
        values = {name: _stack(states, name, norms.grad) for name in rule.scalars}
        values["step"] = values["step"] + learn
        values["skipped"] = values["skipped"] + ~finite
        anchor = values["step"]
        if rule.anchored:
            # NaN: not made yet. Through float32 at once, so that the first step sees what is kept.
            fresh = torch.isnan(values["anchor_norm"]) & finite
            made = torch.where(fresh, norms.param.to(torch.float32), values["anchor_norm"])
            anchor = values["anchor_norm"] = made.to(norms.param.dtype)
        for name, value in values.items():
            torch._foreach_copy_([state[name] for state in states], list(value.unbind()))
        numel = torch.tensor([max(p.numel(), 1) for p in params], dtype=anchor.dtype)
        return Facts(norms, anchor, values["step"], numel.to(anchor.device, non_blocking=True), lr)

    # -- checkpoints ---------------------------------------------------------------------------

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict of the same optimizer over the same parameters.

        State keeps its own dtype (torch casts it to the parameter's), and nothing is shared with
        ``state_dict`` afterwards. Options come from the checkpoint, but for ``backend``.

        Raises:
            ConfigError: for another optimizer's or another model's checkpoint; nothing has
                changed then.
        """
        seen: dict[str, Any] = {}

        def inspect(_: torch.optim.Optimizer, final: dict[str, Any]) -> None:
            checkpoint.check(self, final)
            seen.update(final)

        # Registered last, so that it sees what the hooks of others have made of the dict.
        handle = self.register_load_state_dict_pre_hook(inspect)
        backends = [group["backend"] for group in self.param_groups]
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()
        checkpoint.restore_dtypes(self, seen)
        for group, backend in zip(self.param_groups, backends, strict=True):
            group["backend"] = backend

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # Pickle and load_state_dict keep state and groups alone; the rest is made again here.
        self.__dict__.setdefault("_measurement", None)
        self.__dict__.setdefault("_built_shapes", self._shapes())
        self._checked_shapes = False


def _new_state(rule: Rule, param: Tensor) -> dict[str, Tensor]:
    """Zero counts, an anchor not yet made (NaN), and empty moments."""
    scalar = dict.fromkeys(rule.scalars, 0.0) | (
        {"anchor_norm": float("nan")} if rule.anchored else {}
    )
    state = {
        name: torch.full((), value, dtype=torch.float32, device=param.device)
        for name, value in scalar.items()
    }
    for name in rule.buffers:
        state[name] = torch.zeros_like(
            param, dtype=torch.float32, memory_format=torch.preserve_format
        )
    return state


def _stack(states: list[dict[str, Tensor]], name: str, like: Tensor) -> Tensor:
    return torch.stack([state[name] for state in states]).to(like.dtype)


def _as_scalar(lr: float | Tensor, like: Tensor) -> Tensor:
    """``lr`` as a 0-dim tensor of ``like``'s kind, without waiting for the device."""
    if isinstance(lr, Tensor):
        return lr.detach().to(like.device, like.dtype, non_blocking=True)
    return torch.full((), lr, dtype=like.dtype, device=like.device)
