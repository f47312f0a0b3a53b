"""Converting a model: which weights are stored in codes, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hf_relopt.errors import ConfigError
from hf_relopt.lns.tensor import LNSTensor
from hf_relopt.nn.compression import convert, convert_shapes, restore
from hf_relopt.optim.create import plan
from hf_relopt.optim.footprint import footprint
from tests.hf.tiny import gpt2

MATRICES = [f"transformer.h.0.{name}.weight" for name in (
    "attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"
)]  # fmt: skip
TABLES = ["transformer.wte.weight", "transformer.wpe.weight"]


def in_codes(model: nn.Module) -> list[str]:
    return [name for name, param in model.named_parameters() if isinstance(param, LNSTensor)]


def test_matrices_and_embeddings_are_converted_and_stay_tied():
    model = gpt2()
    model.transformer.wte.weight.is_special = True
    assert convert(model, "lns12") == TABLES + MATRICES == in_codes(model)
    assert model.lm_head.weight is model.transformer.wte.weight
    assert model.transformer.wte.weight.is_special
    assert convert(model, "lns12") == TABLES + MATRICES  # they are there already
    with pytest.raises(ConfigError, match="is stored in lns12 already"):
        convert(model, "lns8")
    assert restore(model) == TABLES + MATRICES and not in_codes(model)
    assert model.lm_head.weight is model.transformer.wte.weight
    assert type(model.transformer.wte.weight) is nn.Parameter
    assert model.transformer.wte.weight.is_special


@pytest.mark.parametrize("skip", ["embedding", ["*.wte.weight", "transformer.wpe.*"]])
def test_roles_and_names_can_be_skipped(skip):
    model = gpt2()
    assert convert(model, "lns8", skip) == MATRICES


def test_frozen_weights_stay_frozen():
    model = gpt2()
    model.transformer.wpe.weight.requires_grad_(False)
    convert(model)
    assert not model.transformer.wpe.weight.requires_grad
    restore(model)
    assert not model.transformer.wpe.weight.requires_grad


def test_weights_of_zeros_stay_numbers():
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    nn.init.zeros_(model[1].weight)
    assert convert(model) == ["0.weight"]


def test_bad_input_changes_nothing():
    model = gpt2()
    for message, call in (
        ("no weight's name and no role", lambda: convert(model, skip=["lm_heat.*"])),
        ("format is 'lns9'.*Did you mean", lambda: convert(model, "lns9")),
        (r"skip is \[3\]", lambda: convert(model, skip=[3])),
        ("no weight to store", lambda: convert(model, skip=["embedding", "matrix"])),
    ):
        with pytest.raises(ConfigError, match=message):
            call()
    with torch.no_grad():
        model.transformer.h[0].mlp.c_proj.weight[1, 1] = float("nan")
    with pytest.raises(
        ConfigError, match=r"^transformer\.h\.0\.mlp\.c_proj\.weight: .* NaN or infinite"
    ):
        convert(model)
    assert not in_codes(model)
    with pytest.raises(ConfigError, match="has no values here"):
        convert(nn.Linear(3, 3, device="meta"))
    with pytest.raises(ConfigError, match="no weight to store"):
        convert(nn.LayerNorm(4))


def test_shapes_alone_have_a_plan_and_bytes():
    with torch.device("meta"):
        model = gpt2()
    convert_shapes(model, "lns8")
    chosen = plan(model, "integer_madam", 0.01)
    assert "integer_madam, lns8" in str(chosen)
    taken = footprint(model.parameters(), chosen, itemsize=4)
    real = gpt2()
    convert(real, "lns8")
    held = [
        each
        for p in real.parameters()
        for each in (getattr(p, "packed", p), getattr(p, "scale", None))
    ]
    assert taken.weights == sum(tensor.nbytes for tensor in held if tensor is not None)
