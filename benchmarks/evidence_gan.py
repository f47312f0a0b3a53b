"""A class-conditional GAN: two networks that play against each other, at one learning rate.

The generator and the discriminator each have an optimizer of their own, made of the same words. A
rival with `two_rates=true` gives the discriminator four times the generator's rate, as GANs are
trained with Adam.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from clock import Clock
from evidence_experiment import Cell, Experiment, Options, recommended
from frechet import PictureDistance, classifier_distance, inception_distance
from gan_networks import Discriminator, GanSize, Generator
from image_data import DIGITS, Split, kept_pictures
from optimizer_spec import (
    OptimizerSpec,
    build_optimizer,
    optimizer_spec,
    rate_in_use,
    state_bytes_per_weight,
)
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from training import checks, curve, first_not_finite
from transformers import set_seed

GLANCES = 5
EVAL_BATCH = 500
# Pictures are measured of the same latents in every run, whatever its seed.
EVAL_SEED = 1234
# Epochs of the paper: rates fall to a tenth after so many of all.
EPOCHS_BEFORE, EPOCHS = 100, 121
# Of Adam: a GAN has no use for momentum. The discriminator's rate over the generator's: the paper's
# two were 0.0004 and 0.0001.
ADAM = {"betas": (0.0, 0.9), "weight_decay": 0.0}
TWO_RATES, RATIO = "two_rates", 4
# With momentum, pictures were all black after 20 steps of SGD at 0.001, and for good.
_RIVALS = ("sgd:momentum=0.0", "adamw", "adamw:two_rates=true", "fromage", "madam")


@dataclass(frozen=True)
class Scale:
    """What a pass takes.

    Attributes:
        networks: their widths.
        batch: real pictures of a step, and generated ones.
        generated: pictures to measure by.
    """

    networks: GanSize
    batch: int
    generated: int


# With 32 channels the discriminator falls behind under Fromage, which ends at 5.6 and not at 2.2.
SMALL = Scale(GanSize(latents=32, generator=32, discriminator=48), batch=64, generated=2_000)
SCALES = {
    "quick": SMALL,
    "here": SMALL,
    "full": Scale(GanSize(latents=128, generator=256, discriminator=128), 256, 50_000),
}


@dataclass(frozen=True)
class Player:
    """A network with what steps it."""

    network: nn.Module
    optimizer: Optimizer
    scheduler: LambdaLR

    def step(self, loss: Tensor) -> None:
        """Step down this loss."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.scheduler.step()


class Game:
    """Both players, and what is drawn at random.

    Args:
        spec: the optimizer of both.
        data: its pictures tell shapes, classes and the values of pixels.
        scale: see there.
        steps: length of the run.
        seed: of the networks, the latents and their classes. Sets the global seed.
        device: where the networks lie.
    """

    def __init__(
        self, spec: OptimizerSpec, data: Split, scale: Scale, steps: int, seed: int, device: str
    ) -> None:
        set_seed(seed)
        self.latents, self.classes, self.device = scale.networks.latents, data.classes, device
        shape = data.train.shape
        generator = Generator(scale.networks, shape, data.classes, value_range(data))
        discriminator = Discriminator(scale.networks, shape, data.classes)
        plain, other = spec_pair(spec)
        self.generator = _player(generator, plain, steps, device)
        self.discriminator = _player(discriminator, other, steps, device)
        self._random = torch.Generator().manual_seed(seed)

    def step(self, real: Tensor, labels: Tensor) -> Tensor:
        """Step both once; [generator's loss, discriminator's loss]."""
        make, judge = self.generator.network, self.discriminator.network
        judge.requires_grad_(True)
        with torch.no_grad():
            latents, classes = self._draw(len(real), self._random)
            fake = make(latents, classes)
        both = torch.cat([real.to(self.device), fake])
        scores = judge(both, torch.cat([labels.to(self.device), classes]))
        on_real, on_fake = scores.split(len(real))
        judge_loss = (1 - on_real).relu().mean() + (1 + on_fake).relu().mean()
        self.discriminator.step(judge_loss)
        # Its gradients pass through the discriminator, whose weights need none for this.
        judge.requires_grad_(False)
        latents, classes = self._draw(len(real), self._random)
        make_loss = -judge(make(latents, classes), classes).mean()
        self.generator.step(make_loss)
        return torch.stack([make_loss.detach(), judge_loss.detach()])

    @torch.no_grad()
    def pictures(self, count: int) -> Iterator[Tensor]:
        """Generated pictures to measure by, in batches: always of the same latents and classes."""
        random = torch.Generator().manual_seed(EVAL_SEED)
        self.generator.network.eval()
        for begin in range(0, count, EVAL_BATCH):
            yield self.generator.network(*self._draw(min(EVAL_BATCH, count - begin), random))
        self.generator.network.train()

    def is_finite(self) -> bool:
        """Are all weights?"""
        players = (self.generator, self.discriminator)
        weights = [weight for player in players for weight in player.network.parameters()]
        return bool(torch.stack([weight.isfinite().all() for weight in weights]).all())

    def state_bytes_per_weight(self) -> float:
        """Of both optimizers over the weights of both networks."""
        held = weights = 0.0
        for player in (self.generator, self.discriminator):
            own = sum(weight.numel() for weight in player.network.parameters())
            held += own * state_bytes_per_weight(player.optimizer)
            weights += own
        return held / weights

    def _draw(self, count: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
        latents = torch.randn(count, self.latents, generator=random)
        classes = torch.randint(self.classes, (count,), generator=random)
        return latents.to(self.device), classes.to(self.device)


def spec_pair(spec: OptimizerSpec) -> tuple[OptimizerSpec, OptimizerSpec]:
    """The optimizers of the generator and of the discriminator."""
    plain = spec.without(TWO_RATES)
    if not dict(spec.options).get(TWO_RATES):
        return plain, plain
    lr = spec.lr if spec.lr is not None else recommended(spec.name)
    kept = plain.without("lr")
    slow, fast = (
        OptimizerSpec(spec.name, tuple(sorted([*kept.options, ("lr", rate)])))
        for rate in (lr, RATIO * lr)
    )
    return slow, fast


def _player(network: nn.Module, spec: OptimizerSpec, steps: int, device: str) -> Player:
    optimizer = build_optimizer(spec, network.to(device), **ADAM)
    return Player(
        network,
        optimizer,
        LambdaLR(optimizer, lambda step: 1.0 if step * EPOCHS < steps * EPOCHS_BEFORE else 0.1),
    )


def value_range(data: Split) -> tuple[float, float]:
    """The least and the largest value of a pixel, as far as the first batch tells."""
    pictures, _ = next(data.train.in_order())
    return pictures.min().item(), pictures.max().item()


def play(
    cell: Cell, data: Split, scale: Scale, distance: PictureDistance, device: str
) -> dict[str, Any]:
    """Train both networks and measure.

    The run ends where a loss or a weight is no finite number; its distance is NaN then.
    """
    spec = optimizer_spec(cell.optim)
    game = Game(spec, data, scale, cell.steps, cell.seed, device)
    lr = rate_in_use(spec.without(TWO_RATES), game.generator.optimizer)
    looks = {math.ceil(cell.steps * look / GLANCES) for look in range(1, GLANCES + 1)}
    is_checked = checks(device, cell.steps)
    losses, seen = torch.zeros(cell.steps, 2, device=device), []
    diverged_at, clock = None, Clock(device)
    for done, batch in enumerate(data.train.batches(scale.batch, cell.steps, cell.seed), start=1):
        losses[done - 1] = game.step(*batch)
        if is_checked(done):
            diverged_at = first_not_finite(losses[:done])
            if diverged_at is None and not game.is_finite():
                diverged_at = done
            if diverged_at is not None:
                break
        if done in looks:
            with clock.stopped():
                seen.append((done, round(distance(game.pictures(scale.generated)), 4)))
            print(f"{spec} seed {cell.seed} step {done}: Fréchet {seen[-1][1]:.2f}", flush=True)
    made, judged = losses[:diverged_at].cpu().unbind(1)
    return {
        "lr": lr,
        "frechet": seen[-1][1] if diverged_at is None else math.nan,
        "diverged_at": diverged_at,
        "seconds": round(clock.seconds(), 1),
        "state_bytes_per_weight": round(game.state_bytes_per_weight(), 4),
        "glances": seen,
        "generator_curve": curve(made),
        "discriminator_curve": curve(judged),
    }


@cache
def _distance(source: str, side: int, colors: int, inception: bool, device: str) -> PictureDistance:
    data = kept_pictures(source, side, colors)
    if inception:
        return inception_distance(data, value_range(data), device)
    return classifier_distance(data)


def _run(cell: Cell, options: Options) -> dict[str, Any]:
    full = options.size == "full"
    side = 32 if full else 8 if options.data == DIGITS else 28
    source = (options.data, side, 3 if full else 1)
    # Before the seed of the run is set: a classifier may be trained here.
    distance = _distance(*source, full, options.device)
    return play(cell, kept_pictures(*source), SCALES[options.size], distance, options.device)


GAN = Experiment(
    title="A GAN: one learning rate for two networks",
    about="A class-conditional GAN: hinge loss, a projection discriminator with spectral norm, "
    "self-attention in both networks; a step of the discriminator, then one of the generator. Both "
    "have the same optimizer; `two_rates` gives the discriminator four times the rate. AdamW is "
    "Adam here, with betas of 0 and 0.9 and no decay, and SGD has no momentum. Rates fall to a "
    "tenth after 100/121 of the run for everyone, and no gradient is clipped. Small pictures are "
    "measured by the features of a classifier that is trained on them, CIFAR-10 by Inception's. "
    "The paper's claim: FID 34 of SGD, 23.9 of Adam (19 with its own two rates), 16 of Fromage at "
    "one rate for both networks.",
    measure="frechet",
    rising=False,
    digits=2,
    rivals={
        "quick": _RIVALS,
        "here": (*_RIVALS, "adamh", "fromage_spectral"),
        # Not Muon: in the discriminator are no hidden matrices, but convolutions.
        "full": (*_RIVALS, "adamh", "fromage_spectral", "muonh"),
    },
    settings={"quick": ("gan",), "here": ("gan",), "full": ("gan",)},
    steps={"quick": 400, "here": 1_500, "full": 24_000},
    data=DIGITS,
    run=_run,
    full_data="uoft-cs/cifar10",
    near=1.0,
    # Adam's is between the paper's two.
    recommended={"adamw": 2e-4, "sgd": 0.01},
)
