"""Faults of Accelerate releases under FSDP2; all else works from the oldest release on.

A newer Accelerate cannot simply be required: LLaMA-Factory takes 1.11 at most, and axolotl takes
exactly 1.13. Each fault was reproduced with two gloo ranks and torch 2.13.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

Version = tuple[int, int]
_EVER, _NEVER = (0, 0), (10**9, 0)


@dataclass(frozen=True)
class FsdpFault:
    """One fault of a range of releases.

    Attributes:
        id: a stable name.
        since, before: the releases that have it, as major and minor version.
        torch_since: the first torch release that has it.
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
    what="Under FSDP2 with mixed precision it keeps weights in bfloat16 or float16, which all "
    "other releases make float32.",
    do="Load the model in float32 (dtype=torch.float32), use another release, or pass "
    "--optim_args rounding=stochastic if such weights are intended.",
)
TIED = FsdpFault(
    id="no-tied-embeddings",
    since=(1, 14),
    before=(1, 15),
    torch_since=(2, 13),
    what="Under FSDP2, with torch 2.13 or newer, it cannot shard a model with tied embeddings.",
    do="Use accelerate>=1.15.",
)
SHARDED_STATE = FsdpFault(
    id="sharded-state-is-not-loaded",
    since=_EVER,
    before=(1, 13),
    torch_since=_EVER,
    what="When it resumes under FSDP2 with SHARDED_STATE_DICT, it does not load the optimizer "
    "state.",
    do="Use accelerate>=1.13, which reads the same checkpoint, or FULL_STATE_DICT from the start.",
)
FSDP2_FAULTS = (UPCAST, TIED, SHARDED_STATE)


def numbers(text: str | None) -> Version:
    """Major and minor version; very large numbers for a package that is not installed."""
    found = re.match(r"(\d+)\.(\d+)", text or "")
    return (int(found[1]), int(found[2])) if found else _NEVER
