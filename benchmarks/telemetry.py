"""What telemetry costs: a training step with one measured step out of ten, and without any.

Every round makes the gradients of one batch and takes two optimizer steps with them, one that is
measured, read and written to a file as in a training, and one that is not; which comes first
changes from round to round. "With telemetry" is the mean of ten steps of which one is measured:
medians over the rounds of passes and plain steps, and a tenth of what the measured step takes
longer. Also with two copies of the weights (`snapshots="memory"`).

    python benchmarks/telemetry.py                  # a model of 5M weights and GPT-2
    python benchmarks/telemetry.py --size demo --rounds 31

Let nothing else run on the machine.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from run_log import MONTH, RESULTS, RunLog, markdown_table, write_report
from transformers import GPT2Config, GPT2LMHeadModel

from hf_relopt import create_optimizer
from hf_relopt.telemetry.recorder import Recorder

EVERY = 10  # logging_steps
OPTIMIZERS = ("fromage", "fromage_spectral", "madam")
SNAPSHOTS = {"metrics": None, "metrics and snapshots": "memory"}


@dataclass(frozen=True)
class Setting:
    """A GPT-2 of these dimensions, and how many sequences of its context are a step."""

    layers: int
    width: int
    vocabulary: int
    context: int
    sequences: int


SETTINGS = {
    "demo": Setting(4, 256, 4096, 128, 16),
    "gpt2": Setting(12, 768, 50257, 1024, 1),
    "tiny": Setting(1, 32, 97, 16, 2),
}


def main() -> None:
    """Read the command line, measure, write JSON lines and the table."""
    args = _arguments().parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    log = RunLog(args.out.with_suffix(".jsonl"))
    for size in args.size:
        for optim in args.optim:
            for kind, snapshots in SNAPSHOTS.items():
                key = {"size": size, "optimizer": optim, "kind": kind, "device": args.device}
                figures = cost(SETTINGS[size], optim, snapshots, args.rounds, args.device)
                log.append(key, {**figures, "rounds": args.rounds})
                print(f"{size}, {optim}, {kind}: ratio {figures['ratio']:.4f}", flush=True)
    _report(args, log)


def cost(
    setting: Setting, optim: str, snapshots: Any, rounds: int, device: str
) -> dict[str, float]:
    """Milliseconds of the passes, of a plain step and of a measured one; and what comes of them."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    model = _model(setting, device)
    optimizer = create_optimizer(model, optim, 1e-4)
    times: dict[str, list[float]] = {"passes_ms": [], "plain_ms": [], "measured_ms": []}
    with TemporaryDirectory() as folder:
        recorder = Recorder(Path(folder, "telemetry.jsonl"), snapshots=snapshots)
        recorder.begin(optimizer, model, name=optim)

        def measured() -> None:
            optimizer.measure_next_step()
            optimizer.step()
            found = optimizer.take_measured()
            assert found is not None
            recorder.record(found, step=1, lr=1e-4, loss=1.0)

        for number in range(rounds + 1):
            optimizer.zero_grad()
            now = {"passes_ms": _time(lambda: _passes(model, setting, device), wait)}
            both: list[tuple[str, Callable[[], Any]]]
            both = [("plain_ms", optimizer.step), ("measured_ms", measured)]
            for name, step in both if number % 2 else reversed(both):
                now[name] = _time(step, wait)
            for name, each in now.items():
                if number:  # the first round makes state and looks things up
                    times[name].append(each)
    found = {name: statistics.median(each) for name, each in times.items()}
    step = found["passes_ms"] + found["plain_ms"]
    more = (found["measured_ms"] - found["plain_ms"]) / EVERY
    return {**found, "step_ms": step, "with_ms": step + more, "ratio": (step + more) / step}


def _model(setting: Setting, device: str) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=setting.layers,
        n_embd=setting.width,
        n_head=max(1, setting.width // 64),
        vocab_size=setting.vocabulary,
        n_positions=setting.context,
        bos_token_id=None,
        eos_token_id=None,
    )
    return GPT2LMHeadModel(config).to(device)


def _passes(model: GPT2LMHeadModel, setting: Setting, device: str) -> None:
    shape = setting.sequences, setting.context
    tokens = torch.randint(setting.vocabulary, shape, device=device)
    with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
        loss = model(input_ids=tokens, labels=tokens).loss
    loss.backward()


def _time(work: Callable[[], Any], wait: Callable[[], None]) -> float:
    wait()
    start = time.perf_counter()
    work()
    wait()
    return 1e3 * (time.perf_counter() - start)


def _report(args: argparse.Namespace, log: RunLog) -> None:
    newest = {tuple(record["key"].values()): record for record in log.records()}
    lines = [
        [
            record["key"]["size"],
            record["key"]["optimizer"],
            record["key"]["kind"],
            f"{record['passes_ms']:,.1f}",
            f"{record['plain_ms']:,.1f}",
            f"{record['measured_ms']:,.1f}",
            f"{record['ratio']:.4f}",
        ]
        for record in newest.values()
    ]
    header = ["model", "optimizer", "measured", "passes, ms", "plain step, ms", "measured step, ms"]
    table = markdown_table([*header, "with telemetry / without"], lines)
    print(table)
    setting = " ".join((__doc__ or "").split("\n\n")[1].split())
    sizes = {record["key"]["size"] for record in newest.values()}
    for size in sorted(sizes):
        own = SETTINGS[size]
        setting += (
            f" {size}: {own.layers} layers of width {own.width}, {own.vocabulary:,} tokens, steps "
            f"of {own.sequences} x {own.context} tokens."
        )
    title = "What telemetry costs"
    if "tiny" in sizes:
        title += " (tiny model: not a measurement)"
    wheres = [record["where"] for record in newest.values()]
    write_report(args.out.with_suffix(".md"), title, setting, table, "Not read yet.", wheres)


def _arguments() -> argparse.ArgumentParser:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--size",
        nargs="+",
        choices=sorted(SETTINGS),
        default=["demo", "gpt2"],
        help="default: demo gpt2; tiny is for tests",
    )
    parser.add_argument(
        "--optim", nargs="+", default=list(OPTIMIZERS), help=f"default: {' '.join(OPTIMIZERS)}"
    )
    parser.add_argument(
        "--device", choices=["cpu", "cuda"], default=device, help="default: %(default)s"
    )
    parser.add_argument("--rounds", type=int, default=9, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (default: torch's own)")
    parser.add_argument(
        "--out",
        type=Path,
        default=RESULTS / f"telemetry_{device}_{MONTH}",
        help="results without suffix: .jsonl and .md are written",
    )
    return parser


if __name__ == "__main__":
    main()
