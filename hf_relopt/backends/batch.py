"""What a backend gets: tensors of one device and dtype, and all that the rule needs with them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from hf_relopt.lns.rounding import ROUNDED_DTYPES, noise, stochastic_round
from hf_relopt.sharding import LocalSums, Place, Sums, WholeNorms

# (param, grad, *buffers, **coefficients, **constants) -> (new param, *new buffers)
Update = Callable[..., tuple[Tensor, ...]]


@dataclass(frozen=True)
class Decision:
    """What one step does with each of T tensors.

    ``state`` are the rule's scalars after the step, [T]; ``coefficients`` are 0-dim (the same for
    all) or [T]; ``learn`` and ``move`` are bool [T]: may this tensor's state, its weights change in
    this step? ``keys`` are the noise keys, int32 [T], or None to round to nearest.
    """

    state: dict[str, Tensor]
    coefficients: dict[str, Tensor]
    learn: Tensor
    move: Tensor
    keys: Tensor | None


# (state, norms, numel, index, lr) -> Decision; see optim/decision.py
Decide = Callable[[dict[str, Tensor], WholeNorms, Tensor, "Tensor | None", Tensor], Decision]


@dataclass(frozen=True)
class Work:
    """T parameters of one group, device and dtype before a step, and how to decide on it.

    ``params``, ``grads`` and ``buffers`` are what this rank holds of them, and ``places`` say where
    that lies (None: it is all). ``state`` are each tensor's scalars (one entry, stepped in place),
    ``numel`` (of whole tensors) and ``index`` are [T], ``lr`` is 0-dim; ``decide`` is hashable, and
    equal ones decide alike.
    """

    params: list[Tensor]
    grads: list[Tensor]
    buffers: list[tuple[Tensor, ...]]
    places: list[Place | None]
    state: list[dict[str, Tensor]]
    numel: Tensor
    index: Tensor | None
    lr: Tensor
    sums: Sums
    decide: Decide
    update: Update
    constants: dict[str, object]
    maximize: bool


@dataclass(frozen=True)
class Batch:
    """The same parameters once it is decided what the step does with each."""

    params: list[Tensor]
    grads: list[Tensor]
    buffers: list[tuple[Tensor, ...]]
    places: list[Place | None]
    update: Update
    coefficients: dict[str, Tensor]
    constants: dict[str, object]
    learn: Tensor
    move: Tensor
    keys: Tensor | None
    maximize: bool

    @classmethod
    def of(cls, work: Work, decision: Decision) -> Batch:
        """``work`` with its ``decision``."""
        return cls(
            params=work.params,
            grads=work.grads,
            buffers=work.buffers,
            places=work.places,
            update=work.update,
            coefficients=decision.coefficients,
            constants=work.constants,
            learn=decision.learn,
            move=decision.move,
            keys=decision.keys,
            maximize=work.maximize,
        )

    def scalars(self, index: int) -> Scalars:
        """The 0-dim tensors that belong to parameter ``index``."""
        return Scalars(
            {k: v if v.dim() == 0 else v[index] for k, v in self.coefficients.items()},
            self.learn[index],
            self.move[index],
            None if self.keys is None else self.keys[index],
        )

    def only(self, index: int) -> Batch:
        """The same step for parameter ``index`` alone."""
        pick = slice(index, index + 1)
        return replace(
            self,
            params=self.params[pick],
            grads=self.grads[pick],
            buffers=self.buffers[pick],
            places=self.places[pick],
            coefficients={k: v if v.dim() == 0 else v[pick] for k, v in self.coefficients.items()},
            learn=self.learn[pick],
            move=self.move[pick],
            keys=None if self.keys is None else self.keys[pick],
        )


@dataclass(frozen=True)
class Scalars:
    """One parameter's coefficients, masks and noise key: 0-dim, or one value per entry."""

    coefficients: dict[str, Tensor]
    learn: Tensor
    move: Tensor
    key: Tensor | None


@dataclass(frozen=True)
class Backend:
    """``local_sums`` feeds the whole norms, ``apply`` runs the rule and writes the results.

    ``step_alone``, if there is one, comes first where nothing is sharded: it takes tensors one by
    one from their sums to the new weights, while what the sums have read is still in the cache, and
    returns the places of those it left.
    """

    local_sums: LocalSums
    apply: Callable[[Batch], None]
    step_alone: Callable[[Work], list[int]] | None = None


def constant(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Numbers that are the same in every step, on a device: [len(values)], not to be written to.

    Made once, since the way there takes longer than a kernel.
    """
    made = _made_once(values, dtype, device)
    if type(made) is not Tensor:
        # A stand-in, as memory estimators step with: nobody else may get it.
        _made_once.cache_clear()
    return made


@lru_cache(maxsize=1024)
def _made_once(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=dtype).to(device, non_blocking=True)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The precision the rule runs in: float64 for float64 weights, float32 for all others."""
    return torch.float64 if dtype is torch.float64 else torch.float32


def rule_step(
    update: Update,
    param: Tensor,
    grad: Tensor,
    buffers: tuple[Tensor, ...],
    scalars: Scalars,
    position: Tensor | None,
    constants: dict[str, object],
    maximize: bool,
) -> None:
    """Run the rule on one piece and write weights and state in place, each under its mask."""
    new, *new_buffers = rule_results(
        update, param, grad, buffers, scalars, position, constants, maximize
    )
    param.copy_(new)
    for buffer, new_buffer in zip(buffers, new_buffers, strict=True):
        buffer.copy_(new_buffer)


def rule_results(
    update: Update,
    param: Tensor,
    grad: Tensor,
    buffers: tuple[Tensor, ...],
    scalars: Scalars,
    position: Tensor | None,
    constants: dict[str, object],
    maximize: bool,
) -> list[Tensor]:
    """What is to be in the place of weights and state after the step, each under its mask.

    torch.where decides, not a factor of 0 or 1: 0 * inf is NaN, and -0.0 - 0 * (-1) is +0.0.
    """
    wide = compute_dtype(param.dtype)
    gradient = grad.to(wide)
    if maximize:
        gradient = -gradient
    new, *new_buffers = update(
        param.to(wide), gradient, *buffers, **scalars.coefficients, **constants
    )
    if scalars.key is not None and position is not None:
        rounded = stochastic_round(new, param.dtype, noise(scalars.key, position))
    else:
        rounded = new.to(param.dtype)
    kept = zip(new_buffers, buffers, strict=True)
    return [
        torch.where(scalars.move, rounded, param),
        *[torch.where(scalars.learn, new_buffer, buffer) for new_buffer, buffer in kept],
    ]


def needs_noise(param: Tensor, keys: Tensor | None) -> bool:
    """True if writing into ``param`` rounds stochastically."""
    return keys is not None and param.dtype in ROUNDED_DTYPES


def piece_size(device: torch.device) -> int:
    """Entries worked on at once: what stays in a core's cache, or few enough to bound memory.

    A rule holds up to eight float32 temporaries per entry, so an accelerator's 2^23 entries are
    256 MB, and a CPU's 2^18 fit the second-level cache with room for the operands.
    """
    return 2**18 if device.type == "cpu" else 2**23


def small_size(device: torch.device) -> int:
    """Entries up to which tensors are laid end to end: copying costs less than own kernels."""
    return 2**15 if device.type == "cpu" else 2**18


def first_position(place: Place | None, shape: torch.Size) -> int | None:
    """Where a part of this shape begins in the whole tensor laid out row by row.

    None if the part is not one run of it, as when columns are cut.
    """
    if place is None:
        return 0
    if shape[1:] != place.whole_shape[1:]:
        return None
    return place.first[0] * math.prod(shape[1:]) if place.first else 0


@dataclass(frozen=True)
class Piece:
    """Views of the same part of several tensors, which begins at ``first`` of the whole shape."""

    tensors: tuple[Tensor, ...]
    whole_shape: torch.Size
    first: tuple[int, ...]

    def positions(self) -> Tensor:
        """int32: each entry's row-major place in the whole tensor (wrapping beyond 2^32)."""
        shape, device = self.tensors[0].shape, self.tensors[0].device
        places = torch.zeros((), dtype=torch.int64, device=device)
        stride = 1
        for dim in reversed(range(len(shape))):
            first = self.first[dim]
            along = torch.arange(first, first + shape[dim], device=device) * stride
            places = places + along.view(-1, *[1] * (len(shape) - 1 - dim))
            stride *= self.whole_shape[dim]
        return places.to(torch.int32).expand(shape)


def pieces(tensors: tuple[Tensor, ...], size: int, place: Place | None = None) -> Iterator[Piece]:
    """Cut tensors of one shape into views of about ``size`` entries, whatever their layouts.

    Contiguous tensors are cut as flat ones; others along their longest dimension, without a copy.

    Args:
        place: where these tensors lie in the whole ones, if they are not all of them.
    """
    shape = tensors[0].shape
    begin = first_position(place, shape)
    if begin is not None and all(tensor.is_contiguous() for tensor in tensors):
        tensors = tuple(tensor.view(-1) for tensor in tensors)
        shape = whole_shape = tensors[0].shape
        corner: tuple[int, ...] = (begin,)
    else:
        whole_shape = shape if place is None else place.whole_shape
        corner = (0,) * len(shape) if place is None else place.first
    if tensors[0].numel() <= size:
        yield Piece(tensors, whole_shape, corner)
        return
    dim = max(range(len(shape)), key=lambda d: shape[d])
    length = max(1, size * shape[dim] // tensors[0].numel())
    for start in range(0, shape[dim], length):
        cut = min(length, shape[dim] - start)
        first = (*corner[:dim], corner[dim] + start, *corner[dim + 1 :])
        yield Piece(tuple(t.narrow(dim, start, cut) for t in tensors), whole_shape, first)
