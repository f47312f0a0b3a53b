"""How much memory does full training take: weights, gradients, optimizer state, and a step?

Each optimizer trains a GPT-2 for three steps in a process of its own, with gradient
checkpointing and one sequence, so that activations are small. What is printed is the peak of the
memory that the process has allocated from the model on (RssAnon; on a GPU torch's own count), also
in bytes per parameter. `inside` steps each weight inside the backward pass (step_in_backward).

    python benchmarks/training_memory.py
    python benchmarks/training_memory.py --device cuda --layers 22 --width 2048 --dtype bfloat16
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from optimizer_spec import build_optimizer, optimizer_spec
from process_memory import status
from run_log import MONTH, RESULTS, RunLog, markdown_table, write_report

WAYS = (
    "adamw",
    "fromage_spectral",
    "fromage_factored",
    "fromage",
    "fromage_spectral inside",
    "fromage_factored inside",
    "fromage inside",
)
# Of `train`, what the record of this script has.
FIGURES = ("parameters", "peak_bytes", "seconds")
MIB = 2**20
STEPS, LENGTH = 3, 128

T = TypeVar("T")


class Peak(threading.Thread):
    """Watches what this process has allocated beyond what it had at first."""

    def __init__(self, first: int) -> None:
        super().__init__(daemon=True)
        self.first, self.largest, self.goes_on = first, 0, True

    def run(self) -> None:
        """Look until told to stop."""
        while self.goes_on:
            self.largest = max(self.largest, allocated() - self.first)
            time.sleep(0.002)

    def stop(self) -> int:
        """End, and say what the most was."""
        self.goes_on = False
        self.join()
        return self.largest


def allocated() -> int:
    """Bytes of memory of its own that this process holds."""
    return status("self")["RssAnon"]


def watched(work: Callable[[], T], device: str, first: int) -> tuple[T, int]:
    """What `work` returns, and the most that is allocated meanwhile; on a CPU beyond `first`."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return work(), torch.cuda.max_memory_allocated()
    peak = Peak(first)
    peak.start()
    return work(), peak.stop()


def train(way: str, layers: int, width: int, device: str, dtype: str) -> dict[str, Any]:
    """Three steps; the peak from the model on, that of the steps alone, and what is held then."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.set_num_threads(1)
    # What the first step of anything loads is not its own.
    small = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=64, n_head=1, use_cache=False)).to(device)
    _steps(small, _optimizer(way, small), device)
    del small
    config = GPT2Config(n_layer=layers, n_embd=width, n_head=width // 64, use_cache=False)

    def make() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        with torch.device(device):
            model = GPT2LMHeadModel(config).to(getattr(torch, dtype))
        model.gradient_checkpointing_enable({"use_reentrant": False})
        return model, _optimizer(way, model)

    first = allocated()
    (model, optimizer), making = watched(make, device, first)
    seconds, steps = watched(lambda: _steps(model, optimizer, device), device, first)
    return {
        "parameters": sum(param.numel() for param in model.parameters()),
        "peak_bytes": max(making, steps),
        "seconds": seconds,
        "steps_peak_bytes": steps,
        "held_bytes": held_bytes(model, optimizer),
    }


def held_bytes(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Bytes of memory that weights and the optimizer's state lie in, each counted once."""
    tensors: list[Any] = list(model.parameters())
    for state in optimizer.state.values():
        tensors += [value for value in state.values() if isinstance(value, torch.Tensor)]
    found: dict[int, int] = {}
    while tensors:
        tensor = tensors.pop()
        if hasattr(tensor, "__tensor_flatten__"):  # made of others, as codes and their scales
            names, _ = tensor.__tensor_flatten__()
            tensors += [getattr(tensor, name) for name in names]
            continue
        storage = tensor.untyped_storage()
        found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())


def _optimizer(way: str, model: torch.nn.Module) -> torch.optim.Optimizer:
    name, _, inside = way.partition(" ")
    if inside:
        name += ("," if ":" in name else ":") + "step_in_backward=true"
    return build_optimizer(optimizer_spec(name), model)


def _steps(model: torch.nn.Module, optimizer: torch.optim.Optimizer, device: str) -> float:
    """The seconds of the last one."""
    model.train()
    began = 0.0
    for step in range(STEPS):
        began = time.perf_counter()
        generator = torch.Generator().manual_seed(step)
        tokens = torch.randint(50257, (1, LENGTH), generator=generator).to(device)
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()
    return time.perf_counter() - began


def arguments(description: str | None, ways: Sequence[str]) -> argparse.ArgumentParser:
    """The options of a script that measures these ways, each in a process of its own."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--way", action="append", help=f"default: {', '.join(ways)}")
    parser.add_argument("--layers", type=int, default=12, help="of GPT-2 (default: 12)")
    parser.add_argument("--width", type=int, default=768, help="of GPT-2 (default: 768)")
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16"], default="float32", help="of the weights"
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="default: cpu")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the record")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser


def child(args: argparse.Namespace) -> dict[str, Any]:
    """What the process that `measure` starts has to print, as JSON."""
    return train(args.child, args.layers, args.width, args.device, args.dtype)


def measure(args: argparse.Namespace, ways: Sequence[str], log: RunLog, script: str) -> None:
    """Run the ways that the log lacks, each in a process of its own."""
    for way in ways:
        key = {"way": way, "layers": args.layers, "width": args.width}
        if args.dtype != "float32":
            key["dtype"] = args.dtype
        if log.finished(key) is not None:
            continue
        size = ["--layers", str(args.layers), "--width", str(args.width), "--device", args.device]
        command = [sys.executable, script, "--child", way, *size, "--dtype", args.dtype]
        # What is freed goes back to the system, or the peak would hang on where holes are left.
        env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=env)
        figures = json.loads(done.stdout.splitlines()[-1])
        log.append(key, figures)
        print(f"{way}: {figures['peak_bytes'] / MIB:,.0f} MiB", flush=True)


def cells(record: dict[str, Any]) -> list[str]:
    """How each row of a table begins: the way, the weights' dtype, and their number."""
    return [
        f"`{record['key']['way']}`",
        record["key"].get("dtype", "float32"),
        f"{record['parameters'] / 1e6:,.0f} million",
    ]


def setting() -> str:
    """What is run, in a sentence."""
    return (
        f"A GPT-2 with gradient checkpointing, {STEPS} steps of one sequence of "
        f"{LENGTH} tokens, each optimizer in a process of its own"
    )


def main() -> None:
    """Read the command line, run what is missing, write the table."""
    args = arguments(__doc__, WAYS).parse_args()
    if args.child:
        figures = child(args)
        print(json.dumps({name: figures[name] for name in FIGURES}))
        return
    name = f"training_memory_{args.device}_{MONTH}"
    log = RunLog(args.out / f"{name}.jsonl")
    measure(args, args.way or WAYS, log, __file__)
    rows = [
        [
            *cells(each),
            f"{each['peak_bytes'] / MIB:,.0f}",
            f"{each['peak_bytes'] / each['parameters']:.2f}",
        ]
        for each in log.records()
    ]
    header = ["optimizer", "weights", "parameters", "peak, MiB", "bytes per parameter"]
    table = markdown_table(header, rows)
    print(table)
    text = (
        f"{setting()}: the peak of what it allocates from the model on, weights and activations "
        "included. `inside`: step_in_backward."
    )
    wheres = [each["where"] for each in log.records()]
    path = args.out / f"{name}.md"
    write_report(path, "Memory of full training", text, table, "Not read yet.", wheres)


if __name__ == "__main__":
    main()
