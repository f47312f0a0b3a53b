"""What torch's operators do with tensors in codes.

Views share the bytes, copies copy them, and whatever else reads a tensor decodes it. That is below
autograd: gradients are those of the decoded numbers, and what it keeps for them are the codes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from hf_relopt.errors import ConfigError
from hf_relopt.lns.in_codes import InCodes
from hf_relopt.lns.rows import contiguous_stride, decoded_rows, whole_rows


def run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What an operator makes of arguments among which there are tensors in codes.

    Raises:
        ConfigError: it would write numbers into codes.
    """
    if func in _HANDLERS:
        return _HANDLERS[func](func, *args, **kwargs)
    if func.is_view and isinstance(args[0], InCodes):
        return _viewed(func, *args, **kwargs)
    if func._schema.is_mutable and any(map(_is_lns, _written(func, args, kwargs))):
        _refuse_write(func, _first((*args, *kwargs.values())))
    return func(*_plain(args), **_plain(kwargs))


def _is_lns(value: Any) -> bool:
    return isinstance(value, InCodes)


def _plain(value: Any) -> Any:
    if isinstance(value, InCodes):
        return value.dequantize()
    if isinstance(value, list | tuple):
        return type(value)(map(_plain, value))
    return {k: _plain(v) for k, v in value.items()} if isinstance(value, dict) else value


def _first(value: Any) -> InCodes:
    """The first weight in codes among arguments."""
    for each in value:
        if isinstance(each, InCodes):
            return each
        if isinstance(each, list | tuple) and any(map(_is_lns, each)):
            return _first(each)
    raise AssertionError(value)


def _written(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Any]:
    """The arguments that an operator writes to."""
    found: list[Any] = []
    for place, arg in enumerate(func._schema.arguments):
        if arg.alias_info is not None and arg.alias_info.is_write:
            value = args[place] if place < len(args) else kwargs.get(arg.name)
            found += value if isinstance(value, list | tuple) else [value]
    return found


def _refuse_write(what: Any, weight: InCodes) -> NoReturn:
    raise ConfigError(
        f"{what} would write numbers into a weight of shape {tuple(weight.shape)} that is stored "
        f"in {weight.form.name}, where they would be rounded without a word. IntegerMadam steps "
        "such weights. What initializes, loads, resizes, averages or merges weights needs numbers: "
        "do so before hf_relopt.compress(model), or after hf_relopt.decompress(model); a copy in "
        "numbers is weight.dequantize()."
    )


def _like(
    source: InCodes, packed: Tensor, scale: Tensor, dtype: torch.dtype | None = None
) -> InCodes:
    """The same with other bytes."""
    return type(source)(
        packed,
        scale,
        source.form,
        source.columns,
        source.shape,
        source.stride(),
        int(source.storage_offset()),
        source.dtype if dtype is None else dtype,
        source.shard,
    )


# -- views -----------------------------------------------------------------------------------------


def _viewed(func: Any, source: InCodes, *args: Any, **kwargs: Any) -> Any:
    """A view: what it does to size and strides is asked of a tensor without values."""
    # As long as all decoded rows, since a view may look at any of them.
    whole = torch.empty(len(source.packed) * source.columns, dtype=source.dtype, device="meta")
    twin = whole.as_strided(source.shape, source.stride(), source.storage_offset())
    found = func(twin, *args, **kwargs)
    if isinstance(found, Tensor):
        if found.dtype is not source.dtype:  # other numbers of the same bits
            return func(source.dequantize(), *args, **kwargs)
        return _alias(source, found)
    return type(found)([_alias(source, each) for each in found])


def _alias(source: InCodes, twin: Tensor) -> InCodes:
    size, stride, offset = twin.shape, twin.stride(), int(twin.storage_offset())
    packed, scale = source.packed, source.scale
    rows = whole_rows(twin, source.columns)
    if rows is not None:
        # One after the other: the others are left away.
        if rows.stop - rows.start != len(packed):
            packed, scale = packed[rows], scale[rows] if scale.dim() else scale
        offset, stride = 0, contiguous_stride(size)
    same = source.form, source.columns
    return type(source)(packed, scale, *same, size, stride, offset, source.dtype, source.shard)


# -- operators that need no numbers ------------------------------------------------------------

_HANDLERS: dict[Any, Callable[..., Any]] = {}
aten = torch.ops.aten


def _handles(*funcs: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def register(handler: Callable[..., Any]) -> Callable[..., Any]:
        _HANDLERS.update(dict.fromkeys(funcs, handler))
        return handler

    return register


@_handles(aten.clone.default)
def _clone(func: Any, source: InCodes, **kwargs: Any) -> Tensor:
    if not source.is_canonical:
        return func(source.dequantize(), **kwargs)
    return _like(source, source.packed.clone(), source.scale.clone())


@_handles(aten._to_copy.default)
def _to_copy(func: Any, source: InCodes, **kwargs: Any) -> Tensor:
    dtype = kwargs.pop("dtype", None) or source.dtype
    if not dtype.is_floating_point:
        return func(source.dequantize(), dtype=dtype, **kwargs)
    where = {name: kwargs[name] for name in ("device", "non_blocking") if name in kwargs}
    packed, scale = func(source.packed, **where), func(source.scale, **where)
    return _like(source, packed, scale, dtype)


@_handles(aten._pin_memory.default)
def _pin_memory(func: Any, source: InCodes, *args: Any, **kwargs: Any) -> Tensor:
    each = [func(tensor, *args, **kwargs) for tensor in (source.packed, source.scale)]
    return _like(source, each[0], each[1])


@_handles(aten.is_pinned.default)
def _is_pinned(func: Any, source: InCodes, *args: Any, **kwargs: Any) -> Any:
    return func(source.packed, *args, **kwargs)


@_handles(aten.copy_.default)
def _copy_(func: Any, target: Any, source: Any, non_blocking: bool = False) -> Any:
    if not isinstance(target, InCodes):
        return func(target, source.dequantize(), non_blocking)
    if isinstance(source, InCodes):
        _copy_codes(target, source, non_blocking)
    elif not _has_numbers(target, source):
        _refuse_write(func, target)
    return target


def _copy_codes(target: InCodes, source: InCodes, non_blocking: bool) -> None:
    if source.form != target.form:
        raise ConfigError(
            f"A weight of shape {tuple(target.shape)} is stored in {target.form}, and what is to "
            f"be copied there in {source.form}. Compress the model in the format of the file, or "
            "load the file into a model of its own."
        )
    if not (source.is_canonical and target.is_canonical and source.shape == target.shape):
        raise ConfigError(
            f"Codes of shape {tuple(source.shape)} cannot be copied to shape "
            f"{tuple(target.shape)}: weights in {target.form.name} are copied as they are, or by "
            "whole rows."
        )
    target.packed.copy_(source.packed, non_blocking=non_blocking)
    target.scale.copy_(source.scale, non_blocking=non_blocking)
    torch.autograd.graph.increment_version(target)


def take_over(target: InCodes, value: Any) -> None:
    """What ``target.data = value`` does: other codes of the same format, of whatever shape.

    Raises:
        ConfigError: they are numbers, or of another format.
    """
    if not isinstance(value, InCodes) or value.form != target.form:
        _refuse_write("An assignment to .data", target)
    torch.Tensor.data.__set__(target, value)  # type: ignore[attr-defined]
    target.packed, target.scale = value.packed, value.scale
    target.columns, target.shard = value.columns, value.shard


def _has_numbers(target: InCodes, source: Tensor) -> bool:
    """Says whether numbers are what is there already, as where processes copy the same weights."""
    now = target.dequantize()
    return source.shape == now.shape and bool(torch.equal(source.to(now), now))


@_handles(aten.new_zeros.default)
def _new_zeros(func: Any, source: InCodes, size: Sequence[int], **kwargs: Any) -> Tensor:
    tail = tuple(source.shape[1:])
    same = kwargs.get("dtype") in (None, source.dtype) and tuple(size[1:]) == tail
    if not same or len(size) < 2 or not source.is_canonical:
        return func(_empty(source), size, **kwargs)
    # FSDP2 makes room for a shard in this way, filled up to the size of the first one.
    rows, where = size[0], {k: v for k, v in kwargs.items() if k == "device" and v is not None}
    packed = source.packed.new_zeros(rows, source.packed.shape[1], **where)
    scale = source.scale.new_ones(rows, **where) if source.scale.dim() else source.scale.clone()
    whole = source.shard[0] if source.shard else source.shape[0]
    made = (packed, scale, source.form, source.columns, size)
    return type(source)(*made, dtype=source.dtype, shard=(whole, rows))


def _empty(source: InCodes) -> Tensor:
    """A plain tensor of its shape, dtype and device, for what looks at these alone."""
    return torch.empty_strided(
        source.shape, source.stride(), dtype=source.dtype, device=source.packed.device
    )


@_handles(
    aten.empty_like.default,
    aten.zeros_like.default,
    aten.ones_like.default,
    aten.full_like.default,
    aten.rand_like.default,
    aten.randn_like.default,
    aten.new_empty.default,
    aten.new_empty_strided.default,
    aten.new_full.default,
    aten.new_ones.default,
)
def _made_like(func: Any, source: InCodes, *args: Any, **kwargs: Any) -> Any:
    return func(_empty(source), *args, **kwargs)


@_handles(aten.embedding.default)
def _embedding(func: Any, weight: Any, indices: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Only the rows that occur are decoded."""
    is_table = isinstance(weight, InCodes) and weight.is_canonical
    if not is_table or weight.shape != (len(weight.packed), weight.columns):
        return func(*_plain((weight, indices)), *args, **kwargs)
    flat = indices.reshape(-1)
    scale = weight.scale.index_select(0, flat) if weight.scale.dim() else weight.scale
    packed = weight.packed.index_select(0, flat)
    found = decoded_rows(packed, scale, weight.form, weight.columns, weight.dtype)
    return found.view(*indices.shape, weight.columns)
