"""Time a spectral step of GPT-2's matrices against torch's Muon, and against a training step.

Two tables in one run, every optimizer once per round, medians over the rounds. The first is of the
matrices of some layers (85M weights in all twelve): torch.optim.Muon, which works in bfloat16, and
Fromage with direction "spectral". "Cut" is what the preset does: queries, keys and values are three
matrices. With --training the second says what part of a whole training step the preset's step is,
of a model of as many layers, at 8 x 1,024 tokens (on a CPU one sequence is timed and counted eight
times; on a GPU passes are in bfloat16).

    python benchmarks/spectral_step.py --layers 2 --training

Let nothing else run on the machine.
"""

from __future__ import annotations

import argparse
import re
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from run_log import MONTH, RESULTS, RunLog, markdown_table, write_report
from step_time import SIZES, Size, make_weights, measure
from transformers import GPT2Config, GPT2LMHeadModel

from hf_relopt import Fromage, create_optimizer
from hf_relopt.backends.triton.kernel import serves

REFERENCE = "Muon"
SEQUENCES = 8


def main() -> None:
    """Read the command line, measure, write JSON lines and the tables."""
    args = _arguments().parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    log = RunLog(args.out.with_suffix(".jsonl"))
    key = {"size": args.size, "layers": args.layers, "device": args.device}
    wait = torch.cuda.synchronize if args.device == "cuda" else lambda: None
    size = SIZES[args.size]
    size = Size(args.layers, size.width, size.vocabulary, size.context)
    table = rows(size, args.device)
    wanted = {n: o for n, o in table.items() if n == REFERENCE or re.search(args.only, n)}
    times, _ = measure(wanted, args.rounds, wait)
    reference = statistics.median(times[REFERENCE])
    for name, each in times.items():
        middle = statistics.median(each)
        figures = {"ms": middle, "fastest_ms": min(each), "ratio": middle / reference}
        log.append({**key, "optimizer": name}, {**figures, "rounds": args.rounds})
    if args.training:
        log.append({**key, "optimizer": "training step"}, share(size, args.device, wait))
    _report(args, log, key)


def rows(size: Size, device: str) -> dict[str, torch.optim.Optimizer]:
    """Name in the table -> optimizer over the layers' matrices, which all of them share."""
    weights = make_weights(size, torch.float32, device)
    matrices = [weight for weight in weights[2:] if weight.ndim == 2]
    fused, others = matrices[::4], [m for place, m in enumerate(matrices) if place % 4]
    cut = {"params": fused, "scale": "block", "split_dim": 1, "split_sizes": 3}
    table: dict[str, torch.optim.Optimizer] = {REFERENCE: torch.optim.Muon(matrices, lr=1e-6)}
    backends = ("foreach", "compiled", *(["triton"] if serves(torch.device(device)) else []))
    for backend in backends:
        options: dict[str, Any] = {"lr": 1e-4, "direction": "spectral", "backend": backend}
        table[f"spectral {backend}"] = Fromage(matrices, **options)
        table[f"spectral {backend}, cut"] = Fromage([dict(cut), {"params": others}], **options)
    table["momentum compiled"] = Fromage(
        matrices, lr=1e-4, direction="momentum", backend="compiled"
    )
    return table


def share(size: Size, device: str, wait: Any) -> dict[str, float]:
    """Milliseconds of the preset's step, and of the forward and backward passes of a batch."""
    config = GPT2Config(
        n_layer=size.layers,
        n_embd=size.width,
        n_head=max(1, size.width // 64),
        vocab_size=size.vocabulary,
        n_positions=size.context,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = GPT2LMHeadModel(config).to(device)
    optimizer = create_optimizer(model, "fromage_spectral", 1e-4)
    on_gpu = device == "cuda"
    at_once, rounds = (SEQUENCES, 12) if on_gpu else (1, 4)
    passes, steps = [], []
    for _ in range(rounds):
        tokens = torch.randint(size.vocabulary, (at_once, size.context), device=device)
        optimizer.zero_grad()
        wait()
        start = time.perf_counter()
        with torch.autocast(device, torch.bfloat16, enabled=on_gpu):
            loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        wait()
        middle = time.perf_counter()
        optimizer.step()
        wait()
        passes.append(1e3 * (middle - start))
        steps.append(1e3 * (time.perf_counter() - middle))
    step = statistics.median(steps[1:])
    batch = SEQUENCES // at_once * statistics.median(passes[1:])
    return {"ms": step, "passes_ms": batch, "share": step / (step + batch)}


def _report(args: argparse.Namespace, log: RunLog, key: dict[str, Any]) -> None:
    newest = {
        record["key"]["optimizer"]: record
        for record in log.records()
        if all(record["key"].get(name) == value for name, value in key.items())
    }
    training = newest.pop("training step", None)
    lines = [
        [name, f"{r['ms']:.1f}", f"{r['fastest_ms']:.1f}", f"{r['ratio']:.2f}"]
        for name, r in newest.items()
    ]
    table = markdown_table(["optimizer", "median, ms", "fastest, ms", "ratio"], lines)
    wheres = [record["where"] for record in newest.values()]
    if training is not None:
        table += (
            f"\n\nA training step at {SEQUENCES} x {SIZES[args.size].context:,} tokens: "
            f"{training['passes_ms']:,.0f} ms of passes, {training['ms']:,.0f} ms of the preset's "
            f"step, which is {training['share']:.1%} of both."
        )
        wheres.append(training["where"])
    print(table)
    setting = " ".join((__doc__ or "").split("\n\n")[1].split())
    setting += f" Layers: {args.layers}."
    title = "A spectral step beside Muon's"
    if args.size != "gpt2":
        title += f" ({args.size} model: not a measurement)"
    write_report(args.out.with_suffix(".md"), title, setting, table, "Not read yet.", wheres)


def _arguments() -> argparse.ArgumentParser:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--size", choices=sorted(SIZES), default="gpt2", help="default: gpt2; tiny is for tests"
    )
    parser.add_argument("--layers", type=int, default=12, help="how many layers (default: 12)")
    parser.add_argument("--training", action="store_true", help="time a training step, too")
    parser.add_argument(
        "--device", choices=["cpu", "cuda"], default=device, help="default: %(default)s"
    )
    parser.add_argument(
        "--only", default="", metavar="REGEX", help="rows whose name matches; Muon stays"
    )
    parser.add_argument("--rounds", type=int, default=15, help="default: 15")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (default: torch's own)")
    parser.add_argument(
        "--out",
        type=Path,
        default=RESULTS / f"spectral_step_{device}_{MONTH}",
        help="results without suffix: .jsonl and .md are written",
    )
    return parser


if __name__ == "__main__":
    main()
