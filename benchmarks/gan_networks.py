"""Generator and discriminator of a class-conditional GAN: residual blocks and self-attention.

Blocks, conditional batch norm and the projection of classes are those of "cGANs with Projection
Discriminator" (Miyato and Koyama, 2018; arXiv 1802.05637), attention is that of "Self-Attention
Generative Adversarial Networks" (Zhang et al., 2019; arXiv 1805.08318). All layers of the
discriminator have spectral norm. Biases and gains of attention start at zero, as is usual.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm


@dataclass(frozen=True)
class GanSize:
    """Widths of both networks.

    Attributes:
        latents: numbers that a picture is made of.
        generator: channels of the generator.
        discriminator: those of the discriminator.
    """

    latents: int
    generator: int
    discriminator: int


def halvings(side: int) -> int:
    """How often pictures are halved in the discriminator: 8 to 4, 28 to 7, 32 to 4.

    Raises:
        SystemExit: not even once.
    """
    count = 0
    while side > 4 and side % 2 == 0:
        side, count = side // 2, count + 1
    if count == 0:
        raise SystemExit(f"pictures have {side} pixels a side; give an even number above 4")
    return count


_LAYERS = (nn.Conv2d, nn.Linear, nn.Embedding)


def _glorot(layer: nn.Conv2d | nn.Linear | nn.Embedding) -> nn.Module:
    """Glorot's weights, and biases of zero."""
    nn.init.xavier_uniform_(layer.weight)
    if not isinstance(layer, nn.Embedding) and layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def _conv(channels_in: int, channels: int, kernel: int = 3) -> nn.Module:
    return _glorot(nn.Conv2d(channels_in, channels, kernel, padding=kernel // 2))


class ConditionalBatchNorm(nn.Module):
    """Batch norm whose gains and biases are those of a picture's class."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.gains = nn.Embedding(classes, channels)
        self.biases = nn.Embedding(classes, channels)
        nn.init.ones_(self.gains.weight)
        nn.init.zeros_(self.biases.weight)

    def forward(self, inputs: Tensor, labels: Tensor) -> Tensor:
        gains, biases = (table(labels)[:, :, None, None] for table in (self.gains, self.biases))
        return self.norm(inputs) * gains + biases


class SelfAttention(nn.Module):
    """Every place looks at every other; what it sees is added by a gain that starts at zero."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        # Queries and keys are narrower than values, as in the paper.
        self.query, self.key = (_conv(channels, channels // 4, 1) for _ in range(2))
        self.value, self.out = (_conv(channels, channels, 1) for _ in range(2))
        self.gain = nn.Parameter(torch.zeros(1))

    def forward(self, inputs: Tensor) -> Tensor:
        # [pictures, places, channels]
        query, key, value = (
            layer(inputs).flatten(2).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        seen = F.scaled_dot_product_attention(query, key, value, scale=1.0)
        return inputs + self.gain * self.out(seen.transpose(1, 2).reshape(inputs.shape))


class UpBlock(nn.Module):
    """A residual block of the generator, which doubles the side."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(ConditionalBatchNorm(channels, classes) for _ in range(2))
        self.convs = nn.ModuleList(_conv(channels, channels) for _ in range(2))
        self.skip = _conv(channels, channels, 1)

    def forward(self, inputs: Tensor, labels: Tensor) -> Tensor:
        found = _doubled(self.norms[0](inputs, labels).relu())
        found = self.norms[1](self.convs[0](found), labels).relu()
        # A convolution of one pixel is the same before and after, and cheaper before.
        return self.convs[1](found) + _doubled(self.skip(inputs))


def _doubled(inputs: Tensor) -> Tensor:
    return F.interpolate(inputs, scale_factor=2, mode="nearest")


class DownBlock(nn.Module):
    """A residual block of the discriminator, which may halve the side."""

    def __init__(self, channels_in: int, channels: int, halves: bool) -> None:
        super().__init__()
        self.convs = nn.ModuleList([_conv(channels_in, channels), _conv(channels, channels)])
        self.skip = _conv(channels_in, channels, 1) if halves else nn.Identity()
        self.pool = nn.AvgPool2d(2) if halves else nn.Identity()
        # Only the first block widens. Its inputs are pixels, which have both signs by right.
        self.first = nn.ReLU() if channels_in == channels else nn.Identity()

    def forward(self, inputs: Tensor) -> Tensor:
        found = self.convs[1](self.convs[0](self.first(inputs)).relu())
        return self.pool(found) + self.skip(self.pool(inputs))


class Generator(nn.Module):
    """From latents and classes to pictures.

    Args:
        size: widths.
        shape: of a picture, [colors, side, side].
        classes: how many there are.
        values: the least and the largest of a pixel.
    """

    def __init__(
        self, size: GanSize, shape: torch.Size, classes: int, values: tuple[float, float]
    ) -> None:
        super().__init__()
        colors, side, _ = shape
        blocks, channels = halvings(side), size.generator
        self.first = (channels, side >> blocks, side >> blocks)
        self.middle, self.reach = sum(values) / 2, (values[1] - values[0]) / 2
        self.start = _glorot(nn.Linear(size.latents, channels * self.first[1] ** 2))
        self.blocks = nn.ModuleList(UpBlock(channels, classes) for _ in range(blocks))
        self.attention = SelfAttention(channels)
        self.norm = nn.BatchNorm2d(channels)
        self.out = _conv(channels, colors)

    def forward(self, latents: Tensor, labels: Tensor) -> Tensor:
        """[pictures, latents] and [pictures] -> [pictures, colors, side, side]."""
        found = self.start(latents).unflatten(1, self.first)
        for block in self.blocks[:-1]:
            found = block(found, labels)
        # At half the side: at the whole one it takes sixteen times as long.
        found = self.blocks[-1](self.attention(found), labels)
        return self.middle + self.reach * self.out(self.norm(found).relu()).tanh()


class Discriminator(nn.Module):
    """From pictures and classes to a score, above 0 for what looks real.

    Args:
        size: widths.
        shape: of a picture, [colors, side, side].
        classes: how many there are.
    """

    def __init__(self, size: GanSize, shape: torch.Size, classes: int) -> None:
        super().__init__()
        colors, side, _ = shape
        channels = size.discriminator
        self.first = DownBlock(colors, channels, halves=True)
        self.attention = SelfAttention(channels)
        more = [DownBlock(channels, channels, halves=True) for _ in range(halvings(side) - 1)]
        self.blocks = nn.Sequential(*more, DownBlock(channels, channels, halves=False))
        self.score = _glorot(nn.Linear(channels, 1))
        self.classes = _glorot(nn.Embedding(classes, channels))
        for layer in [layer for layer in self.modules() if isinstance(layer, _LAYERS)]:
            spectral_norm(layer)

    def forward(self, pictures: Tensor, labels: Tensor) -> Tensor:
        """[pictures, colors, side, side] and [pictures] -> [pictures]."""
        found = self.blocks(self.attention(self.first(pictures))).relu().sum((2, 3))
        return self.score(found).squeeze(1) + (self.classes(labels) * found).sum(1)
