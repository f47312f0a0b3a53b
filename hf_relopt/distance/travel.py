"""How far an optimizer's learning rates can have taken each weight: bounds that cost nothing.

Of Fromage's rules alone, along any direction: a step is a part of the weight's own norm there. What
the bound needs to know of the weights, it looks at once, before the first step.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hf_relopt.distance.ball import local_squares
from hf_relopt.errors import ConfigError
from hf_relopt.options.method import Method, method_of
from hf_relopt.rules.fromage import PLACEHOLDER_BLOCK, PLACEHOLDER_ROW, untrained_lr
from hf_relopt.rules.travel import START, Reach, after_step, with_placeholders
from hf_relopt.sharding.layout import Layout, layout_of, local
from hf_relopt.sharding.reduce import all_reduced

_INSTEAD = (
    "Pass initial=, the checkpoint that training begins with, or copy= to keep it, to measure the "
    "distance; or name the weight in free= to leave it out."
)
# Parts near the threshold count as placeholders, whichever way their norms are rounded.
_NEAR = 1 + 1e-5


@dataclass
class _Way:
    """Weights that follow one method in one param group: they can have come equally far.

    Attributes:
        group: the place of the param group.
        param: one of them.
        shares: of each by name: what placeholders have of its square; see rules/travel.py.
        reach, untrained: how far they can be, and their placeholders.
    """

    group: int
    param: Tensor
    shares: dict[str, float]
    reach: Reach = START
    untrained: Reach = START


class Travel:
    """Bounds of how far weights have moved, in units of their initial norms.

    Args:
        optimizer: one of ours, before its first step; Accelerate's wrapper is looked through.
        matrices: the weights to bound, by name.

    Attributes:
        left_alone: weights that begin at zero, and have no relative update.

    Raises:
        ConfigError: a weight whose rule has no bound.
    """

    def __init__(self, optimizer: Any, matrices: Mapping[str, Tensor]) -> None:
        self.optimizer = getattr(optimizer, "optimizer", optimizer)
        groups: Sequence[dict[str, Any]] = self.optimizer.param_groups
        place = {id(p): n for n, group in enumerate(groups) for p in group["params"]}
        mine = {name: param for name, param in matrices.items() if id(param) in place}
        methods = {}
        for name, param in mine.items():
            group = groups[place[id(param)]]
            refuse_unbounded(name, param, group, self.optimizer)
            methods[name] = method_of(group, param)
        self.left_alone: list[str] = []
        ways: dict[Any, _Way] = {}
        for name, share in _placeholders(mine, methods).items():
            param = mine[name]
            if share is None:
                self.left_alone.append(name)
                continue
            key = place[id(param)], methods[name], param.dtype
            ways.setdefault(key, _Way(key[0], param, {})).shares[name] = share
        self._ways = list(ways.values())
        self._hook = self.optimizer.register_step_post_hook(lambda *_: self._take_step())

    def close(self) -> None:
        """Follow the optimizer no longer."""
        self._hook.remove()

    def bounds(self) -> dict[str, float]:
        """The largest |W - W0|/|W0| that each weight can have now."""
        return self._bounds([(way.reach, way.untrained) for way in self._ways])

    def bounds_after(self) -> dict[str, float]:
        """The same after one more step at the learning rates that the groups have now."""
        return self._bounds(self._moved())

    def state(self) -> dict[str, list[float]]:
        """What a resumed run needs, in what JSON can hold."""
        return {name: [*way.reach, *way.untrained] for way in self._ways for name in way.shares}

    def load(self, state: Mapping[str, Sequence[float]]) -> None:
        """Go on from another run's ``state``.

        Raises:
            ConfigError: it is of other weights.
        """
        missing = [name for way in self._ways for name in way.shares if name not in state]
        if missing:
            raise ConfigError(
                f"the checkpoint has no bound for {missing[0]} ({len(missing)} weights): it was "
                "written with other weights in the budget. Train the same ones, or pass initial=."
            )
        for way in self._ways:
            values = zip(*[state[name] for name in way.shares], strict=True)
            distance, norm, new_distance, new_norm = map(max, values)
            way.reach, way.untrained = Reach(distance, norm), Reach(new_distance, new_norm)

    def _bounds(self, reaches: Sequence[tuple[Reach, Reach]]) -> dict[str, float]:
        return {
            name: with_placeholders(reach.distance, untrained.distance, share)
            for way, (reach, untrained) in zip(self._ways, reaches, strict=True)
            for name, share in way.shares.items()
        }

    def _moved(self) -> list[tuple[Reach, Reach]]:
        found = []
        for way in self._ways:
            group = self.optimizer.param_groups[way.group]
            lr = float(group["lr"]) * (group.get("lr_factor") or 1.0)
            found.append(_moved(way, method_of(group, way.param), lr))
        return found

    def _take_step(self) -> None:
        # The rates are those of the step: schedules change them after it.
        for way, (reach, untrained) in zip(self._ways, self._moved(), strict=True):
            way.reach, way.untrained = reach, untrained


def refuse_unbounded(name: str, param: Tensor, group: Mapping[str, Any], optimizer: Any) -> None:
    """Refuse a weight whose rule or precision has no bound.

    Raises:
        ConfigError: as above.
    """
    rule = group.get("rule")
    if rule != "fromage":
        what = type(optimizer).__name__ if rule is None else rule
        raise ConfigError(
            f"{name} follows {what}, whose steps have no bound in terms of the weight's norm (only "
            f"Fromage's have), so summed learning rates do not say how far it moves. {_INSTEAD}"
        )
    if method_of(group, param).elementwise:
        raise ConfigError(
            f"{name} of shape {tuple(param.shape)} is stepped entry by entry, as vectors are "
            f"beside a direction, and such steps have no bound in terms of its norm. {_INSTEAD}"
        )
    if method_of(group, param).is_running:
        raise ConfigError(
            f"{name} follows direction 'rms', whose steps are longer where a gradient is larger "
            f"than usual, and have no bound in terms of the weight's norm. {_INSTEAD}"
        )
    if torch.finfo(param.dtype).bits < 32:
        raise ConfigError(
            f"{name} is {str(param.dtype).removeprefix('torch.')}: its rounding moves it by an "
            f"amount that the learning rates do not tell. {_INSTEAD}"
        )


def _moved(way: _Way, method: Method, lr: float) -> tuple[Reach, Reach]:
    """How far the weights of a way can be after one more step."""
    how: dict[str, Any] = {
        "p_bound": method.options["p_bound"],
        "sphere": method.options["bound"] == "sphere",
        "eps": torch.finfo(way.param.dtype).eps,
    }
    reach = after_step(way.reach, lr, **how)
    if not any(way.shares.values()):
        return reach, way.untrained
    # On a sphere a placeholder is held at T, and not brought to it.
    own = {**how, "sphere": False, "p_bound": 1.0} if how["sphere"] else how
    ahead = float(untrained_lr(torch.tensor(lr, dtype=torch.float64)))
    return reach, after_step(way.untrained, ahead, **own)


def _placeholders(
    params: Mapping[str, Tensor], methods: Mapping[str, Method]
) -> dict[str, float | None]:
    """What placeholders have of each weight's square, at most; None of one that is zero."""
    layouts = {name: layout_of(param) for name, param in params.items()}
    blocks = {
        name: _squares_of_blocks(params[name], methods[name], layouts[name]) for name in params
    }
    order = list(layouts.values())
    squares = dict(zip(params, all_reduced(list(blocks.values()), order), strict=True))
    rows = {
        name: _small_rows(param, squares[name].sum())
        for name, param in params.items()
        if methods[name].scale == "row"
    }
    counts = dict(
        zip(rows, all_reduced(list(rows.values()), [layouts[n] for n in rows]), strict=True)
    )
    found: dict[str, float | None] = {}
    for name, param in params.items():
        if float(squares[name].sum()) == 0:
            found[name] = None
        elif name in counts:
            found[name] = float(counts[name]) / max(1, param.shape[0])
        elif methods[name].scale == "block":
            found[name] = _small_blocks(squares[name], methods[name].blocks(param.shape))
        else:
            found[name] = 0.0
    return found


def _small_rows(param: Tensor, square: Tensor) -> Tensor:
    """How many of this rank's rows are placeholders; ``square`` is that of the full weight."""
    rows = local(param.detach())
    if not rows.numel():
        return square.new_zeros(())
    norms = torch.linalg.vector_norm(rows.reshape(len(rows), -1), dim=1, dtype=square.dtype)
    share = (square / max(1, param.shape[0])).sqrt()
    return (norms < PLACEHOLDER_ROW * share * _NEAR).sum().to(square)


def _small_blocks(squares: Tensor, sizes: Iterable[int]) -> float:
    shares = torch.tensor(list(sizes), dtype=torch.float64)
    shares /= shares.sum()
    squares = squares.cpu().double()
    small = squares.sqrt() < PLACEHOLDER_BLOCK * (squares.sum() * shares).sqrt() * _NEAR
    return float(shares[small].sum())


def _squares_of_blocks(param: Tensor, method: Method, layout: Layout) -> Tensor:
    """The squares of the norms of this rank's part of each block; of one, if there are no more."""
    part = local(param.detach())
    if method.scale != "block":
        return local_squares([part])
    dim = method.options["split_dim"]
    first, length = layout.offset[dim], part.shape[dim]
    found, begin = [], 0
    for size in method.blocks(layout.shape):
        start = min(max(begin - first, 0), length)
        end = min(max(begin + size - first, start), length)
        found.append(part.narrow(dim, start, end - start))
        begin += size
    return local_squares(found)
