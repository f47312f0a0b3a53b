"""Three ways to run the same rule: one dict, one word in the ``backend`` option."""

from __future__ import annotations

from hf_relopt.backends import compiled, foreach, loop, sums
from hf_relopt.backends.batch import Backend

BACKENDS: dict[str, Backend] = {
    "loop": Backend(local_sums=sums.local_sums, apply=loop.apply),
    "foreach": Backend(local_sums=sums.local_sums, apply=foreach.apply),
    "compiled": Backend(compiled.local_sums, compiled.apply, compiled.step_alone),
}
