"""network_distance: the same distance wherever the two networks are, and nothing dropped."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from hf_relopt import ConfigError, Distance, FormatError, network_distance
from hf_relopt.distance.compare import Comparison, opened
from tests.distance.nets import MINILM, by_hand, gpt2, moved


def reasons(distance):
    return {entry.name: entry.reason for entry in distance.apart}


def test_it_is_the_papers_formula_wherever_the_networks_are(tmp_path):
    before = gpt2()
    after = moved(before)
    before.save_pretrained(tmp_path / "a")
    after.save_pretrained(tmp_path / "b", max_shard_size="5KB")
    torch.save(after.state_dict(), tmp_path / "b.pt")
    expected = by_hand(before, after)
    shapes = {name: p.dim() for name, p in before.named_parameters()}
    drt = math.prod(1 + r for name, r in expected.items() if shapes[name] > 1) - 1
    drt_all = math.prod(1 + r for r in expected.values()) - 1
    file = tmp_path / "a" / "model.safetensors"
    for one in (before, before.state_dict(), tmp_path / "a", str(tmp_path / "a"), file):
        for other in (after, after.state_dict(), tmp_path / "b", tmp_path / "b.pt"):
            found = network_distance(one, other)
            updates = {layer.name: layer.relative_update for layer in found.layers}
            assert updates == pytest.approx(expected, rel=1e-6)
            assert found.drt == pytest.approx(drt, rel=1e-6)
            assert found.drt_all == pytest.approx(drt_all, rel=1e-6)
            assert found.log_drt == pytest.approx(math.log1p(drt), rel=1e-6)
            assert found.depth == 10 and found.partial is None
            assert found.largest_lr == pytest.approx(2 ** (1 / 10) - 1)


def test_each_layer_says_what_changed():
    w = torch.randn(20, 10, dtype=torch.float64)
    other = w.clone()
    other[:5] = -w[:5]
    other[5:10] *= 1.5
    layer = network_distance({"w": w}, {"w": other}, norm="both").layers[0]
    a, b = w.numpy(), other.numpy()
    singular = np.linalg.svd(a, compute_uv=False)
    change = np.linalg.svd(b - a, compute_uv=False)
    expected = {
        "norm": np.linalg.norm(a),
        "update_norm": np.linalg.norm(b - a),
        "relative_update": np.linalg.norm(b - a) / np.linalg.norm(a),
        "cosine": (a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b),
        "sign_changes": 0.25,
        "changed": 0.5,
        "spectral_norm": singular[0],
        "spectral_update": change[0] / singular[0],
        "stable_rank": (singular**2).sum() / singular[0] ** 2,
        "update_stable_rank": (change**2).sum() / change[0] ** 2,
    }
    assert {name: getattr(layer, name) for name in expected} == pytest.approx(expected, rel=1e-6)
    assert layer.entries == 200 and layer.is_matrix


def test_operator_norms_are_measured_only_when_asked_for():
    before = gpt2()
    plain = network_distance(before, moved(before))
    assert plain.spectral_drt is None and plain.layers[0].stable_rank is None
    for norm in ("spectral", "both"):
        found = network_distance(before, moved(before), norm=norm)
        assert found.spectral_drt == pytest.approx(
            math.prod(1 + layer.spectral_update for layer in found.matrices) - 1, rel=1e-9
        )
        assert all(layer.spectral_norm is None for layer in found.layers if not layer.is_matrix)


def test_nothing_moved():
    found = network_distance(MINILM, MINILM, norm="both")
    assert found.drt == found.drt_all == found.spectral_drt == 0
    assert all(layer.cosine == pytest.approx(1, abs=1e-12) for layer in found.layers)
    assert all(layer.changed == 0 and layer.update_stable_rank is None for layer in found.layers)


def test_a_tensor_without_a_relative_change_is_listed_apart():
    before = {
        "zero": torch.zeros(2, 2), "w": torch.ones(2, 2), "nan": torch.tensor([math.nan, 1.0]),
        "inf": torch.ones(2), "shape": torch.ones(3), "gone": torch.ones(1),
    }  # fmt: skip
    after = {
        "zero": torch.full((2, 2), 2.0), "w": torch.ones(2, 2), "nan": torch.ones(2),
        "inf": torch.tensor([math.inf, 1.0]), "shape": torch.ones(4), "new": torch.ones(1),
    }  # fmt: skip
    found = network_distance(before, after)
    assert [layer.name for layer in found.layers] == ["w"]
    assert reasons(found) == {
        "zero": "zero before", "nan": "not finite before", "inf": "not finite after",
        "shape": "shape [3], then [4]", "gone": "only before", "new": "only after",
    }  # fmt: skip
    update = next(entry.update_norm for entry in found.apart if entry.name == "zero")
    assert update == pytest.approx(4)


def test_a_tied_weight_that_is_saved_twice_counts_once(tmp_path):
    model = gpt2()
    files = []
    for number, net in enumerate((model, moved(model))):
        state = {name: value.clone() for name, value in net.state_dict().items()}
        files.append(tmp_path / f"{number}.safetensors")
        save_file(state, files[-1])
    twice = network_distance(*files)
    once = network_distance(model, moved(model))
    assert twice.depth == once.depth and twice.drt == pytest.approx(once.drt, rel=1e-9)
    assert "the same numbers" in " ".join(reasons(twice).values())


def test_norm_weights_that_are_equal_are_not_taken_for_tied():
    ones = {f"norm{n}.weight": torch.ones(4) for n in range(3)}
    assert len(network_distance(ones, {name: 2 * w for name, w in ones.items()}).layers) == 3


def test_a_deep_network_does_not_overflow():
    before = {f"{n}.weight": torch.ones(2, 2) for n in range(800)}
    found = network_distance(before, {name: 9 * w for name, w in before.items()})
    assert found.drt == math.inf and found.log_drt == pytest.approx(800 * math.log(9))
    assert found.to_dict()["drt"] is None and "e^1,758" in found.to_markdown(top=1)


def test_it_is_not_symmetric():
    one, other = {"w": torch.ones(2, 2)}, {"w": torch.full((2, 2), 3.0)}
    assert network_distance(one, other).drt == pytest.approx(2)
    assert network_distance(other, one).drt == pytest.approx(2 / 3)


def test_dtypes_may_differ():
    before = gpt2()
    after = moved(before).bfloat16()
    expected = by_hand(before, after)
    found = {x.name: x.relative_update for x in network_distance(before, after).layers}
    assert found == pytest.approx(expected, rel=1e-5)


def test_what_can_be_read_of_a_damaged_checkpoint_is_kept(tmp_path):
    model = gpt2()
    for name, net in (("a", model), ("b", moved(model))):
        net.save_pretrained(tmp_path / name, max_shard_size="5KB")
    whole = network_distance(tmp_path / "a", tmp_path / "b")
    broken = sorted((tmp_path / "b").glob("*.safetensors"))[1]
    broken.write_bytes(broken.read_bytes()[:-50])
    found = network_distance(tmp_path / "a", tmp_path / "b")
    assert broken.name in found.partial and 0 < len(found.layers) < len(whole.layers)
    kept = {layer.name: layer for layer in found.layers}
    assert all(kept.get(layer.name, layer) == layer for layer in whole.layers)
    assert found.to_dict()["partial"] and "**Partial:**" in found.to_markdown()


def test_a_comparison_can_be_stopped_and_resumed():
    model = gpt2()
    comparison = Comparison(*opened(model, moved(model)))

    def stop(done, total, name):
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        comparison.run(stop)
    part = comparison.result(partial="interrupted")
    assert len(part.layers) + sum(e.reason == "zero before" for e in part.apart) == 5
    assert part.partial == "interrupted"
    comparison.run()
    assert comparison.result() == network_distance(model, moved(model))


def test_progress_names_each_weight_once():
    seen = []
    model = gpt2()
    network_distance(model, moved(model), progress=lambda *given: seen.append(given))
    names = [name for name, _ in model.named_parameters()]
    assert seen == [(n, len(names), name) for n, name in enumerate([*names, ""])]


@pytest.mark.parametrize(
    ("before", "after", "options", "error", "words"),
    [
        (gpt2, gpt2, {"norm": "nuclear"}, ConfigError, "norm is 'nuclear'; .* takes frobenius"),
        (gpt2, lambda: 3, {}, ConfigError, "after is a int; network_distance takes a module"),
        (lambda: None, lambda: {"w": torch.ones(1)}, {}, ConfigError, "before is None, but after"),
        (gpt2, lambda: "./nowhere", {}, FormatError, "nowhere does not exist"),
        (gpt2, lambda: nn.Linear(2, 2), {}, ConfigError, "different architectures"),
    ],
)
def test_bad_input(before, after, options, error, words):
    with pytest.raises(error, match=words):
        network_distance(before(), after(), **options)


def test_a_real_model_that_is_rounded_to_bfloat16_moves_by_its_resolution():
    state = load_file(MINILM / "model.safetensors")
    rounded = {name: w.bfloat16() for name, w in state.items() if w.is_floating_point()}
    found = network_distance(MINILM, rounded)
    assert isinstance(found, Distance)
    # Uniform rounding within 2^-9 relative: about 2^-9/sqrt(3) of each entry, .0011 to .0017.
    assert all(1e-3 < layer.relative_update < 2.1e-3 for layer in found.matrices)
    assert all(layer.sign_changes == 0 for layer in found.layers)
