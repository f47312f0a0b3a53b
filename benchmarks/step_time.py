"""Time one optimizer step over GPT-2's parameter shapes (124.4M weights in 148 tensors).

Every round steps every optimizer once, so a busy machine slows all of them alike; the table shows
medians over the rounds and their ratio to torch's fused AdamW of the same dtype. All optimizers
share weights and gradients and keep their own state; state is measured from the real tensors.
Muon steps the 48 matrices only (embeddings and vectors belong to another optimizer there), so its
time stands for 85M weights.

    python benchmarks/step_time.py                        # float32 and bfloat16, this CPU or GPU
    python benchmarks/step_time.py --only 'adamw|compiled' --rounds 31
    python benchmarks/step_time.py --size 1b --dtype bfloat16   # 1.2 billion weights, on a GPU

The host's time is what step() takes to return; on a GPU the step itself goes on.

Let nothing else run on the machine. A dtype whose rows are in the results is measured again and
the newer figures count.
"""

from __future__ import annotations

import argparse
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from optimizer_spec import state_bytes_per_weight
from run_log import MONTH, RESULTS, RunLog, markdown_table, write_report
from torch import nn

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
REFERENCE = "AdamW fused"


@dataclass(frozen=True)
class Size:
    """A GPT-2's dimensions: layers, width, vocabulary, context."""

    layers: int
    width: int
    vocabulary: int
    context: int


SIZES = {
    "gpt2": Size(12, 768, 50257, 1024),
    "1b": Size(22, 2048, 32000, 2048),
    "tiny": Size(2, 32, 97, 16),
}


def parameters(size: Size) -> list[tuple[str, tuple[int, ...]]]:
    """How each parameter of GPT2LMHeadModel starts, and its shape; the tied embedding once."""
    width = size.width
    norm = ("ones", (width,)), ("zeros", (width,))

    def projection(inputs: int, outputs: int) -> list[tuple[str, tuple[int, ...]]]:
        return [("normal", (inputs, outputs)), ("zeros", (outputs,))]

    block = [
        *norm,
        *projection(width, 3 * width),
        *projection(width, width),
        *norm,
        *projection(width, 4 * width),
        *projection(4 * width, width),
    ]
    embeddings = [("normal", (size.vocabulary, width)), ("normal", (size.context, width))]
    return [*embeddings, *block * size.layers, *norm]


def make_weights(size: Size, dtype: torch.dtype, device: str) -> list[nn.Parameter]:
    """Weights as GPT-2 starts (normal of std 0.02, gains 1, biases 0) with random gradients."""
    generator = torch.Generator().manual_seed(0)
    starts = {
        "normal": lambda shape: 0.02 * torch.randn(shape, generator=generator),
        "ones": torch.ones,
        "zeros": torch.zeros,
    }
    weights = []
    for start, shape in parameters(size):
        weight = nn.Parameter(starts[start](shape).to(device=device, dtype=dtype))
        gradient = 1e-3 * torch.randn(shape, generator=generator)
        weight.grad = gradient.to(device=device, dtype=dtype)
        weights.append(weight)
    return weights


def rows(weights: list[nn.Parameter], low_precision: bool) -> dict[str, torch.optim.Optimizer]:
    """Name in the table → optimizer. Rates are small: the weights are shared and must stay sane."""
    from hf_relopt import Fromage, Madam
    from hf_relopt.backends.triton.kernel import serves

    matrices = [weight for weight in weights[2:] if weight.ndim == 2]
    table: dict[str, torch.optim.Optimizer] = {
        REFERENCE: torch.optim.AdamW(weights, lr=1e-6, fused=True),
        "AdamW foreach": torch.optim.AdamW(weights, lr=1e-6, foreach=True),
        "SGD momentum fused": torch.optim.SGD(weights, lr=1e-6, momentum=0.9, fused=True),
        "Muon (matrices only)": torch.optim.Muon(matrices, lr=1e-6),
    }
    device = weights[0].device
    backends = ("loop", "foreach", "compiled", *(["triton"] if serves(device) else []))
    for backend in backends:
        table[f"Fromage {backend}"] = Fromage(weights, lr=1e-4, backend=backend)
    for backend in backends:
        table[f"Fromage {backend}, p_bound"] = Fromage(
            weights, lr=1e-4, p_bound=1.0, backend=backend
        )
    for backend in backends:
        table[f"Madam {backend}"] = Madam(weights, lr=1e-4, backend=backend)
    if low_precision:
        for kind in (Fromage, Madam):
            for backend in backends[1:]:
                table[f"{kind.__name__} {backend}, nearest"] = kind(
                    weights, lr=1e-4, rounding="nearest", backend=backend
                )
    return table


def measure(
    table: dict[str, torch.optim.Optimizer], rounds: int, wait: Callable[[], None]
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Milliseconds of every step, and of its host; all in turn, after two rounds that do not count.

    Returns: times by name, until the step is done and until the call returns.
    """
    times: dict[str, list[float]] = {name: [] for name in table}
    host: dict[str, list[float]] = {name: [] for name in table}
    for number in range(rounds + 2):
        for name, optimizer in table.items():
            wait()
            start = time.perf_counter()
            optimizer.step()
            returned = time.perf_counter()
            wait()
            if number >= 2:
                times[name].append(1e3 * (time.perf_counter() - start))
                host[name].append(1e3 * (returned - start))
        print(f"round {number + 1} of {rounds + 2}", flush=True)
    return times, host


def main() -> None:
    """Read the command line, measure, write JSON lines and the table."""
    args = _arguments().parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    wait = torch.cuda.synchronize if args.device == "cuda" else lambda: None
    log = RunLog(args.out.with_suffix(".jsonl"))
    for dtype in args.dtype:
        weights = make_weights(SIZES[args.size], DTYPES[dtype], args.device)
        table = rows(weights, low_precision=dtype != "float32")
        wanted = {
            name: optimizer
            for name, optimizer in table.items()
            if name == REFERENCE or re.search(args.only, name, re.IGNORECASE)
        }
        print(f"{dtype}: {sum(w.numel() for w in weights):,} weights in {len(weights)} tensors")
        times, host = measure(wanted, args.rounds, wait)
        for name, optimizer in wanted.items():
            key = {"optimizer": name, "dtype": dtype, "size": args.size, "device": args.device}
            figures = {
                "ms": statistics.median(times[name]),
                "fastest_ms": min(times[name]),
                "host_ms": statistics.median(host[name]),
                "ratio": statistics.median(times[name]) / statistics.median(times[REFERENCE]),
                "state_bytes_per_weight": state_bytes_per_weight(optimizer),
                "rounds": args.rounds,
            }
            log.append(key, figures)
        del wanted, table, weights
    _report(args, log)


def _report(args: argparse.Namespace, log: RunLog) -> None:
    newest: dict[tuple[str, str], dict[str, Any]] = {}
    for record in log.records():
        key = record["key"]
        if (key["size"], key["device"]) == (args.size, args.device):
            newest[key["dtype"], key["optimizer"]] = record
    lines = [
        [
            name,
            dtype,
            f"{record['ms']:.1f}",
            f"{record['fastest_ms']:.1f}",
            f"{record['ratio']:.2f}",
            f"{record['host_ms']:.1f}" if "host_ms" in record else "",
            f"{record['state_bytes_per_weight']:.5f}".rstrip("0").rstrip("."),
        ]
        for (dtype, name), record in sorted(
            newest.items(), key=lambda item: item[0][0], reverse=True
        )
    ]
    header = ["optimizer", "dtype", "median, ms", "fastest, ms", "ratio", "host, ms"]
    header.append("state, bytes per weight")
    table = markdown_table(header, lines)
    print(table)
    setting = " ".join((__doc__ or "").split("\n\n")[1].split())
    rounds = sorted({record["rounds"] for record in newest.values()})
    setting += f" Rounds: {', '.join(map(str, rounds))}. Ratios are to {REFERENCE}."
    setting += " bfloat16 rows of ours round stochastically unless they say nearest."
    wheres = [record["where"] for record in newest.values()]
    title = "Time and state of one optimizer step"
    if args.size == "tiny":
        title += " (tiny model: not a measurement)"
    write_report(args.out.with_suffix(".md"), title, setting, table, "Not read yet.", wheres)


def _arguments() -> argparse.ArgumentParser:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--size",
        choices=sorted(SIZES),
        default="gpt2",
        help="default: gpt2 (124M weights); tiny is for tests",
    )
    parser.add_argument(
        "--dtype", nargs="+", choices=sorted(DTYPES), default=list(DTYPES), help="default: both"
    )
    parser.add_argument(
        "--device", choices=["cpu", "cuda"], default=device, help="default: %(default)s"
    )
    parser.add_argument("--rounds", type=int, default=15, help="default: 15")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (default: torch's own)")
    parser.add_argument(
        "--only", default="", metavar="REGEX", help="rows whose name matches; fused AdamW stays"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=RESULTS / f"step_time_{device}_{MONTH}",
        help="results without suffix: .jsonl and .md are written",
    )
    return parser


if __name__ == "__main__":
    main()
