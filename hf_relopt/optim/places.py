"""Where this rank's parts of an optimizer's tensors lie."""

from __future__ import annotations

from torch import Tensor

from hf_relopt.sharding import Place, place_of


class Places:
    """By the parameters' numbers. Each is looked up once: that costs more than a step's sums."""

    def __init__(self) -> None:
        self._known: dict[int, Place | None] = {}

    def of(self, number: int, param: Tensor) -> Place | None:
        """Where this rank's part of ``param`` begins; None if the part is the whole tensor."""
        if number not in self._known:
            self._known[number] = place_of(param)
        return self._known[number]
