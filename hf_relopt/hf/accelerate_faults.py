"""What releases of Accelerate do wrong under FSDP2; all else works from the oldest on.

LLaMA-Factory takes 1.11 at most and axolotl 1.13 exactly: a newer one cannot simply be asked for.
Each fault was seen with two gloo ranks and torch 2.13.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

Version = tuple[int, int]
_EVER, _NEVER = (0, 0), (10**9, 0)

# The oldest Accelerate that the tests pass with; pyproject.toml asks for it.
OLDEST: Version = (1, 11)


@dataclass(frozen=True)
class FsdpFault:
    """One fault of a range of releases.

    Attributes:
        id: a stable name.
        since, before: the releases that have it, as major and minor version.
        torch_since: and the torch releases.
        what: what goes wrong.
        do: what to do.
    """

    id: str
    since: Version
    before: Version
    torch_since: Version
    what: str
    do: str

    def is_in(self, accelerate: Version, torch: Version) -> bool:
        """Say whether releases have it."""
        return self.since <= accelerate < self.before and torch >= self.torch_since


UPCAST = FsdpFault(
    id="no-float32-upcast",
    since=(1, 13),
    before=(1, 14),
    torch_since=_EVER,
    what="Under FSDP2 and mixed precision it leaves weights in bfloat16 or float16 that all other "
    "releases make float32.",
    do="Load the model in float32 (dtype=torch.float32), use another release, or say that such "
    "weights are meant: --optim_args rounding=stochastic.",
)
TIED = FsdpFault(
    id="no-tied-embeddings",
    since=(1, 14),
    before=(1, 15),
    torch_since=(2, 13),
    what="Under FSDP2 it cannot shard a model whose embeddings are tied with torch 2.13 or newer.",
    do="Use accelerate>=1.15.",
)
SHARDED_STATE = FsdpFault(
    id="sharded-state-is-not-loaded",
    since=_EVER,
    before=(1, 13),
    torch_since=_EVER,
    what="Resuming under FSDP2 with SHARDED_STATE_DICT, it leaves the optimizer's state out.",
    do="Use accelerate>=1.13, which reads the same checkpoint, or FULL_STATE_DICT from the start.",
)
FSDP2_FAULTS = (UPCAST, TIED, SHARDED_STATE)


def numbers(text: str | None) -> Version:
    """Major and minor version; those of a package that is not installed are far in the future."""
    found = re.match(r"(\d+)\.(\d+)", text or "")
    return (int(found[1]), int(found[2])) if found else _NEVER
