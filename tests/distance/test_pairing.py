"""Which weights belong together: by name, below a prefix, and what stands apart."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModelForSequenceClassification, BertConfig, BertModel

from hf_relopt.distance.files import weights_in
from hf_relopt.distance.pairing import paired
from hf_relopt.distance.weights import of_module, of_state_dict
from hf_relopt.errors import ConfigError
from tests.distance.nets import gpt2


def reasons(pairs):
    return {entry.name: entry.reason for entry in pairs.apart}


def test_a_body_is_found_inside_a_model_with_a_head():
    size = {"vocab_size": 20, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8}
    config = BertConfig(**size, num_hidden_layers=1, max_position_embeddings=8)
    body, whole = BertModel(config), AutoModelForSequenceClassification.from_config(config)
    for before, after in ((body, whole), (whole, body)):
        pairs = paired(of_module(before), of_module(after))
        assert pairs.prefix == "bert."
        assert len(pairs.names) == len(list(body.parameters()))
        assert all(a.removeprefix("bert.") == b.removeprefix("bert.") for a, b in pairs.names)
        assert {n for n in reasons(pairs) if "classifier" in n} == {
            "classifier.weight", "classifier.bias",
        }  # fmt: skip


def test_what_has_no_partner_is_apart_with_its_reason():
    before = of_state_dict({"a": torch.ones(2), "b": torch.ones(2, 3), "n": torch.arange(2)}, "A")
    after = of_state_dict({"a": torch.ones(2), "b": torch.ones(4, 3), "c": torch.ones(1)}, "B")
    pairs = paired(before, after)
    assert pairs.names == [("a", "a")]
    assert reasons(pairs) == {
        "b": "shape [2, 3], then [4, 3]", "c": "only after", "n": "stored as int64",
    }  # fmt: skip


def test_a_weight_that_is_quantized_on_one_side_says_so():
    before = of_state_dict({"a": torch.ones(2), "b": torch.ones(4)}, "A")
    after = of_state_dict({"a": torch.ones(2), "b": torch.ones(4, dtype=torch.uint8)}, "B")
    assert reasons(paired(before, after)) == {"b": "stored as uint8"}


@pytest.mark.parametrize("kept", ["lm_head.weight", "transformer.wte.weight"])
def test_a_tied_weight_is_found_under_any_of_its_names(kept, tmp_path):
    model = gpt2()
    state = model.state_dict()
    dropped = ({"lm_head.weight", "transformer.wte.weight"} - {kept}).pop()
    file = tmp_path / "x.safetensors"
    save_file({n: w.clone() for n, w in state.items() if n != dropped}, file, {dropped: kept})
    for one, other in ((of_module(model), weights_in(file)), (weights_in(file), of_module(model))):
        pairs = paired(one, other)
        assert len(pairs.names) == len(list(model.parameters()))
        assert all(reason.startswith("tied to") for reason in reasons(pairs).values())


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (lambda: nn.Linear(2, 2), "have no weight in common: .* different architectures"),
        (lambda: gpt2(n_embd=24, n_positions=8, vocab_size=40), "networks of different sizes: "),
        (lambda: nn.ReLU(), "have no weight in common: .* of the other none"),
    ],
)
def test_two_architectures_are_refused(other, words):
    with pytest.raises(ConfigError, match=words):
        paired(of_module(gpt2()), of_module(other()))
