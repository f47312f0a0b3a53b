"""`accelerate launch` in this process ends as the script does, with a line where it needs one.

Signals and several processes are in tests/recipes/test_stopping.py.
"""

from __future__ import annotations

import signal
from types import SimpleNamespace

import pytest

from hf_relopt import ConfigError
from hf_relopt.hf.launcher import _of_several, launch

ONE = ["--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no", "--cpu",
       "--dynamo_backend", "no", "--num_cpu_threads_per_process", "1"]  # fmt: skip


@pytest.mark.parametrize(
    ("source", "end"),
    [
        ("", (0, "")),
        ("raise SystemExit(7)", (7, "")),
        ("import os; os.kill(os.getpid(), 15)", (143, "")),
        (
            "import os; os.kill(os.getpid(), 9)",
            (137, "the script was ended by SIGKILL (was it out of memory? `dmesg` tells)."),
        ),
        ("import os; os.kill(os.getpid(), 6)", (134, "the script was ended by SIGABRT.")),
    ],
)
def test_the_end_of_a_script_is_its_own(source, end, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(source)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    assert launch([*ONE, str(script)]) == end
    assert {number: signal.getsignal(number) for number in before} == before


@pytest.mark.parametrize(
    ("codes", "end"),
    [
        ({0: -15, 1: 3}, (3, "")),
        ({0: -15, 1: -15}, (143, "")),
        ({1: -9, 0: -15}, (137, "rank 1: the script was ended by SIGKILL (was it out of memory? "
                                "`dmesg` tells).")),
        ({0: 130, 1: 1}, (1, "")),
    ],
)  # fmt: skip
def test_of_several_ranks_the_one_counts_that_failed_by_itself(codes, end):
    failures = {rank: SimpleNamespace(exitcode=code) for rank, code in codes.items()}
    assert _of_several(failures) == end


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--num_processes", "many", "x.py"], "num_processes"),
        (["--config_file", "missing.yaml", "x.py"], "missing.yaml"),
        ([], "training_script"),
    ],
)
def test_flags_that_accelerate_cannot_use_are_our_own_error(words, said):
    with pytest.raises(ConfigError, match=said) as error:
        launch(words)
    assert str(error.value).startswith("accelerate launch: ")
    assert "\n" not in str(error.value)
