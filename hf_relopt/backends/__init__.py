"""Ways to run the same step: one dict, one word in the ``backend`` option."""

from __future__ import annotations

from hf_relopt.backends import compiled, foreach, loop, sums
from hf_relopt.backends.orthogonalize import orthogonalize
from hf_relopt.backends.part import Backend

BACKENDS: dict[str, Backend] = {
    "loop": Backend(sums.sums, loop.update, orthogonalize),
    "foreach": Backend(sums.sums, foreach.update, orthogonalize),
    "compiled": Backend(compiled.sums, compiled.update, orthogonalize, compiled.step_alone),
}
# What "auto" stands for. docs/decisions.md says why it is not "compiled" on a CPU.
AUTO = "foreach"


def backend_of(name: str) -> Backend:
    """The backend that a ``backend`` option names."""
    return BACKENDS[AUTO if name == "auto" else name]
