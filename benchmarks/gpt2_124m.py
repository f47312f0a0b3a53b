"""Train GPT-2 124M from scratch for a few steps: one process, and ranks under DDP and FSDP2.

GPT-2 of real size (12 layers, width 768, vocabulary 50,257: 124.4M weights), no dropout, on the
text of Python's standard library as bytes, 32 steps of 4 x 64 tokens, linear decay. The layouts
see the same batches: what is compared is whether they train alike, not how well.

    python benchmarks/gpt2_124m.py --layout single --optim fromage:lr=.003
    torchrun --standalone --nproc_per_node 2 benchmarks/gpt2_124m.py --layout fsdp2 \\
        --optim fromage:lr=.003

Finished runs are not repeated. Each process takes one thread unless --threads says more.
"""

from __future__ import annotations

import argparse
import sysconfig
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from optimizer_spec import NAMES, OptimizerSpec, build_optimizer, linear_to_zero, optimizer_spec
from ranks import leave
from run_log import MONTH, RESULTS, RunLog, markdown_table, write_report
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, set_seed

BATCH = 4
CONTEXT = 64
BYTES = 2**22
SIZES = {"gpt2": (12, 768, 12, 50257), "tiny": (2, 32, 2, 257)}


def corpus() -> torch.Tensor:
    """The first 4 MB of the standard library's modules, in the order of their names."""
    parts: list[bytes] = []
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        parts.append(path.read_bytes())
        if sum(map(len, parts)) >= BYTES:
            break
    return torch.frombuffer(bytearray(b"".join(parts)[:BYTES]), dtype=torch.uint8).long()


def make_model(size: str) -> GPT2LMHeadModel:
    """GPT-2 as Transformers initialises it, the same in every process."""
    layers, width, heads, vocabulary = SIZES[size]
    set_seed(0)
    config = GPT2Config(
        vocab_size=vocabulary,
        n_layer=layers,
        n_embd=width,
        n_head=heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        use_cache=False,
    )
    return GPT2LMHeadModel(config)


def spread(model: GPT2LMHeadModel, layout: str) -> nn.Module:
    """The model as the layout wants it."""
    if layout == "ddp":
        return nn.parallel.DistributedDataParallel(model)
    if layout == "fsdp2":
        from torch.distributed.fsdp import fully_shard

        for block in model.transformer.h:
            fully_shard(block)
        fully_shard(model)
    return model


def train(spec: OptimizerSpec, layout: str, size: str, steps: int) -> dict[str, Any]:
    """Train once; return the losses of the whole batches, seconds per step, and final norms."""
    ranks = dist.get_world_size() if layout != "single" else 1
    rank = dist.get_rank() if layout != "single" else 0
    text = corpus()
    model = spread(make_model(size), layout)
    optimizer = build_optimizer(spec, model, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, linear_to_zero(steps))
    generator = torch.Generator().manual_seed(0)
    losses, seconds = [], []
    for step in range(steps):
        begin = time.perf_counter()
        starts = torch.randint(len(text) - CONTEXT, (BATCH, 1), generator=generator)
        tokens = text[starts + torch.arange(CONTEXT)][rank::ranks]
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        total = loss.detach()
        if ranks > 1:
            dist.all_reduce(total)
        losses.append(round(total.item() / ranks, 6))
        seconds.append(time.perf_counter() - begin)
        if rank == 0 and (step + 1) % max(1, steps // 8) == 0:
            done = f"{layout} {spec} step {step + 1}/{steps}"
            print(f"{done}: loss {losses[-1]:.4f}, {seconds[-1]:.1f} s", flush=True)
    middle = sorted(seconds)[len(seconds) // 2]
    return {"losses": losses, "step_seconds": round(middle, 3), "ranks": ranks}


def main() -> None:
    """Read the command line, do the run unless it is there, write table and plot."""
    args = _arguments().parse_args()
    torch.set_num_threads(args.threads)
    if args.layout != "single":
        dist.init_process_group("gloo")
    first = args.layout == "single" or dist.get_rank() == 0
    log = RunLog(args.out.with_suffix(".jsonl"))
    key = {"optim": str(args.optim), "layout": args.layout, "size": args.size, "steps": args.steps}
    known = log.finished(key) is not None
    if args.layout != "single":
        dist.barrier()
    if not known:
        figures = train(args.optim, args.layout, args.size, args.steps)
        if first:
            log.append(key, figures)
    if first:
        _report(args, log)
    if args.layout != "single":
        leave()


def _report(args: argparse.Namespace, log: RunLog) -> None:
    records = [
        record
        for record in log.records()
        if (record["key"]["size"], record["key"]["steps"]) == (args.size, args.steps)
    ]
    single = {
        record["key"]["optim"]: record["losses"]
        for record in records
        if record["key"]["layout"] == "single"
    }
    rows = []
    for record in records:
        alone = single.get(record["key"]["optim"], [])
        gaps = [abs(a - b) / b for a, b in zip(record["losses"], alone, strict=False)]
        rows.append(
            [
                f"`{record['key']['optim']}`",
                record["key"]["layout"],
                record["ranks"],
                f"{record['losses'][0]:.4f}",
                f"{record['losses'][-1]:.4f}",
                f"{max(gaps):.1e}" if gaps else "",
                f"{record['step_seconds']:.1f}",
            ]
        )
    header = ["optimizer", "layout", "ranks", "first loss", "last loss"]
    header += ["largest relative gap to single", "s per step"]
    table = markdown_table(header, rows)
    print(table)
    setting = " ".join((__doc__ or "").split("\n\n")[1].split())
    setting = setting.replace("32 steps", f"{args.steps} steps")
    setting += f"\n\n![training loss]({args.out.with_suffix('.png').name})"
    title = "GPT-2 124M from scratch on two ranks and on one"
    if args.size != "gpt2":
        title += f" ({args.size} model: not a measurement)"
    wheres = [record["where"] for record in records]
    write_report(args.out.with_suffix(".md"), title, setting, table, "Not read yet.", wheres)
    _plot(args.out.with_suffix(".png"), records)


def _plot(path: Path, records: list[dict[str, Any]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5))
    styles = {"single": "-", "ddp": ":", "fsdp2": "--"}
    for record in records:
        label = f"{record['key']['optim']}, {record['key']['layout']}"
        style = styles[record["key"]["layout"]]
        axes.plot(range(1, len(record["losses"]) + 1), record["losses"], style, label=label)
    axes.set(xlabel="step", ylabel="training loss, nats per byte")
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--layout", choices=["single", "ddp", "fsdp2"], default="single", help="default: single"
    )
    parser.add_argument(
        "--optim",
        type=optimizer_spec,
        default=optimizer_spec("fromage:lr=.003"),
        metavar="NAME[:OPTION=VALUE,...]",
        help=f"{', '.join(NAMES)}, with options (default: fromage:lr=.003)",
    )
    parser.add_argument(
        "--size", choices=sorted(SIZES), default="gpt2", help="default: gpt2; tiny is for tests"
    )
    parser.add_argument("--steps", type=int, default=32, help="default: 32")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument(
        "--out",
        type=Path,
        default=RESULTS / f"gpt2_124m_cpu_{MONTH}",
        help="results without suffix: .jsonl, .md and .png are written",
    )
    return parser


if __name__ == "__main__":
    main()
