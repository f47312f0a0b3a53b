"""What `import hf_relopt` loads, seen from a fresh interpreter."""

from __future__ import annotations

import subprocess
import sys
import textwrap

from hf_relopt.cli.run import AUTOLOAD
from tests.hf.tiny import forked_python, passed

ROOT = AUTOLOAD.parents[1]


def _fresh(code: str) -> str:
    # In the source folder, so that the package is found whether it is installed or not.
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_loads_neither_transformers_nor_triton():
    code = """
        import sys
        import hf_relopt
        from hf_relopt import Fromage, Madam, create_optimizer, plan
        heavy = {"transformers", "accelerate", "datasets", "triton", "typer", "rich", "matplotlib"}
        print(sorted(heavy & {name.partition(".")[0] for name in sys.modules}))
    """
    assert _fresh(code) == "[]\n"


def test_the_optimizers_load_little_beside_torch():
    """What is loaded decides, not the clock; the time goes into the report (aim: under 50 ms)."""
    code = """
        import sys, time
        import torch, torch.optim
        before = set(sys.modules)
        start = time.perf_counter()
        import hf_relopt
        from hf_relopt import Fromage, Madam
        print((time.perf_counter() - start) * 1e3)
        new = {name for name in set(sys.modules) - before if not name.startswith("hf_relopt")}
        print(sorted({".".join(name.split(".")[:2]) for name in new}))
    """
    cost, names = _fresh(code).splitlines()
    print(f"import hf_relopt and both optimizers, beyond torch: {cost} ms; new: {names}")
    # Far above any honest figure: catches a heavy import, not a busy machine.
    assert float(cost) < 1000
    new = set(eval(names))
    foreign = {name for name in new if name.partition(".")[0] not in sys.stdlib_module_names}
    assert {name for name in foreign if name.partition(".")[0] != "torch"} == set()
    assert foreign & {"torch._dynamo", "torch._inductor"} == set()


def test_the_package_alone_does_not_load_torch():
    """The console script and the start-up file rely on it."""
    code = "import sys, hf_relopt, hf_relopt.cli.main; print('torch' in sys.modules)"
    assert _fresh(code) == "False\n"


def test_register_comes_with_transformers_in_either_order():
    code = """
        import sys
        assert ("transformers.training_args" in sys.modules) == {loaded}
        assert "hf_relopt" not in sys.modules
        import hf_relopt
        from transformers.training_args import OptimizerNames
        print(OptimizerNames("fromage").value, OptimizerNames("madam").value)
    """
    assert _fresh(code.format(loaded=False)) == "fromage madam\n"
    assert passed(forked_python(code.format(loaded=True))) == "fromage madam\n"
