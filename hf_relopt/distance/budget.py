"""A budget for how far training may take a network: stop at a limit, or hold weights near.

    stop    DRT = prod(1 + r_l) - 1 over weight matrices, or the largest r_l, reaches a limit
    hold    after each step weights with |W - W0| > rho |W0| are brought back to the surface

The distance r = |W - W0|/|W0| is measured, from a checkpoint or a copy, or it is bounded by the
learning rates.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hf_relopt.distance import origin
from hf_relopt.distance.adapters import is_peft_model, of_peft_model
from hf_relopt.distance.ball import Ball, held_as
from hf_relopt.distance.compare import Comparison, opened
from hf_relopt.distance.kept import is_wide
from hf_relopt.distance.limits import EVERY, Limits, Look
from hf_relopt.distance.lora_ball import LoraBall, factors_of
from hf_relopt.distance.origin import Origin
from hf_relopt.distance.result import Distance
from hf_relopt.distance.travel import Travel
from hf_relopt.distance.weights import Weights, common_names, of_module
from hf_relopt.errors import ConfigError, FormatError, UnsupportedSetup
from hf_relopt.lns.tensor import is_lns
from hf_relopt.sharding.layout import is_sharded, local, refuse_inexact

# Rounding to bfloat16 moves a weight by at most this part of its norm.
_BFLOAT16 = 2.0**-8
_FORMAT = 1
_ZERO = "zero at the beginning"


class Budget:
    """A budget in a custom loop; ``DistanceBudget`` is this and a callback of Trainers.

    Its arguments, attributes and errors are those of ``DistanceBudget``, where they are described.
    """

    def __init__(
        self,
        *,
        hold: float | None = None,
        drt: float | None = None,
        layer: float | None = None,
        every: int = EVERY,
        initial: str | os.PathLike[str] | None = None,
        copy: str | None = None,
        free: Sequence[str] = (),
    ) -> None:
        self.limits = Limits(hold, drt, layer, every, initial, copy, free)
        self.last: Look | None = None
        self.distance: Distance | None = None
        self.left_alone: dict[str, str] = {}
        self._steps = 0
        self._run: str | None = None
        self._model: nn.Module | None = None
        self._trained: dict[str, Tensor] = {}
        self._frozen: list[tuple[str, Tensor]] = []
        self._balls: list[Ball | LoraBall] = []
        self._before: Weights | None = None
        self._travel: Travel | None = None
        # The model's tensors, and copies on the host as of the last look within the limits.
        self._within: list[tuple[Tensor, Tensor]] = []

    def __repr__(self) -> str:
        given = {name: value for name, value in self.limits.to_dict().items() if value}
        return f"{type(self).__name__}({', '.join(f'{n}={v!r}' for n, v in given.items())})"

    # -- a run ---------------------------------------------------------------------------------

    def begin(
        self,
        model: nn.Module,
        optimizer: Any = None,
        *,
        folder: str | os.PathLike[str] | None = None,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        """Begin, on every rank: before the first step, after DDP or FSDP2 have the model.

        Args:
            model: as it is trained.
            optimizer: needed where learning rates bound the distance.
            folder: where W0 is kept for a resume and for ``copy="disk"``; every rank has to see it.
                None: it is not kept.
            state: in a run that resumes, what ``state_dict`` returned; the weights are loaded.

        Raises:
            ConfigError: what this budget cannot be exact for, with the remedy.
            FormatError: files with W0 that are missing or damaged.
            UnsupportedSetup: weights that are flattened, or sharded adapters.
        """
        self.close()
        params = self._params(model)
        self._steps = 0 if state is None else int(state["steps"])
        self._run = None if state is None else state.get("run")
        place = None if folder is None else Path(folder)
        limits, resumes = self.limits, state is not None
        self._model = model
        if limits.hold is not None:
            self._begin_hold(limits.hold, model, params, place, resumes)
        elif limits.initial is None and limits.copy is None and not is_peft_model(model):
            self._begin_bound(params, optimizer, state)
        else:
            self._begin_looks(model, params, place, resumes)

    def after_step(self) -> bool:
        """Do what is due after an optimizer step; call it on every rank, after the schedule's step.

        Returns:
            True when training has to stop. Where the distance is measured, the model has been given
            back the weights of the last look within the limits. Where it is bounded, the next step
            could pass the limit, and this one has not.
        """
        self.pull()
        self._steps += 1
        return self.look(due=self._steps % self.limits.every == 0)

    def pull(self) -> None:
        """Bring weights that have left the ball back to its surface, as ``after_step`` does."""
        for name, param in self._frozen:
            if param.requires_grad:
                raise ConfigError(
                    f"{name} was frozen when the budget began and is trained now, so it would not "
                    "be in the budget. Set requires_grad before training, or leave it out by free=."
                )
        for each in self._balls:
            each.pull()

    def look(self, *, due: bool = True) -> bool:
        """Look how far the network is, as ``after_step`` does.

        Args:
            due: measure, if this budget measures.

        Returns: True when training has to stop.
        """
        if self._travel is not None:
            now = self.limits.judged(self._steps, self._travel.bounds(), bound=True)
            ahead = self.limits.judged(self._steps, self._travel.bounds_after(), bound=True)
            passed = now.passed or (ahead.passed and f"after one more step {ahead.passed}")
            self.last = Look(now.step, now.log_drt, now.largest, now.name, True, passed)
            return passed is not None
        if not due or self._before is None:
            return False
        self.last = self._measured()
        if self.last.passed is None:
            self._keep()
            return False
        self._give_back()
        return True

    def state_dict(self) -> dict[str, Any]:
        """What ``begin`` needs when the run is resumed, in what JSON can hold."""
        travel = None if self._travel is None else self._travel.state()
        return {"format": _FORMAT, "steps": self._steps, "run": self._run, "travel": travel}

    def close(self) -> None:
        """Let go of the model, the copies and the optimizer."""
        if self._travel is not None:
            self._travel.close()
        self._balls, self._before, self._travel = [], None, None
        self._model, self._trained, self._frozen, self._within = None, {}, [], []

    # -- beginnings ----------------------------------------------------------------------------

    def _params(self, model: nn.Module) -> dict[str, Tensor]:
        """The trained weights that the budget is for, by name."""
        named = dict(model.named_parameters())
        found: dict[str, Tensor] = dict(zip(common_names(named), named.values(), strict=True))
        for name, param in found.items():
            refuse_inexact(param, param.shape, name)
            if hasattr(param, "ds_id") or param.is_meta:
                raise UnsupportedSetup(
                    f"{name} is not here: it is on the meta device, or sharded by DeepSpeed's ZeRO "
                    "stage 3. Load the weights first; to shard them, use FSDP2."
                )
            if is_lns(param) and is_sharded(param):
                raise UnsupportedSetup(
                    f"{name} is stored in codes and sharded, of which a budget cannot keep a copy. "
                    "Train under DDP, or on a single device."
                )
        names = list(found)
        if is_peft_model(model):
            if any(map(is_sharded, found.values())):
                raise UnsupportedSetup(
                    "a budget needs the factors of adapters on one rank, and they are sharded. "
                    "Train adapters under DDP, or on a single device."
                )
            try:
                names += list(of_peft_model(model).shapes)
            except ConfigError as error:
                raise ConfigError(
                    f"{error} To train under a budget, use LoRA with one active adapter."
                ) from error
        self.limits.check_free(names)
        trained = {n: p for n, p in found.items() if p.requires_grad and p.numel()}
        if not trained:
            raise ConfigError("the model has no trainable weight: there is nothing to budget.")
        self._trained = trained
        self._frozen = [
            (name, param)
            for name, param in found.items()
            if not param.requires_grad and not self.limits.is_free(name)
        ]
        self.left_alone = {name: "free" for name in trained if self.limits.is_free(name)}
        return {name: param for name, param in trained.items() if name not in self.left_alone}

    def _begin_hold(
        self,
        rho: float,
        model: nn.Module,
        params: dict[str, Tensor],
        folder: Path | None,
        resumes: bool,
    ) -> None:
        copy = self.limits.copy or "exact"
        if coded := next((name for name, param in params.items() if is_lns(param)), None):
            raise ConfigError(
                f"hold is {rho!r}, and {coded} is stored in codes, where nothing can write the "
                "numbers of its ball. Use drt or layer with copy=, which only look, or leave such "
                "weights out by free=."
            )
        if is_peft_model(model) and self.limits.initial is not None:
            raise ConfigError(
                f"initial is {self.limits.initial!r} for a model with adapters, and hold takes the "
                "frozen weights below them for W0. Leave initial out."
            )
        factors = [each for each in factors_of(model) if not self.limits.is_free(each.name)]
        own = {id(tensor) for each in factors for tensor in (each.a, each.b)}
        params = {name: param for name, param in params.items() if id(param) not in own}
        if copy == "bfloat16" and rho < _BFLOAT16 and any(map(is_wide, params.values())):
            raise ConfigError(
                f"hold is {rho!r} with copy 'bfloat16', which may move W0 itself by {_BFLOAT16:g} "
                f"of its norm, out of the ball. Use copy='exact', or hold >= {_BFLOAT16:g}."
            )
        if params:
            start = self._origin(params, folder, resumes, copy)
            held = [held_as(n, p) for n, p in params.items() if n not in self.left_alone]
            squares = origin.squares_of(held, start.weights)
            moving = []
            for each, square in zip(held, map(float, squares), strict=True):
                self._check_start(each.name, square)
                moving.append(square > 0)
            inside = [each for each, moves in zip(held, moving, strict=True) if moves]
            norms = [s.sqrt() for s, moves in zip(squares, moving, strict=True) if moves]
            self._balls.append(Ball(inside, start.weights, norms, rho))
        for pair in factors:
            self._check_start(pair.name, float(pair.base_square()))
        if factors := [pair for pair in factors if pair.name not in self.left_alone]:
            self._balls.append(LoraBall(factors, rho))

    def _check_start(self, name: str, square: float) -> None:
        if square == 0:
            self.left_alone[name] = _ZERO
        elif not square < float("inf"):
            raise ConfigError(
                f"{name} is not finite at the beginning, so it has no ball to stay in. Load sound "
                "weights, or leave it out by free=."
            )

    def _begin_bound(
        self, params: dict[str, Tensor], optimizer: Any, state: Mapping[str, Any] | None
    ) -> None:
        if optimizer is None:
            raise ConfigError(
                "drt and layer without initial= are bounded by the learning rates, and no "
                "optimizer was given. Pass it, begin(model, optimizer), or pass initial=."
            )
        if state is None and getattr(optimizer, "state", None):
            raise ConfigError(
                "the optimizer has taken steps before the budget begins, so its learning rates "
                "do not bound the distance. Begin before its first step, resume with the state of "
                "the budget, or pass initial=."
            )
        self._travel = Travel(optimizer, _matrices(params))
        self.left_alone.update(dict.fromkeys(self._travel.left_alone, _ZERO))
        if state is not None:
            if state.get("travel") is None:
                raise ConfigError(
                    "the checkpoint does not say how far the weights may have come: its run had "
                    "no bound. Pass initial=, the checkpoint that training began with."
                )
            self._travel.load(state["travel"])
        self.last = self.limits.judged(self._steps, self._travel.bounds(), bound=True)
        self._refuse_passed(self.last)

    def _begin_looks(
        self, model: nn.Module, params: dict[str, Tensor], folder: Path | None, resumes: bool
    ) -> None:
        if not is_peft_model(model):
            copy = self.limits.copy or "disk"
            start = self._origin(_matrices(params), folder, resumes, copy)
            self._before = start.weights
        elif self.limits.copy is None:
            self._before, _ = opened(self.limits.initial, model)
        else:
            raise ConfigError(
                f"copy is {self.limits.copy!r} for a model with adapters, whose weights below are "
                "frozen: nothing has to be copied. Leave copy out."
            )
        self.last = self._measured()
        assert self.distance is not None
        for entry in self.distance.apart:
            if entry.reason == "zero before" and entry.name in params:
                self.left_alone[entry.name] = _ZERO
        self._refuse_passed(self.last)
        self._keep()

    def _origin(
        self, params: dict[str, Tensor], folder: Path | None, resumes: bool, copy: str
    ) -> Origin:
        if self.limits.initial is not None:
            found = origin.of_checkpoint(str(self.limits.initial), params, copy)
        elif resumes:
            found = origin.of_folder(params, folder, copy, self._run)
        else:
            found = origin.of_now(params, folder, copy, self._trained)
        self._run = found.run
        self.left_alone.update({n: f"not in {self.limits.initial}" for n in found.absent})
        return found

    # -- looks ---------------------------------------------------------------------------------

    def _measured(self) -> Look:
        assert self._model is not None and self._before is not None
        if is_peft_model(self._model):
            comparison = Comparison(*opened(self.limits.initial, self._model))
        else:
            comparison = Comparison(self._before, of_module(self._model))
        comparison.run()
        self.distance = found = comparison.result()
        if found.partial:
            raise FormatError(
                f"the weights that training began with cannot be read any more: {found.partial}. "
                "Restore them; the run can be resumed from its last checkpoint."
            )
        updates = {each.name: each.relative_update for each in found.matrices}
        # Weights that are no numbers any more are as far away as can be.
        lost = [each.name for each in found.apart if each.reason == "not finite after"]
        updates.update(dict.fromkeys(lost, float("inf")))
        counted = {name: r for name, r in updates.items() if not self.limits.is_free(name)}
        return self.limits.judged(self._steps, counted, bound=False)

    def _refuse_passed(self, look: Look) -> None:
        if look.passed is not None:
            raise ConfigError(
                f"{look.passed} already, before the first step of this run. Set a larger limit, or "
                "check that initial= is the checkpoint that training begins with."
            )

    @torch.no_grad()
    def _keep(self) -> None:
        """Copy to the host what a stop gives back."""
        assert self._model is not None
        if not self._within:
            tensors: list[Tensor] = [p for p in self._model.parameters() if p.requires_grad]
            tensors += list(self._model.buffers())
            self._within = [(each, local(each).to("cpu", copy=True)) for each in tensors]
        for tensor, kept in self._within:
            kept.copy_(local(tensor))

    @torch.no_grad()
    def _give_back(self) -> None:
        for tensor, kept in self._within:
            local(tensor).copy_(kept)


def _matrices(params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights that count for drt and layer."""
    found = {name: param for name, param in params.items() if param.dim() >= 2}
    if not found:
        raise ConfigError(
            "no weight matrix is trained that is not free, and drt and layer are limits for "
            "matrices (weights with two or more dimensions). Use hold, or free fewer weights."
        )
    return found
