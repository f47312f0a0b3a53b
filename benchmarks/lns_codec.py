"""What codes cost: to encode and decode a weight, in a linear layer, and in a training step.

Three tables, every way once per round, so that a busy machine slows all of them alike; medians over
the rounds. The first is of one matrix: `encode` finds the codes of numbers whose scales are known
and does not pack them, `decode` makes a float32 tensor of packed codes, and beside them are a copy
in float32 and a cast from bfloat16, which have to read and write as much or less. The second is of
a linear layer's forward pass without gradients, all inputs in float32 but those of bfloat16; int8
is torchao's weight-only quantization, not compiled. The third is of a GPT-2's whole training step:
forward and backward, and the optimizer with the release of gradients. Ways that differ in rate and
backend alone share a model. On a GPU passes are in bfloat16.

    python benchmarks/lns_codec.py                            # this CPU or GPU
    python benchmarks/lns_codec.py --part codec linear --rounds 31
    python benchmarks/lns_codec.py --part training --optim integer_madam:format=lns10,lr=.01

Let nothing else run on the machine. What is in the results is measured again and the newer figures
count. torchao is in the extra `bench`.
"""

from __future__ import annotations

import argparse
import copy
import gc
import math
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torchao_int8
from optimizer_spec import OptimizerSpec, build_optimizer, optimizer_spec
from run_log import MONTH, RESULTS, RunLog, markdown_table, write_report
from step_time import SIZES, Size, parameters
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from hf_relopt.lns.codec import encode
from hf_relopt.lns.format import FORMATS
from hf_relopt.lns.scale import scale_of
from hf_relopt.lns.tensor import LNSTensor

MADAM = "madam:lr=0.01"
OPTIMIZERS = (
    "adamw:lr=1e-4",
    "integer_madam:format=lns8,lr=.01,backend=foreach",
    "integer_madam:format=lns8,lr=.01,backend=compiled",
    "integer_madam:format=lns12,lr=.01,backend=foreach",
    "integer_madam:format=lns12,lr=.01,backend=compiled",
)
INT8 = "int8, torchao"
# To what ratios are, by table.
REFERENCES = {"codec": "copy of float32", "linear": "float32", "training": MADAM}
# Of weights, gradients and state: AdamW's are the most, 16 bytes per weight. Models that have no
# room beside each other are measured one after the other.
MOST_BYTES = 16
ROOM = 20e9

Milliseconds = dict[str, float]
Way = Callable[[], Milliseconds]
Wait = Callable[[], None]


def main() -> None:
    """Read the command line, measure, write JSON lines and the tables."""
    parser = _arguments()
    args = parser.parse_args()
    context = SIZES[args.size].context
    if args.tokens > context and args.tokens % context:
        parser.error(f"--tokens {args.tokens} are no sequences of {context}, the model's context")
    if args.threads:
        torch.set_num_threads(args.threads)
    wait = torch.cuda.synchronize if args.device == "cuda" else lambda: None
    log = RunLog(args.out.with_suffix(".jsonl"))
    measures = {"codec": codec, "linear": linear, "training": training}
    for part in args.part:
        for way, figures in measures[part](args, wait).items():
            log.append({**_key(part, args), "way": way}, {**figures, "rounds": args.rounds})
    _report(args, log)


def codec(args: argparse.Namespace, wait: Wait) -> dict[str, dict[str, Any]]:
    """Nanoseconds per weight of a copy, a cast, and of each format's two directions."""
    weight = _matrix(args)
    half = weight.to(torch.bfloat16)
    work: dict[str, Callable[[], Tensor]] = {
        "copy of float32": weight.clone,
        "bfloat16 to float32": lambda: half.to(torch.float32),
    }
    for name, form in FORMATS.items():
        scale, codes = scale_of(weight, form), LNSTensor.from_float(weight, form)
        work[f"{name}, encode"] = partial(encode, weight, scale, form)
        work[f"{name}, decode"] = codes.dequantize
    ways = {name: _timed(each, wait) for name, each in work.items()}
    found = _summary(interleaved(ways, args.rounds), "codec")
    for figures in found.values():
        for name in ("ms", "fastest_ms"):
            figures[name.replace("ms", "ns_per_weight")] = 1e6 * figures[name] / weight.numel()
    return found


def linear(args: argparse.Namespace, wait: Wait) -> dict[str, dict[str, Any]]:
    """Milliseconds of a linear layer's forward pass, by how its weights are stored."""
    layer = nn.Linear(args.matrix, args.matrix, bias=False, device=args.device)
    layer.weight = nn.Parameter(_matrix(args), requires_grad=False)
    inputs = torch.randn(args.batch, args.matrix, device=args.device)
    half = inputs.to(torch.bfloat16)
    low = copy.deepcopy(layer).to(torch.bfloat16)
    work: dict[str, Callable[[], Tensor]] = {
        "float32": lambda: layer(inputs),
        "bfloat16": lambda: low(half),
    }
    for name in FORMATS:
        coded = copy.deepcopy(layer)
        codes = LNSTensor.from_float(layer.weight, name)
        coded.weight = nn.Parameter(codes, requires_grad=False)
        work[name] = partial(coded, inputs)
    version, quantized = torchao_int8.version(), nn.Sequential(copy.deepcopy(layer))
    if version:
        torchao_int8.compress(quantized)
        work[INT8] = lambda: quantized(inputs)
    with torch.no_grad():
        ways = {name: _timed(each, wait) for name, each in work.items()}
        found = _summary(interleaved(ways, args.rounds), "linear")
    if version:
        found[INT8]["torchao"] = version
    return found


def training(args: argparse.Namespace, wait: Wait) -> dict[str, dict[str, Any]]:
    """Milliseconds of a training step and of its two parts, by optimizer."""
    size = _model_size(args)
    by_model: dict[str, list[OptimizerSpec]] = {}
    for spec in dict.fromkeys(map(optimizer_spec, [MADAM, *(args.optim or OPTIMIZERS)])):
        by_model.setdefault(str(spec.without("lr", "backend")), []).append(spec)
    models = list(by_model.values())
    weights = sum(math.prod(shape) for _, shape in parameters(size))
    in_turn = MOST_BYTES * weights * len(models) <= ROOM
    times: dict[str, list[Milliseconds]] = {}
    for beside in [models] if in_turn else [[specs] for specs in models]:
        times.update(interleaved(_training_ways(beside, args, wait), args.rounds))
        gc.collect()  # before the next model is made: optimizers and their states refer in circles
    found = _summary(times, "training")
    for figures in found.values():
        figures["in_turn"] = in_turn
    return found


def _training_ways(
    models: list[list[OptimizerSpec]], args: argparse.Namespace, wait: Wait
) -> dict[str, Way]:
    """Each optimizer's step; those of a list share a model."""
    size = _model_size(args)
    shape = max(1, args.tokens // size.context), min(args.tokens, size.context)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(size.vocabulary, shape, generator=generator).to(args.device)
    ways: dict[str, Way] = {}
    for specs in models:
        model = _gpt2(size, args.device)
        for spec in specs:
            optimizer = build_optimizer(spec, model)
            ways[str(spec)] = _training_step(model, optimizer, tokens, wait)
    return ways


def _gpt2(size: Size, device: str) -> nn.Module:
    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=size.layers,
        n_embd=size.width,
        n_head=max(1, size.width // 64),
        vocab_size=size.vocabulary,
        n_positions=size.context,
        use_cache=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    model: nn.Module = GPT2LMHeadModel(config).to(device)
    return model


def _training_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, tokens: Tensor, wait: Wait
) -> Way:
    def step() -> Milliseconds:
        wait()
        start = time.perf_counter()
        device = tokens.device.type
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        wait()
        middle = time.perf_counter()
        optimizer.step()
        optimizer.zero_grad()
        wait()
        end = time.perf_counter()
        passes, rest = 1e3 * (middle - start), 1e3 * (end - middle)
        return {"ms": passes + rest, "passes_ms": passes, "optimizer_ms": rest}

    return step


def interleaved(ways: dict[str, Way], rounds: int) -> dict[str, list[Milliseconds]]:
    """What every way took in each round, after one that does not count: it makes and compiles."""
    found: dict[str, list[Milliseconds]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            times = way()
            if number:
                found[name].append(times)
        print(f"round {number + 1} of {rounds + 1}", flush=True)
    return found


def _timed(work: Callable[[], Any], wait: Wait) -> Way:
    def way() -> Milliseconds:
        wait()
        start = time.perf_counter()
        work()
        wait()
        return {"ms": 1e3 * (time.perf_counter() - start)}

    return way


def _summary(times: dict[str, list[Milliseconds]], part: str) -> dict[str, dict[str, Any]]:
    """Medians over the rounds, the fastest round, and the ratio to the part's reference."""
    found: dict[str, dict[str, Any]] = {}
    for name, rounds in times.items():
        found[name] = {what: statistics.median(each[what] for each in rounds) for what in rounds[0]}
        found[name]["fastest_ms"] = min(each["ms"] for each in rounds)
    for figures in found.values():
        figures["ratio"] = figures["ms"] / found[REFERENCES[part]]["ms"]
    return found


def _matrix(args: argparse.Namespace) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return 0.02 * torch.randn(args.matrix, args.matrix, generator=generator).to(args.device)


def _model_size(args: argparse.Namespace) -> Size:
    size = SIZES[args.size]
    return Size(args.layers or size.layers, size.width, size.vocabulary, size.context)


def _key(part: str, args: argparse.Namespace) -> dict[str, Any]:
    key: dict[str, Any] = {"part": part, "device": args.device}
    if part == "training":
        layers = _model_size(args).layers
        return {**key, "size": args.size, "layers": layers, "tokens": args.tokens}
    key["matrix"] = args.matrix
    return {**key, "batch": args.batch} if part == "linear" else key


def _report(args: argparse.Namespace, log: RunLog) -> None:
    """The tables of what was measured with these sizes, the newest figures of each way."""
    tables, wheres, notes = [], [], []
    for part in REFERENCES:
        key = _key(part, args)
        newest = {
            record["key"]["way"]: record
            for record in log.records()
            if {**key, "way": record["key"]["way"]} == record["key"]
        }
        if newest:
            tables.append(_table(part, args, newest))
            notes.append(_note(part, newest))
            wheres += [record["where"] for record in newest.values()]
    text = "\n\n".join(tables)
    print(text)
    setting = " ".join((__doc__ or "").split("\n\n")[1].split())
    title = "What codes cost"
    if args.size == "tiny":
        title += " (tiny model: not a measurement)"
    page = args.out.with_suffix(".md")
    write_report(page, title, " ".join([setting, *notes]), text, "Not read yet.", wheres)


def _table(part: str, args: argparse.Namespace, newest: dict[str, dict[str, Any]]) -> str:
    """A line on the sizes, and a row for each way."""
    size = _model_size(args)
    says = {
        "codec": f"A matrix of {args.matrix:,} x {args.matrix:,} weights:",
        "linear": f"A linear layer with such a matrix, a batch of {args.batch:,}:",
        "training": f"A training step of a GPT-2 of {size.layers} layers, width {size.width} and "
        f"{size.vocabulary:,} words, with {args.tokens:,} tokens:",
    }[part]
    columns = {
        "codec": {"median, ns per weight": "ns_per_weight", "fastest": "fastest_ns_per_weight"},
        "linear": {"median, ms": "ms", "fastest, ms": "fastest_ms"},
        "training": {
            "median, ms": "ms",
            "fastest, ms": "fastest_ms",
            "forward and backward, ms": "passes_ms",
            "optimizer, ms": "optimizer_ms",
        },
    }[part]
    digits = 1 if part == "training" else 2
    rows = [
        [
            f"`{way}`" if part == "training" else way,
            *[f"{record[figure]:,.{digits}f}" for figure in columns.values()],
            f"{record['ratio']:.2f}",
        ]
        for way, record in newest.items()
    ]
    first = "optimizer" if part == "training" else "weights" if part == "linear" else "what"
    return f"{says}\n\n" + markdown_table([first, *columns, "ratio"], rows)


def _note(part: str, newest: dict[str, dict[str, Any]]) -> str:
    rounds = ", ".join(map(str, sorted({record["rounds"] for record in newest.values()})))
    note = f"Rounds of the {part} table: {rounds}; ratios are to {REFERENCES[part]}."
    if part == "linear":
        version = newest.get(INT8, {}).get("torchao")
        note += f" torchao {version}." if version else " torchao was not there: no row of int8."
    if part == "training" and not all(record["in_turn"] for record in newest.values()):
        note += " Models were too large for each other: each was measured alone, not in turn."
    return note


def _arguments() -> argparse.ArgumentParser:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--part", nargs="+", choices=list(REFERENCES), default=list(REFERENCES), help="default: all"
    )
    parser.add_argument(
        "--matrix", type=int, default=2048, help="rows and columns (default: %(default)s)"
    )
    parser.add_argument(
        "--batch", type=int, default=32, help="of the linear layer (default: %(default)s)"
    )
    parser.add_argument(
        "--size", choices=sorted(SIZES), default="gpt2", help="default: gpt2; tiny is for tests"
    )
    parser.add_argument("--layers", type=int, default=0, help="of the model (default: all of them)")
    parser.add_argument(
        "--tokens", type=int, default=1024, help="of a training step (default: %(default)s)"
    )
    parser.add_argument(
        "--optim",
        action="append",
        metavar="NAME[:OPTION=VALUE,...]",
        help=f"beside {MADAM}; default: {', '.join(OPTIMIZERS)}",
    )
    parser.add_argument(
        "--device", choices=["cpu", "cuda"], default=device, help="default: %(default)s"
    )
    parser.add_argument("--rounds", type=int, default=7, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (default: torch's own)")
    parser.add_argument(
        "--out",
        type=Path,
        default=RESULTS / f"lns_codec_{device}_{MONTH}",
        help="results without suffix: .jsonl and .md are written",
    )
    return parser


if __name__ == "__main__":
    main()
