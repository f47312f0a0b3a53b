"""Directions, scales and bounds that cannot be: one ConfigError, at construction."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from torch import nn

from hf_relopt import Fromage
from hf_relopt.options.checks import parse_value
from tests.refusals import refused
from tests.tensors import run, weights

NAN, INF = math.nan, math.inf
REMEDY = re.compile(r"remedy|leave|use |set |give|choose|drop|try|write", re.IGNORECASE)
DIRECTIONS = "'gradient', 'momentum', 'spectral', 'adam'"

# option, value, what is allowed, the other options that the value needs beside it
BAD_VALUES = [
    *[("direction", value, DIRECTIONS, {}) for value in ("newton", "", None, 1, "Spectral")],
    *[("scale", value, "'tensor', 'row', 'block'", {}) for value in ("column", None, 2)],
    *[("bound", value, "'sphere'", {}) for value in ("ball", "none", 1, True)],
    *[
        ("momentum", value, "0 <= momentum < 1", {"direction": "momentum"})
        for value in (1.0, 1, -0.1, NAN, INF, True, "0.9", (0.9, 0.99))
    ],
    *[("nesterov", value, "True", {"direction": "momentum"}) for value in (1, "yes", 0.0)],
    *[
        ("beta", value, "0 <= beta < 1", {"direction": "adam"})
        for value in (1.0, -0.1, NAN, True, "0.9")
    ],
    *[
        ("momentum_dtype", value, "'bfloat16'", {"direction": "momentum"})
        for value in ("float16", "bf16", 16, True)
    ],
    *[
        ("split_dim", value, "integer", {"scale": "block", "split_sizes": 2})
        for value in (0.5, "0", True)
    ],
    *[
        ("split_sizes", value, ">= 1", {"scale": "block"})
        for value in (0, -2, 1.5, True, (), (4, 0), (5, -1), (2, "2"))
    ],
]

# options that do not go together, and words that their message has
CLASHES = [
    ({"momentum": 0.9}, ("momentum", "0.9", "gradient")),
    ({"nesterov": True}, ("nesterov", "True", "gradient")),
    ({"nesterov": False}, ("nesterov", "False", "gradient")),
    ({"momentum_dtype": "bfloat16"}, ("momentum_dtype", "bfloat16", "gradient")),
    ({"beta": 0.9}, ("beta", "0.9", "adam")),
    ({"direction": "momentum", "beta": 0.9}, ("beta", "0.9", "momentum", "adam")),
    ({"direction": "momentum", "beta": 0.9}, ("beta", "0.9", "momentum", "adam")),
    ({"direction": "adam", "nesterov": True}, ("nesterov", "True", "adam", "momentum")),
    ({"direction": "adam", "nesterov": False}, ("nesterov", "False", "adam")),
    ({"direction": "spectral", "scale": "row"}, ("spectral", "row", "tensor", "block")),
    ({"bound": "sphere", "p_bound": 2.0}, ("sphere", "p_bound", "2.0")),
    ({"split_dim": 0}, ("split_dim", "0", "scale", "block")),
    ({"split_sizes": 2}, ("split_sizes", "2", "scale", "block")),
    ({"scale": "block", "split_dim": 1}, ("split_dim", "1", "split_sizes")),
    ({"split_sizes": (2, 2), "scale": "row"}, ("split_sizes", "(2, 2)", "row", "block")),
    (
        {"direction": "spectral", "split_sizes": (2, 2)},
        ("split_sizes", "(2, 2)", "tensor", "block"),
    ),
]

# splits of tensors of (4, 3) that do not fit, and words that their message has
MISFITS = [
    ({"split_sizes": 3}, ("split_sizes", "3", "4")),
    ({"split_sizes": 5}, ("split_sizes", "5", "4")),
    ({"split_sizes": (2, 3)}, ("split_sizes", "2, 3", "4")),
    ({"split_sizes": [1, 1, 1]}, ("split_sizes", "1, 1, 1", "4")),
    ({"split_sizes": 2, "split_dim": 1}, ("split_sizes", "2", "3")),
    ({"split_sizes": (2, 2), "split_dim": 1}, ("split_sizes", "2, 2", "3")),
    ({"split_sizes": 2, "split_dim": 2}, ("split_dim", "2", "(4, 3)")),
]


def _refused_everywhere(options: dict[str, Any], *words: str) -> None:
    """By the class, in a group, and in a group that is added later; and with a remedy."""
    texts = [refused(lambda: Fromage(weights(torch.float32), **options), *words)]
    group = {"params": weights(torch.float32), **options}
    texts.append(refused(lambda: Fromage([group]), *words))
    params = weights(torch.float32)
    optimizer = Fromage(params[:2])
    late = {"params": [params[2]], **options}
    texts.append(refused(lambda: optimizer.add_param_group(late), *words))
    assert len(optimizer.param_groups) == 1
    run(optimizer, params[:2], (1,))
    assert all(REMEDY.search(text) for text in texts), texts


@pytest.mark.parametrize(("option", "value", "allowed", "beside"), BAD_VALUES, ids=repr)
def test_bad_value_is_refused(
    option: str, value: object, allowed: str, beside: dict[str, Any]
) -> None:
    _refused_everywhere({**beside, option: value}, option, repr(value), allowed)


@pytest.mark.parametrize(("options", "words"), CLASHES, ids=str)
def test_options_that_do_not_go_together_are_refused(
    options: dict[str, Any], words: tuple[str, ...]
) -> None:
    _refused_everywhere(options, *words)


@pytest.mark.parametrize("direction", ["gradient", "momentum", "spectral"])
@pytest.mark.parametrize(("split", "words"), MISFITS, ids=str)
def test_a_split_that_does_not_fit_its_tensor_is_refused(
    split: dict[str, Any], words: tuple[str, ...], direction: str
) -> None:
    _refused_everywhere({"direction": direction, "scale": "block", **split}, *words)


@pytest.mark.parametrize("value", [1.0, -0.1, NAN, True])
def test_a_momentum_that_a_schedule_sets_is_checked_before_anything_moves(value: float) -> None:
    """With 1.0 no gradient would be learnt from any more."""
    params = weights(torch.float32)
    optimizer = Fromage(params, direction="spectral")
    run(optimizer, params, range(2))
    optimizer.param_groups[0]["momentum"] = 0.5
    run(optimizer, params, range(2, 3))
    before = [param.detach().clone() for param in params]
    optimizer.param_groups[0]["momentum"] = value
    refused(optimizer.step, "momentum", repr(value), "0 <= momentum < 1")
    assert all(torch.equal(*pair) for pair in zip(params, before, strict=True))


def test_a_group_of_one_bare_tensor_is_checked_like_a_list() -> None:
    """torch takes one in place of a list. Its rows are no parameters."""
    zero = nn.Parameter(torch.zeros(4, 4))
    partly = nn.Parameter(torch.eye(4).roll(1, 0).index_fill(0, torch.tensor(0), 0.0))
    refused(lambda: Fromage([{"params": zero}], direction="momentum", bound="sphere"), "sphere")
    late = Fromage([nn.Parameter(torch.ones(3))], direction="momentum", bound="sphere")
    refused(lambda: late.add_param_group({"params": zero}), "sphere", "(4, 4)")
    for param in (partly, nn.Parameter(torch.tensor(1.0))):
        optimizer = Fromage([{"params": param}], direction="momentum", bound="sphere")
        assert optimizer.param_groups[0]["params"] == [param]
        run(optimizer, [param], (1,))


def test_a_split_is_checked_against_every_tensor() -> None:
    fits, other = nn.Parameter(torch.ones(6, 4)), nn.Parameter(torch.ones(5, 4))
    options = {"direction": "momentum", "scale": "block", "split_sizes": 2}
    Fromage([fits], **options)
    refused(lambda: Fromage([fits, other], **options), "split_sizes", "2", "5")
    names = [("good.weight", fits), ("bad.weight", other)]
    refused(lambda: Fromage(names, **options), "split_sizes", "bad.weight")


@pytest.mark.parametrize(
    "options",
    [
        {"direction": "momentum", "momentum": 0},
        {"direction": "momentum", "momentum": 0.999, "nesterov": False},
        {"direction": "spectral", "momentum_dtype": "bfloat16"},
        {"direction": "adam", "momentum": 0.0, "beta": 0, "momentum_dtype": "bfloat16"},
        {"direction": "adam", "scale": "row", "bound": "sphere"},
        {"direction": "spectral", "bound": "sphere", "p_bound": None},
        {"scale": "row", "p_bound": 0.5},
        {"bound": "sphere"},
        {"scale": "block", "split_sizes": 1},
        {"scale": "block", "split_sizes": [4]},
        {"scale": "block", "split_sizes": (1, 2, 1), "split_dim": 0},
        {"scale": "block", "split_sizes": 3, "split_dim": 1, "direction": "spectral"},
        {"momentum": None, "nesterov": None, "beta": None, "momentum_dtype": None},
        {"split_dim": None, "split_sizes": None, "bound": None},
    ],
    ids=str,
)
def test_what_goes_together_is_taken(options: dict[str, Any]) -> None:
    def tensors() -> list[nn.Parameter]:
        every = weights(torch.bfloat16)
        return [param for param in every if "bound" not in options or param.any()]

    params = tensors()
    run(Fromage(params, lr=0.1, **options), params, (1, 2))
    assert all(torch.isfinite(param).all() for param in params)
    group = {"params": tensors(), **options}
    run(Fromage([group], lr=0.1), group["params"], (1, 2))


@pytest.mark.parametrize("direction", ["gradient", "momentum", "spectral", "adam"])
def test_a_sphere_of_radius_zero_is_refused(direction: str) -> None:
    zero = nn.Parameter(torch.zeros(4, 3))
    named = [("empty.weight", zero)]
    words = ("bound", "'sphere'", "empty.weight", "zero", "override")
    refused(lambda: Fromage(named, direction=direction, bound="sphere"), *words)
    # On the meta device nobody knows yet; a row of zeros follows the rule of zero starts.
    Fromage([nn.Parameter(zero.to("meta"))], direction=direction, bound="sphere")


@pytest.mark.parametrize("shape", [(5,), (1, 4), ()], ids=str)
def test_spectral_without_a_matrix_is_refused(shape: tuple[int, ...]) -> None:
    vectors = [nn.Parameter(torch.ones(shape))]
    refused(lambda: Fromage(vectors, direction="spectral"), "direction", "'spectral'", "'adam'")
    matrix = {"params": [nn.Parameter(torch.ones(2, 2))], "direction": "momentum"}
    refused(lambda: Fromage([matrix, {"params": vectors}], direction="spectral"), "'spectral'")
    Fromage([*vectors, nn.Parameter(torch.ones(2, 2))], direction="spectral")


@pytest.mark.parametrize(
    ("option", "text", "value"),
    [
        ("direction", "spectral", "spectral"),
        ("scale", "row", "row"),
        ("bound", "sphere", "sphere"),
        ("bound", "none", None),
        ("momentum", "0.9", 0.9),
        ("momentum", "none", None),
        ("nesterov", "false", False),
        ("nesterov", "none", None),
        ("beta", "0.95", 0.95),
        ("momentum_dtype", "bfloat16", "bfloat16"),
        ("momentum_dtype", "none", None),
        ("split_dim", "1", 1),
        ("split_sizes", "3", 3),
        ("split_sizes", "none", None),
    ],
)
def test_text_means_the_value(option: str, text: str, value: object) -> None:
    """What --optim_args carries; one option alone says nothing of what it must go with."""
    found = parse_value("fromage", option, text)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize("option", ["directon", "momentums", "split_size", "nestrov", "scales"])
def test_a_slip_is_refused_with_what_was_meant(option: str) -> None:
    refused(lambda: Fromage(weights(torch.float32), **{option: 1}), option, "did you mean")
    refused(lambda: Fromage([{"params": weights(torch.float32), option: 1}]), option)
