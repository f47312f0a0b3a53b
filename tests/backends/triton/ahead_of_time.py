"""Compile kernels for GPUs that are not here; one line of JSON for each kernel and architecture.

A process of its own: Triton's interpreter, in which the tests run, cannot be left.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from hf_relopt import Fromage
from hf_relopt.backends.part import Equation
from hf_relopt.backends.triton import one_look, packed, sums, update
from hf_relopt.backends.triton.kernel import FEW_WARPS, TILE_WARPS, kernel_of
from hf_relopt.backends.triton.tiles import TILE
from hf_relopt.options.method import method_of
from hf_relopt.rules import adamw, fromage, madam, moments
from hf_relopt.step.decide import Deciding, InOneLook, Judging, RunningOn, as_decided

TABLES = {"programs": "*i32", "facts": "*i64", "addresses": "*i64"}
TYPES = {
    torch.float32: "*fp32", torch.float64: "*fp64", torch.bool: "*i1", torch.int32: "*i32",
    torch.int64: "*i64",
}  # fmt: skip
FLOAT = update.Kind(torch.float32, False)
FLAG = update.Kind(torch.bool, False)
FROMAGE = dict.fromkeys(("shrink", "move", "grad_norm"), FLOAT)
MADAM = {**dict.fromkeys(("lr", "inverse_correction", "max_abs"), FLOAT), "additive": FLAG}
ADAMW = dict.fromkeys(("lr", "correction1", "correction2"), FLOAT)
MADAM_CONSTANTS = {"beta": 0.999, "g_bound": 10.0, "min_scale": 0.1}
ADAMW_CONSTANTS = {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.1}

Case = tuple[str, str, dict[str, str], dict[str, int], int]


def updates() -> Iterator[Case]:
    """Kernels of rules and moments."""
    short, wide = torch.bfloat16, torch.float32
    of_fromage = Equation(fromage.update, {}, False)
    of_madam = Equation(madam.update, MADAM_CONSTANTS, False)
    of_adamw = Equation(adamw.update, ADAMW_CONSTANTS, False)
    take_in = Equation(moments.take_in, {"decay": 0.9}, False)
    look_ahead = Equation(moments.look_ahead, {"decay": 0.9}, False)
    for name, equation, dtypes, numbers, strided in (
        ("fromage", of_fromage, [wide, wide], FROMAGE, False),
        ("fromage, short and strided", of_fromage, [short, short], FROMAGE, True),
        ("madam, short", of_madam, [short, short, wide], MADAM, False),
        ("adamw, short", of_adamw, [short, short, wide, wide], ADAMW, False),
        ("momentum, short", take_in, [short, wide], {}, False),
        ("momentum and a stack", look_ahead, [wide, wide, short], {}, True),
    ):
        noisy = dtypes[0] is short
        text = update.text_of(equation, dtypes, numbers, noisy=noisy, strided=strided, wide=False)
        signature = {**TABLES, "may_learn_at": "*i1", "may_move_at": "*i1"}
        signature |= {f"given_{each}_at": TYPES[kind.dtype] for each, kind in numbers.items()}
        if noisy:
            signature["key_at"] = "*i32"
        yield name, text, signature, {"ROWS": 1, "COLUMNS": TILE}, TILE_WARPS


def rows() -> Iterator[Case]:
    """Kernels that sum rows, decide on them and step them: those of a preset's embeddings."""
    param = torch.nn.Parameter(torch.ones(4, 4))
    group = Fromage([param], direction="rms", scale="row", p_bound=1.0).param_groups[0]
    method = method_of(group, param)
    deciding = Deciding(as_decided(method), torch.float32, 1.0, moves=True, from_zero=True)
    formula = InOneLook(RunningOn(0.99), deciding)
    kept = dict.fromkeys(("grad_rms", "grad_count"), (torch.float32, 1))
    numbers = {
        **dict.fromkeys(("anchor_norm", "step"), (torch.float32, 1)),
        "numel": (torch.float64, 1),
        "lr": (torch.float64, 0),
        "learn": (torch.bool, 1),
        **kept,
    }
    equation = Equation(method.rule.update, {}, False)
    for dtype in (torch.float32, torch.bfloat16):
        noisy = dtype is torch.bfloat16
        own = {**numbers, **({"number": (torch.int64, 1)} if noisy else {})}
        text = one_look.text_of(
            equation, method.sums, formula, [dtype] * 2, tuple(own), tuple(own.values()),
            tuple(kept), noisy=noisy, strided=False, wide=False,
        )  # fmt: skip
        signature = {**TABLES, **{f"at_{name}": TYPES[kind[0]] for name, kind in own.items()}}
        signature |= {f"to_{name}": TYPES[kind[0]] for name, kind in kept.items()}
        yield f"rows in {dtype}", text, signature, {"ROWS": 4, "COLUMNS": TILE // 4}, TILE_WARPS


def others() -> Iterator[Case]:
    """Kernels of sums, and one of packed numbers."""
    for name, rows in (("sums", 1), ("sums of rows", 4)):
        text = sums.partial_text("cosine", [torch.bfloat16] * 2, strided=False, wide=False)
        tile = {"ROWS": rows, "COLUMNS": TILE // rows}
        yield name, text, {**TABLES, "partial": "*fp64"}, tile, TILE_WARPS
    text = sums.total_text("cosine", single=False)
    signature = {"partial": "*fp64", "totals": "*i32", "rows": "*fp64", "slices": "i32"}
    yield "totals", text, signature, {}, FEW_WARPS
    names = ("grad_norm", "largest", "step", "skipped")
    dtypes = (torch.float64, torch.float64, torch.float32, torch.float32)
    program, _ = packed.traced(Judging(), names, [(dtype, 1) for dtype in dtypes])
    signature = {f"x{n}_at": TYPES[dtype] for n, dtype in enumerate(program.dtypes)}
    signature |= {f"x{n}_stride": "i32" for n in range(len(program.dtypes))}
    signature |= {f"y{n}_at": TYPES[dtype] for n, dtype in enumerate(program.results)}
    yield "judging", packed.text_of(program), {**signature, "n": "i32"}, {}, FEW_WARPS


def main() -> None:
    """Compile all."""
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with TemporaryDirectory() as folder:
        for name, text, signature, constants, warps in (*updates(), *rows(), *others()):
            for architecture in (80, 90):
                signature |= dict.fromkeys(constants, "constexpr")
                made = triton.compile(
                    ASTSource(kernel_of(text), signature, constexprs=constants),
                    target=GPUTarget("cuda", architecture, 32),
                    options={
                        "num_warps": warps,
                        "enable_fp_fusion": False,
                        "sanitize_overflow": False,
                    },
                )
                binary = Path(folder) / "kernel.cubin"
                binary.write_bytes(made.asm["cubin"])
                usage = subprocess.check_output(
                    [tools / "cuobjdump", "-res-usage", binary], text=True
                )
                counted = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
                assert counted is not None, usage
                registers, stack, local = map(int, counted.groups())
                report = {
                    "kernel": name,
                    "architecture": architecture,
                    "registers": registers,
                    "stack": stack,
                    "local": local,
                    "tiles": "COLUMNS" in constants,
                    "wide_loads": len(re.findall(r"ld\.global\.v[24]", made.asm["ptx"])),
                    "contracted": made.asm["ptx"].count("fma.rn.f32"),
                }
                print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
