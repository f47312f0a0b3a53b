"""Time one optimizer step under FSDP2 and under DDP: GPT-2's parameter shapes, gloo ranks on a CPU.

Every round steps every optimizer once in both layouts, each after a barrier; a time is that of the
slowest rank, and the table shows medians over the rounds. Under DDP each rank steps all 124.4M
weights (their gradients have been averaged before); under FSDP2 each rank steps its rows of every
tensor. Nothing but the optimizer's step is timed. The other optimizers are torch's.

    torchrun --standalone --nproc_per_node 2 benchmarks/sharded_step.py

Let nothing else run on the machine; each rank takes one thread.
"""

from __future__ import annotations

import argparse
import re
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from ranks import leave
from run_log import MONTH, RESULTS, RunLog, markdown_table, write_report
from step_time import SIZES, make_weights
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

REFERENCE = "AdamW fused"
Table = dict[str, torch.optim.Optimizer]


def sharded(weights: Sequence[nn.Parameter]) -> list[nn.Parameter]:
    """The same weights and gradients, cut by rows over all ranks as FSDP2 cuts them."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    cut = []
    for weight in weights:
        part = nn.Parameter(distribute_tensor(weight.detach(), mesh, [Shard(0)]))
        assert weight.grad is not None
        part.grad = distribute_tensor(weight.grad, mesh, [Shard(0)])
        cut.append(part)
    return cut


def rows(weights: list[nn.Parameter]) -> Table:
    """Name in the table -> optimizer."""
    from hf_relopt import Fromage, Madam

    table: Table = {
        REFERENCE: torch.optim.AdamW(weights, lr=1e-6, fused=True),
        "AdamW foreach": torch.optim.AdamW(weights, lr=1e-6, foreach=True),
    }
    for kind in (Fromage, Madam):
        for backend in ("foreach", "compiled"):
            table[f"{kind.__name__} {backend}"] = kind(weights, lr=1e-4, backend=backend)
    table["Fromage compiled, p_bound"] = Fromage(weights, lr=1e-4, p_bound=1.0, backend="compiled")
    return table


def measure(tables: dict[str, Table], rounds: int) -> dict[tuple[str, str], list[float]]:
    """Milliseconds of every step on the slowest rank; two rounds before are not counted."""
    times: dict[tuple[str, str], list[float]] = {}
    for number in range(rounds + 2):
        for layout, table in tables.items():
            for name, optimizer in table.items():
                dist.barrier()
                start = time.perf_counter()
                optimizer.step()
                took = torch.tensor(1e3 * (time.perf_counter() - start))
                dist.all_reduce(took, op=dist.ReduceOp.MAX)
                if number >= 2:
                    times.setdefault((layout, name), []).append(took.item())
        if dist.get_rank() == 0:
            print(f"round {number + 1} of {rounds + 2}", flush=True)
    return times


def main() -> None:
    """Read the command line, measure, write JSON lines and the table."""
    args = _arguments().parse_args()
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    weights = make_weights(SIZES[args.size], torch.float32, "cpu")
    tables = {
        layout: {name: o for name, o in rows(params).items() if _wanted(name, args.only)}
        for layout, params in (("DDP", weights), ("FSDP2", sharded(weights)))
    }
    times = measure(tables, args.rounds)
    if dist.get_rank() == 0:
        log = RunLog(args.out.with_suffix(".jsonl"))
        for (layout, name), each in times.items():
            key = {"optimizer": name, "layout": layout, "size": args.size}
            key["ranks"] = dist.get_world_size()
            log.append(key, {"ms": statistics.median(each), "rounds": args.rounds})
        _report(args, log)
    leave()


def _wanted(name: str, only: str) -> bool:
    return name == REFERENCE or bool(re.search(only, name, re.IGNORECASE))


def _report(args: argparse.Namespace, log: RunLog) -> None:
    newest: dict[tuple[str, str], dict[str, Any]] = {}
    for record in log.records():
        key = record["key"]
        if (key["size"], key["ranks"]) == (args.size, dist.get_world_size()):
            newest[key["layout"], key["optimizer"]] = record
    names = dict.fromkeys(name for _, name in newest)
    lines = []
    for name in names:
        ddp, fsdp2 = (newest[layout, name]["ms"] for layout in ("DDP", "FSDP2"))
        reference = [newest[layout, REFERENCE]["ms"] for layout in ("DDP", "FSDP2")]
        figures = (ddp, fsdp2, fsdp2 / ddp, ddp / reference[0], fsdp2 / reference[1])
        lines.append([name, *(f"{v:.1f}" for v in figures[:2]), *(f"{v:.2f}" for v in figures[2:])])
    header = ["optimizer", "DDP, ms", "FSDP2, ms", "FSDP2 / DDP"]
    header += [f"DDP / {REFERENCE}", f"FSDP2 / {REFERENCE}"]
    table = markdown_table(header, lines)
    print(table)
    setting = " ".join((__doc__ or "").split("\n\n")[1].split())
    setting += f" Ranks: {dist.get_world_size()}. Rounds: {args.rounds}."
    wheres = [record["where"] for record in newest.values()]
    title = "One optimizer step under FSDP2 and DDP"
    if args.size != "gpt2":
        title += f" ({args.size} model: not a measurement)"
    write_report(args.out.with_suffix(".md"), title, setting, table, "Not read yet.", wheres)


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--size", choices=sorted(SIZES), default="gpt2", help="default: gpt2; tiny is for tests"
    )
    parser.add_argument("--rounds", type=int, default=9, help="default: 9")
    parser.add_argument(
        "--only", default="", metavar="REGEX", help="rows whose name matches; fused AdamW stays"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=RESULTS / f"sharded_step_cpu_{MONTH}",
        help="results without suffix: .jsonl and .md are written",
    )
    return parser


if __name__ == "__main__":
    main()
