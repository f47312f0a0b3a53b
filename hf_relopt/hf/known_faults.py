"""Installed versions, and their known faults."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from hf_relopt.hf.accelerate_faults import FSDP2_FAULTS, numbers
from hf_relopt.hf.launch_mode import Launch

PACKAGES = ("torch", "transformers", "accelerate", "datasets", "deepspeed", "peft", "trl")


@dataclass(frozen=True)
class Fault:
    """One known fault.

    Attributes:
        id: a stable name.
        package: the package that has it.
        status: "present" (act on it), "handled" (hf_relopt avoids it) or "absent" (not with these
            versions and this launch mode).
        what: what goes wrong.
        do: what to do, or what hf_relopt does.
    """

    id: str
    package: str
    status: str
    what: str
    do: str


def installed() -> dict[str, str | None]:
    """Package -> its version, None if it is not installed; "python" comes first."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def known_faults(
    versions: Mapping[str, str | None], launch: Launch, supported: str, accelerator_here: bool
) -> list[Fault]:
    """All known faults, each with whether it matters here.

    Args:
        versions: as from :func:`installed`.
        launch: the launch mode; some faults need several processes.
        supported: the transformers releases that registration knows, as "5.4 to 5.24".
        accelerator_here: this machine has a GPU or the like.
    """
    oldest, newest = (numbers(text) for text in supported.split(" to "))
    transformers, accelerate = numbers(versions["transformers"]), numbers(versions["accelerate"])
    sharded = launch.mode in ("FSDP2", "HSDP")
    return [
        Fault(
            "transformers-untried",
            "transformers",
            _present(not oldest <= transformers <= newest),
            f"--optim fromage and our other names rely on internals of transformers {supported}.",
            "Install one of these releases; if the internals have changed, training stops with a "
            "message.",
        ),
        *(
            Fault(
                fault.id,
                "accelerate",
                _present(sharded and fault.is_in(accelerate, numbers(versions["torch"]))),
                fault.what,
                fault.do,
            )
            for fault in FSDP2_FAULTS
        ),
        Fault(
            "evaluate-before-train",
            "accelerate",
            # Older ones wrap a model in DDP that was evaluated first.
            _present(launch.mode == "DDP" and accelerate >= (1, 14)),
            "evaluate() or predict() before train() disables DDP: each process trains its own "
            "copy.",
            "RelOptTrainer refuses this; in a stock Trainer use eval_on_start=True.",
        ),
        Fault(
            "resume-half-written",
            "transformers",
            "handled",
            "resume_from_checkpoint=True takes the newest checkpoint, even a broken one.",
            "RelOptTrainer takes the last complete one; the stock Trainer does not.",
        ),
        Fault(
            "full-state-dict-needs-a-dimension",
            "torch",
            "handled" if sharded else "absent",
            "Loading full optimizer state needs a state tensor with a dimension (pytorch#192225).",
            "Our optimizers keep one.",
        ),
        Fault(
            "no-sharding-on-a-cpu",
            "accelerate",
            _present(sharded and (launch.use_cpu or not accelerator_here)),
            "On a CPU it does not shard: without a warning, it falls back to DDP, or each process "
            "trains its own copy.",
            "Shard on accelerators only; on a CPU use DDP.",
        ),
    ]


def _present(here: bool) -> str:
    return "present" if here else "absent"
