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
from pathlib import Path
from typing import Any

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
MIB = 2**20
STEPS, LENGTH = 3, 128


class Peak(threading.Thread):
    """Watches what this process has allocated."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.first, self.largest, self.goes_on = allocated(), 0, True

    def run(self) -> None:
        """Look until told to stop."""
        while self.goes_on:
            self.largest = max(self.largest, allocated() - self.first)
            time.sleep(0.002)


def allocated() -> int:
    """Bytes of memory of its own that this process holds."""
    return status("self")["RssAnon"]


def train(way: str, layers: int, width: int, device: str, dtype: str) -> dict[str, Any]:
    """Three steps; the peak from the model on."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.set_num_threads(1)
    # What the first step of anything loads is not its own.
    small = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=64, n_head=1, use_cache=False)).to(device)
    _steps(small, _optimizer(way, small), device)
    del small
    on_gpu = device == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    peak = Peak()
    peak.start()
    config = GPT2Config(n_layer=layers, n_embd=width, n_head=width // 64, use_cache=False)
    with torch.device(device):
        model = GPT2LMHeadModel(config).to(getattr(torch, dtype))
    model.gradient_checkpointing_enable({"use_reentrant": False})
    seconds = _steps(model, _optimizer(way, model), device)
    peak.goes_on = False
    peak.join()
    largest = torch.cuda.max_memory_allocated() if on_gpu else peak.largest
    parameters = sum(param.numel() for param in model.parameters())
    return {"parameters": parameters, "peak_bytes": largest, "seconds": seconds}


def _optimizer(way: str, model: torch.nn.Module) -> torch.optim.Optimizer:
    name, _, inside = way.partition(" ")
    return build_optimizer(
        optimizer_spec(f"{name}:step_in_backward=true" if inside else name), model
    )


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


def main() -> None:
    """Read the command line, run what is missing, write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--way", action="append", help=f"default: {', '.join(WAYS)}")
    parser.add_argument("--layers", type=int, default=12, help="of GPT-2 (default: 12)")
    parser.add_argument("--width", type=int, default=768, help="of GPT-2 (default: 768)")
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16"], default="float32", help="of the weights"
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="default: cpu")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the record")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(train(args.child, args.layers, args.width, args.device, args.dtype)))
        return
    name = f"training_memory_{args.device}_{MONTH}"
    log = RunLog(args.out / f"{name}.jsonl")
    for way in args.way or WAYS:
        key = {"way": way, "layers": args.layers, "width": args.width}
        if args.dtype != "float32":
            key["dtype"] = args.dtype
        if log.finished(key) is not None:
            continue
        size = ["--layers", str(args.layers), "--width", str(args.width), "--device", args.device]
        command = [sys.executable, __file__, "--child", way, *size, "--dtype", args.dtype]
        # What is freed goes back to the system, or the peak would hang on where holes are left.
        env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=env)
        figures = json.loads(done.stdout.splitlines()[-1])
        log.append(key, figures)
        print(f"{way}: {figures['peak_bytes'] / MIB:,.0f} MiB", flush=True)
    rows = [
        (
            f"`{each['key']['way']}`",
            each["key"].get("dtype", "float32"),
            f"{each['parameters'] / 1e6:,.0f} million",
            f"{each['peak_bytes'] / MIB:,.0f}",
            f"{each['peak_bytes'] / each['parameters']:.2f}",
        )
        for each in log.records()
    ]
    header = ["optimizer", "weights", "parameters", "peak, MiB", "bytes per parameter"]
    table = markdown_table(header, rows)
    print(table)
    setting = (
        f"A GPT-2 with gradient checkpointing, {STEPS} steps of one sequence of "
        f"{LENGTH} tokens, each optimizer in a process of its own: the peak of what it allocates "
        "from the model on, weights and activations included. `inside`: step_in_backward."
    )
    wheres = [each["where"] for each in log.records()]
    path = args.out / f"{name}.md"
    write_report(path, "Memory of full training", setting, table, "Not read yet.", wheres)


if __name__ == "__main__":
    main()
