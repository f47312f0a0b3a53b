"""Programs: a function of tensors, entry by entry, as the lines of a Triton kernel.

The rules are written once, in rules/, on tensors. A function is traced to torch's operators, and
each operator has one expression here, so that a kernel computes what the rule says, in its order
and its precision. What is not entry by entry has no expression and is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

# The names of dtypes in a kernel's text.
NAMES = {
    torch.float64: "tl.float64",
    torch.float32: "tl.float32",
    torch.bfloat16: "tl.bfloat16",
    torch.float16: "tl.float16",
    torch.int64: "tl.int64",
    torch.int32: "tl.int32",
    torch.bool: "tl.int1",
}


@dataclass(frozen=True)
class Value:
    """What a line has computed: a variable or an expression without side effects, and its dtype."""

    text: str
    dtype: torch.dtype

    def to(self, dtype: torch.dtype) -> str:
        """The expression in ``dtype``."""
        if dtype is self.dtype:
            return self.text
        if dtype is torch.bool:
            return f"({self.text} != {literal(0, self.dtype)})"
        if dtype is torch.bfloat16:
            return f"{_short(self.to(torch.float32))}.to(tl.bfloat16)"
        return f"{self.text}.to({NAMES[dtype]})"


def _short(text: str) -> str:
    """A float32 expression rounded to the nearest bfloat16, ties to even.

    By its bits: Triton's interpreter cuts the rest off where a GPU rounds.
    """
    bits = f"{text}.to(tl.int32, bitcast=True)"
    rounded = f"(({bits} + 0x7FFF + (({bits} >> 16) & 1)) & -0x10000).to(tl.float32, bitcast=True)"
    return f"tl.where({text} != {text}, {text}, {rounded})"


@dataclass(frozen=True)
class Program:
    """A traced function.

    Attributes:
        dtypes: of what it takes.
        results: dtypes of what it returns.
        traced: torch's record of it.
    """

    dtypes: tuple[torch.dtype, ...]
    results: tuple[torch.dtype, ...]
    traced: GraphModule

    def lines(self, inputs: Sequence[str], outputs: Sequence[str]) -> list[str]:
        """Lines that compute the variables ``outputs`` from the variables ``inputs``."""
        values: dict[Node, Value] = {}
        names = iter(zip(inputs, self.dtypes, strict=True))
        found: list[str] = []
        for node in self.traced.graph.nodes:
            if node.op == "placeholder":
                values[node] = Value(*next(names))
            elif node.op == "call_function":
                text = _expression(node, values)
                dtype = node.meta["val"].dtype
                if text.isidentifier():
                    values[node] = Value(text, dtype)
                    continue
                name = f"v{len(values)}"
                found.append(f"{name} = {text}")
                values[node] = Value(name, dtype)
            elif node.op == "output":
                for name, own in zip(outputs, node.args[0], strict=True):
                    found.append(f"{name} = {values[own].text}")
        return found


def program_of(function: Callable[..., Sequence[Tensor]], like: Sequence[Tensor]) -> Program:
    """Trace a function of tensors.

    Args:
        function: takes tensors like ``like`` and returns a sequence of tensors. It looks at no
            value, and each entry of a result depends on that entry of the arguments alone.
        like: of the dtypes in question; 0-dim where there is one number for all entries.
    """
    # Imported here: it takes as long as a model, and most runs need none of it.
    from torch.fx.experimental.proxy_tensor import make_fx

    with torch.no_grad():
        traced = make_fx(lambda *given: list(function(*given)), tracing_mode="fake")(*like)
    traced.graph.eliminate_dead_code()
    (output,) = [node for node in traced.graph.nodes if node.op == "output"]
    results = tuple([node.meta["val"].dtype for node in output.args[0]])
    return Program(tuple([each.dtype for each in like]), results, traced)


def literal(value: complex, dtype: torch.dtype) -> str:
    """A number in a kernel, of exactly this dtype: by itself one would take it for float32."""
    if dtype is torch.bool:
        return f"tl.full([], {int(value != 0)}, tl.int1)"
    if not dtype.is_floating_point:
        return f"tl.full([], {int(value.real)}, {NAMES[dtype]})"
    number = float(value.real)
    text = repr(number) if math.isfinite(number) else f'float("{number}")'
    return f"tl.full([], {text}, {NAMES[dtype]})"


def _expression(node: Node, values: Mapping[Node, Value]) -> str:
    """The expression of one operator."""
    name = str(node.target).removeprefix("aten.").split(".")[0]
    write = _OPERATORS.get(name)
    if write is None:
        raise NotImplementedError(f"a kernel has no {node.target}, which is not entry by entry")

    def given(argument: Any) -> Any:
        return values[argument] if isinstance(argument, Node) else argument

    arguments = list(map(given, node.args))
    return write(_Call(arguments, node.kwargs, node.meta["val"].dtype))


def _in(given: Any, dtype: torch.dtype) -> str:
    """A value or a number in a dtype."""
    return given.to(dtype) if isinstance(given, Value) else literal(given, dtype)


@dataclass(frozen=True)
class _Call:
    """An operator's arguments, and the dtype of its result."""

    arguments: list[Any]
    options: Mapping[str, Any]
    dtype: torch.dtype

    def operand(self, place: int, dtype: torch.dtype | None = None) -> str:
        """An argument, in the dtype of the result unless another is asked for."""
        return _in(self.arguments[place], dtype or self.dtype)

    @property
    def common(self) -> torch.dtype:
        """What two operands are compared in."""
        own = [each for each in self.arguments[:2] if isinstance(each, Value)]
        found = own[0].dtype
        for each in own[1:]:
            found = torch.promote_types(found, each.dtype)
        numbers = [each for each in self.arguments[:2] if not isinstance(each, Value)]
        if numbers and isinstance(numbers[0], float) and not found.is_floating_point:
            return torch.float32
        return found


_Write = Callable[[_Call], str]


def _infix(sign: str) -> _Write:
    return lambda call: f"({call.operand(0)} {sign} {call.operand(1)})"


def _comparison(sign: str) -> _Write:
    return lambda call: f"({call.operand(0, call.common)} {sign} {call.operand(1, call.common)})"


def _multiplied(call: _Call) -> str:
    # Of truth values the product is the conjunction.
    sign = "&" if call.dtype is torch.bool else "*"
    return f"({call.operand(0)} {sign} {call.operand(1)})"


def _quotient(upper: str, lower: str, dtype: torch.dtype) -> str:
    # A plain / of float32 is off by two units, and is 0 where the divisor is beyond 2^126.
    return f"tl.div_rn({upper}, {lower})" if dtype is torch.float32 else f"({upper} / {lower})"


def _root(call: _Call) -> str:
    name = "tl.sqrt_rn" if call.dtype is torch.float32 else "tl.sqrt"
    return f"{name}({call.operand(0)})"


def _power(call: _Call) -> str:
    base, exponent = call.arguments
    if isinstance(base, Value):
        if exponent == 2:
            return f"({call.operand(0)} * {call.operand(0)})"
        raise NotImplementedError(f"a kernel has no power {exponent}")
    if base == 0:
        is_one = f"({call.operand(1)} == {literal(0, call.dtype)})"
        return f"tl.where({is_one}, {literal(1, call.dtype)}, {literal(0, call.dtype)})"
    return f"tl.exp({call.operand(1)} * {literal(math.log(base), call.dtype)})"


def _extreme(name: str, one: str, other: str) -> str:
    # As torch does it: what is no number stays none.
    return f"{name}({one}, {other}, propagate_nan=tl.PropagateNan.ALL)"


def _clamped(call: _Call) -> str:
    given = [*call.arguments, None, None][:3]
    least = call.options.get("min", given[1])
    most = call.options.get("max", given[2])
    found = call.operand(0)
    for name, limit in (("tl.maximum", least), ("tl.minimum", most)):
        if limit is not None:
            found = _extreme(name, found, _in(limit, call.dtype))
    return found


def _choice(call: _Call) -> str:
    condition = call.operand(0, torch.bool)
    return f"tl.where({condition}, {call.operand(1)}, {call.operand(2)})"


def _cast(call: _Call) -> str:
    return call.operand(0)


def _reinterpreted(call: _Call) -> str:
    value = call.arguments[0]
    if len(call.arguments) > 1 and isinstance(call.arguments[1], torch.dtype):
        return f"{value.text}.to({NAMES[call.dtype]}, bitcast=True)"
    return str(value.text)  # another shape of the same entries


_OPERATORS: dict[str, _Write] = {
    "add": _infix("+"),
    "sub": _infix("-"),
    "rsub": lambda call: f"({call.operand(1)} - {call.operand(0)})",
    "mul": _multiplied,
    "div": lambda call: _quotient(call.operand(0), call.operand(1), call.dtype),
    "reciprocal": lambda call: _quotient(literal(1, call.dtype), call.operand(0), call.dtype),
    "sqrt": _root,
    "pow": _power,
    "exp": lambda call: f"tl.exp({call.operand(0)})",
    "abs": lambda call: f"tl.abs({call.operand(0)})",
    "floor": lambda call: f"tl.floor({call.operand(0)})",
    # A product keeps the sign of a zero, which 0 - x does not.
    "neg": lambda call: f"({call.operand(0)} * {literal(-1, call.dtype)})",
    "minimum": lambda call: _extreme("tl.minimum", call.operand(0), call.operand(1)),
    "maximum": lambda call: _extreme("tl.maximum", call.operand(0), call.operand(1)),
    "clamp": _clamped,
    "where": _choice,
    "eq": _comparison("=="),
    "ne": _comparison("!="),
    "lt": _comparison("<"),
    "le": _comparison("<="),
    "gt": _comparison(">"),
    "ge": _comparison(">="),
    "bitwise_and": _infix("&"),
    "bitwise_or": _infix("|"),
    "bitwise_xor": _infix("^"),
    "bitwise_not": lambda call: f"({call.operand(0)} ^ {literal(-1, call.dtype)})",
    "__rshift__": _infix(">>"),
    "isnan": lambda call: f"({call.arguments[0].text} != {call.arguments[0].text})",
    "_to_copy": _cast,
    "view": _reinterpreted,
    "detach": _cast,
    "clone": _cast,
    "expand": _cast,
    "scalar_tensor": lambda call: literal(call.arguments[0], call.dtype),
    "full_like": lambda call: literal(call.arguments[1], call.dtype),
    "zeros_like": lambda call: literal(0, call.dtype),
    "ones_like": lambda call: literal(1, call.dtype),
}
