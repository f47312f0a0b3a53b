"""What is said of a distance holds, and is said only where it holds."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import load_file

from hf_relopt import network_distance
from hf_relopt.distance.reading import kinds, sentences
from tests.distance.nets import MINILM, gpt2, moved


def test_kinds_share_the_sum_between_them():
    model = gpt2(n_layer=3)
    found = network_distance(model, moved(model))
    by_name = {kind.name: kind for kind in kinds(found)}
    fc = by_name["transformer.h.*.mlp.c_fc.weight"]
    updates = sorted(x.relative_update for x in found.layers if ".c_fc.weight" in x.name)
    assert (fc.count, fc.middle, fc.largest) == (3, updates[1], updates[2])
    shares = [kind.share for kind in kinds(found) if kind.share is not None]
    assert sum(shares) == pytest.approx(1)
    assert by_name["transformer.h.*.ln_1.weight"].share is None
    middles = [kind.middle for kind in kinds(found)]
    assert middles == sorted(middles, reverse=True)


def test_a_rounded_copy_is_recognised():
    state = load_file(MINILM / "model.safetensors")
    rounded = {n: w.bfloat16() for n, w in state.items() if w.is_floating_point()}
    said = sentences(network_distance(MINILM, rounded))
    assert said[0].startswith("It looks like a copy that was rounded to bfloat16")


def test_a_small_training_step_is_not_taken_for_rounding():
    model = gpt2()
    other = copy.deepcopy(model)
    with torch.no_grad():
        for param in other.parameters():
            param.mul_(1.0015)
            param.add_(0.002 * param.std(correction=0) * torch.randn(param.shape))
    assert not any("rounded" in words for words in sentences(network_distance(model, other)))


def test_frozen_layers_and_the_one_that_moved_far_are_named():
    model = gpt2()
    other = moved(model, 1e-4)
    with torch.no_grad():
        other.transformer.wpe.weight.mul_(2)
        for one, before in zip(
            other.transformer.h[1].parameters(), model.transformer.h[1].parameters(), strict=True
        ):
            one.copy_(before)
    said = " ".join(sentences(network_distance(model, other)))
    assert "4 of 10 weight matrices did not move at all." in said
    assert "transformer.wpe.weight moved " in said


def test_low_rank_updates_are_called_that():
    w = torch.randn(64, 64)
    lora = w + 0.1 * torch.randn(64, 2) @ torch.randn(2, 64)
    few = sentences(network_distance({"w": w}, {"w": lora}, norm="both"))
    assert (
        few == [words for words in few if words.startswith("The updates act in few directions")]
        and len(few) == 1
    )
    many = sentences(network_distance({"w": w}, {"w": w + torch.randn(64, 64)}, norm="both"))
    assert many[0].startswith("The updates' stable rank is")


@pytest.mark.parametrize(
    ("after", "words"),
    [
        ({"w": torch.ones(2, 2), "b": torch.ones(2)}, "Nothing moved"),
        ({"w": torch.ones(2, 2), "b": torch.zeros(2)}, "No weight matrix moved"),
    ],
)
def test_what_did_not_move(after, words):
    before = {"w": torch.ones(2, 2), "b": torch.ones(2)}
    assert words in " ".join(sentences(network_distance(before, after)))


def test_without_matrices_nothing_is_said():
    assert sentences(network_distance({"b": torch.ones(2)}, {"b": torch.ones(2)})) == []
