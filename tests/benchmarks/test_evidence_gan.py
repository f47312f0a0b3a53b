"""evidence_gan.py plays two networks against each other, by seed, and records who diverges."""

from __future__ import annotations

import math

import pytest
import torch


@pytest.fixture
def gan(load, monkeypatch: pytest.MonkeyPatch):
    """The experiment at a tiny scale."""
    script = load("evidence_gan")
    monkeypatch.setattr(load("frechet"), "CLASSIFIER_STEPS", 20)
    tiny = script.Scale(load("gan_networks").GanSize(4, 8, 8), batch=8, generated=20)
    monkeypatch.setattr(script, "SCALES", {"quick": tiny, "full": tiny})
    # Another classifier than that of a real run.
    script._distance.cache_clear()
    yield script
    script._distance.cache_clear()


def play(load, gan, optim: str, steps: int = 2, seed: int = 0) -> dict:
    experiment = load("evidence_experiment")
    cell = experiment.Cell("gan", optim, steps, seed)
    return gan.GAN.run(cell, experiment.Options("quick", "digits"))


@pytest.mark.parametrize(
    ("optim", "lr", "state"),
    [
        ("fromage:lr=0.01", 0.01, (0, 0.2)),
        ("madam:lr=0.01", 0.01, (4, 4.2)),
        ("adamw:lr=0.001", 0.001, (8, 8.2)),
        ("adamw:lr=0.001,two_rates=true", 0.001, (8, 8.2)),
    ],
)
def test_both_networks_train(load, gan, optim: str, lr: float, state: tuple[float, float]) -> None:
    found = play(load, gan, optim)
    assert found["lr"] == lr and found["diverged_at"] is None
    assert [step for step, _ in found["glances"]] == [1, 2]
    assert found["frechet"] == found["glances"][-1][1] > 0
    assert state[0] <= found["state_bytes_per_weight"] < state[1]
    for curve in ("generator_curve", "discriminator_curve"):
        assert len(found[curve]) == 2 and all(map(math.isfinite, found[curve]))


def test_a_run_follows_its_seed_alone(load, gan) -> None:
    first = play(load, gan, "fromage:lr=0.01")
    torch.manual_seed(7)
    again, other = play(load, gan, "fromage:lr=0.01"), play(load, gan, "fromage:lr=0.01", seed=1)
    for name in ("frechet", "glances", "generator_curve", "discriminator_curve"):
        assert first[name] == again[name] != other[name]


def test_a_run_that_diverges_ends_and_is_the_worst(load, gan) -> None:
    found = play(load, gan, "sgd:lr=1e38", steps=20)
    assert 1 <= found["diverged_at"] < 20 and math.isnan(found["frechet"])
    # Its curve and its glances end with it.
    assert len(found["discriminator_curve"]) == found["diverged_at"]
    assert all(step < found["diverged_at"] for step, _ in found["glances"])
    assert load("evidence_experiment").value_of(found, gan.GAN) == math.inf


def test_two_rates_are_four_to_one_and_fall_together(load, gan) -> None:
    spec = load("optimizer_spec").optimizer_spec
    data = load("image_data").read_pictures("digits", 8, 1)
    word = spec("adamw:lr=0.001,two_rates=true")
    game = gan.Game(word, data, gan.SCALES["quick"], 12, 0, "cpu")
    batch, rates = next(data.train.batches(8, 1, 0)), []
    for _ in range(12):
        rates.append(
            [p.optimizer.param_groups[0]["lr"] for p in (game.generator, game.discriminator)]
        )
        game.step(*batch)
    # 100/121 of 12 steps are 9.9.
    assert rates[:10] == [[0.001, 0.004]] * 10
    assert rates[10:] == [pytest.approx([0.0001, 0.0004])] * 2
    group = game.discriminator.optimizer.param_groups[0]
    assert group["betas"] == (0.0, 0.9) and group["weight_decay"] == 0
    # Without a rate: torch's own, of which a user of Adam begins.
    slow, fast = gan.spec_pair(spec("adamw:two_rates=true"))
    assert (slow.lr, fast.lr) == (0.001, 0.004)
    assert gan.spec_pair(spec("fromage")) == (spec("fromage"), spec("fromage"))


def test_measuring_leaves_the_game_as_it_was(load, gan) -> None:
    data = load("image_data").read_pictures("digits", 8, 1)
    spec = load("optimizer_spec").optimizer_spec("fromage:lr=0.01")
    batches, losses = list(data.train.batches(8, 2, 0)), []
    for looks in (0, 1):
        game = gan.Game(spec, data, gan.SCALES["quick"], 2, 0, "cpu")
        game.step(*batches[0])
        for _ in range(looks):
            shown = [pictures for pictures in game.pictures(600)]
            assert [len(pictures) for pictures in shown] == [500, 100]
        losses.append(game.step(*batches[1]))
    low, high = gan.value_range(data)
    assert low <= min(map(torch.min, shown)) and max(map(torch.max, shown)) <= high + 1e-6
    assert torch.equal(*losses)


@pytest.mark.parametrize(("side", "colors"), [(8, 1), (28, 1), (32, 3)])
def test_pictures_of_every_size_fit(load, side: int, colors: int) -> None:
    networks = load("gan_networks")
    size, shape = networks.GanSize(4, 8, 16), torch.Size([colors, side, side])
    generator = networks.Generator(size, shape, 3, (-1.0, 2.0))
    labels = torch.tensor([0, 1, 2])
    pictures = generator(torch.randn(3, 4), labels)
    assert pictures.shape == (3, *shape)
    assert networks.Discriminator(size, shape, 3)(pictures, labels).shape == (3,)
    assert networks.halvings(side) == {8: 1, 28: 2, 32: 3}[side]


def test_an_odd_side_is_refused(load) -> None:
    with pytest.raises(SystemExit, match="7 pixels a side"):
        load("gan_networks").halvings(7)


def test_the_discriminator_has_spectral_norm_and_biases_start_at_zero(load) -> None:
    networks = load("gan_networks")
    size, shape = networks.GanSize(4, 8, 8), torch.Size([1, 8, 8])
    judge = networks.Discriminator(size, shape, 3)
    for network in (networks.Generator(size, shape, 3, (-1, 1)), judge):
        kinds = (torch.nn.Conv2d, torch.nn.Linear)
        layers = [layer for layer in network.modules() if isinstance(layer, kinds)]
        assert len(layers) > 5 and not any(layer.bias.any() for layer in layers)
        assert not network.attention.gain.any()
    for layer in [*layers, judge.classes]:
        norm = torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2).item()
        assert norm == pytest.approx(1, rel=0.1)


def test_no_zero_is_a_trap_under_fromage(load, gan) -> None:
    data = load("image_data").read_pictures("digits", 8, 1)
    spec = load("optimizer_spec").optimizer_spec("fromage:lr=0.01")
    game = gan.Game(spec, data, gan.SCALES["quick"], 2, 0, "cpu")
    game.step(*next(data.train.batches(8, 1, 0)))
    for player in (game.generator, game.discriminator):
        assert player.network.attention.gain.item() != 0
    assert game.generator.network.blocks[0].norms[0].biases.weight.any()


def test_full_size_asks_for_inception(load, gan, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def inception(data, values: tuple[float, float], device: str):
        seen.append((data.train.shape, values, device))
        return lambda batches: float(len(torch.cat(list(batches))))

    monkeypatch.setattr(gan, "inception_distance", inception)
    experiment = load("evidence_experiment")
    cell = experiment.Cell("gan", "fromage:lr=0.01", 1, 0)
    found = gan.GAN.run(cell, experiment.Options("full", "digits"))
    assert found["frechet"] == 20
    ((shape, (low, high), device),) = seen
    assert shape == (3, 32, 32) and low < 0 < high and device == "cpu"


def test_each_pass_has_rivals_with_rates(load) -> None:
    gan, experiment = load("evidence_gan"), load("evidence_experiment")
    for size in experiment.PASSES:
        cells = gan.GAN.cells(size, [0])
        rivals = gan.GAN.rivals[size]
        assert len(cells) == len(rivals) * len(experiment.POWERS[size])
        assert {experiment.without_rate(cell.optim) for cell in cells} == set(rivals)
    assert gan.SCALES["full"].batch == 256


def test_every_rival_steps_both_networks(load, gan) -> None:
    data = load("image_data").read_pictures("digits", 8, 1)
    batch = next(data.train.batches(8, 1, 0))
    for rival in {*gan.GAN.rivals["here"], *gan.GAN.rivals["full"]}:
        spec = gan.GAN.with_rate(rival, -1.0)
        game = gan.Game(spec, data, gan.SCALES["quick"], 2, 0, "cpu")
        game.step(*batch)
        assert game.is_finite(), rival
