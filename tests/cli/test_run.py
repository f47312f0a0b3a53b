"""`hf-relopt run`, with real processes: what children see, and how it ends."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import textwrap
import time
from pathlib import Path

import pytest

from hf_relopt.cli.run import AUTOLOAD, child_environment, hiding_switch, run_and_wait, shebang

ROOT = Path(__file__).resolve().parents[2]
MAIN = [sys.executable, "-m", "hf_relopt.cli.main"]
# Prints what the two names are worth in this process, and what its own help says of them.
ASK = """
    from transformers import HfArgumentParser, TrainingArguments
    from transformers.training_args import OptimizerNames
    args = TrainingArguments("out", optim="fromage", report_to=[], use_cpu=True)
    print("optim is", OptimizerNames(args.optim).value, OptimizerNames("madam").value, flush=True)
    HfArgumentParser(TrainingArguments).parse_args_into_dataclasses()
"""
# The cheap question, for the many ways to start a process: is the hook there?
ARMED = """
    import os, sys
    armed = any(type(finder).__name__ == "_Finder" for finder in sys.meta_path)
    # In one write: two processes share the pipe.
    os.write(1, f"armed: {armed}\\n".encode())
"""
needs_exec = pytest.mark.skipif(os.name == "nt", reason="there is no exec on Windows")


@pytest.fixture
def environment(tmp_path):
    """The tests' own, with their Python first on PATH and the package importable in children."""
    scripts = sysconfig.get_path("scripts")
    return {
        **os.environ,
        "PATH": os.pathsep.join([scripts, str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": str(ROOT),
        # A user's own launcher settings are none of the tests' business.
        "HF_HOME": str(tmp_path / "hf_home"),
    }


@pytest.fixture
def run(tmp_path, environment):
    """Start `hf-relopt run` with arguments; give back the finished process."""

    def start(*command: object, env: dict[str, str] | None = None, timeout: float = 240):
        return subprocess.run(
            [*MAIN, "run", *map(str, command)],
            env={**environment, **(env or {})},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return start


def _script(path: Path, source: str) -> Path:
    path.write_text(textwrap.dedent(source))
    return path


# An unmodified script, which knows nothing of us.
TRAIN = """
    import sys
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments
    import torch
    quiet = {"report_to": [], "use_cpu": True, "disable_tqdm": True, "save_strategy": "no"}
    args = TrainingArguments("out", optim=sys.argv[1], max_steps=2, logging_steps=1, **quiet)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=9, n_embd=8, n_layer=1, n_head=1))
    rows = [{"input_ids": torch.arange(8), "labels": torch.arange(8)}] * 8
    job = Trainer(model, args, train_dataset=rows)
    job.train()
    print("logged", sorted(name for name in job.state.log_history[0] if "/" in name))
"""


def test_telemetry_is_added_to_an_unmodified_script(run, tmp_path):
    script = _script(tmp_path / "train.py", TRAIN)
    done = run("--telemetry", "python", script, "fromage")
    assert done.returncode == 0, done.stderr
    assert "'relative_update/matrix'" in done.stdout
    lines = (tmp_path / "out" / "telemetry.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["kind"] for line in lines[:3]] == ["run", "step", "step"]
    # What a card, a report and a comparison have to know.
    record = json.loads((tmp_path / "out" / "relopt_run.json").read_text(encoding="utf-8"))
    assert record["optimizer"]["name"] == "fromage" and record["finished"]


@pytest.mark.parametrize(
    ("before", "telemetry"), [({}, True), ({"HF_RELOPT_TELEMETRY": "1"}, False)]
)
def test_telemetry_is_asked_for_by_a_variable_that_nested_commands_keep(before, telemetry):
    assert child_environment(before, telemetry)["HF_RELOPT_TELEMETRY"] == "1"
    assert "HF_RELOPT_TELEMETRY" not in child_environment({})


def test_pythonpath_gets_the_folder_in_front_once():
    first = child_environment({"PATH": "p"})
    assert first == {"PATH": "p", "PYTHONPATH": str(AUTOLOAD)}
    second = child_environment({"PYTHONPATH": os.pathsep.join(["a", str(AUTOLOAD), "b"])})
    assert second["PYTHONPATH"].split(os.pathsep) == [str(AUTOLOAD), "a", "b"]


def test_the_folder_holds_nothing_but_the_start_up_file():
    assert [path.name for path in AUTOLOAD.iterdir() if path.name != "__pycache__"] == [
        "sitecustomize.py"
    ]


def test_a_script_knows_the_optimizer_and_its_help_lists_the_names(run, tmp_path):
    done = run("python", _script(tmp_path / "ask.py", ASK), "--help")
    assert (done.returncode, done.stderr) == (0, "")
    first, _, shown = done.stdout.partition("\n")
    assert first == "optim is fromage madam"
    assert "usage: ask.py" in shown and "fromage" in shown and "madam" in shown


def test_children_of_children_know_it(run, tmp_path):
    ask = _script(tmp_path / "ask.py", ARMED)
    source = f"""
        import subprocess, sys
        code = "import subprocess, sys; sys.exit(subprocess.call([sys.executable, {str(ask)!r}]))"
        sys.exit(subprocess.call([sys.executable, "-c", code]))
    """
    done = run("python", _script(tmp_path / "launch.py", source))
    assert done.returncode == 0, done.stderr
    assert done.stdout == "armed: True\n"


@pytest.mark.dist
@pytest.mark.slow
def test_torchrun_passes_it_to_every_rank(run, tmp_path):
    ask = _script(tmp_path / "ask.py", ARMED)
    done = run("torchrun", "--standalone", "--nproc_per_node", "2", ask)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("armed: True") == 2


@pytest.mark.slow
def test_accelerate_launch_passes_it_on(run, tmp_path):
    ask = _script(tmp_path / "ask.py", ARMED)
    answers = {
        "num_processes": 1,
        "num_machines": 1,
        "mixed_precision": "no",
        "dynamo_backend": "no",
    }
    done = run("accelerate", "launch", *(f"--{key}={answers[key]}" for key in answers), ask)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("armed: True") == 1


@pytest.mark.slow
def test_trl_lists_the_names(run):
    pytest.importorskip("trl")
    done = run("trl", "sft", "--help")
    assert done.returncode == 0, done.stderr
    assert "fromage" in done.stdout


def test_no_torch_in_either_process(run):
    done = run("python", "-c", "pass", env={"PYTHONPROFILEIMPORTTIME": "1"})
    assert done.returncode == 0
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert {"typer", "sitecustomize"} <= loaded  # both processes reported
    assert not {name for name in loaded if name.split(".")[0] in {"torch", "transformers"}}


def test_child_loads_nothing_of_ours_before_transformers(run):
    code = "import sys; print(sorted(m for m in sys.modules if m.split('.')[0] == 'hf_relopt'))"
    done = run("python", "-c", code)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_the_environment_s_own_sitecustomize_still_runs(run, tmp_path):
    own = tmp_path / "own"
    own.mkdir()
    _script(own / "sitecustomize.py", "import sys\nsys.the_own_one_ran = __file__\n")
    code = textwrap.dedent(ARMED)
    code += "import sitecustomize; print(sys.the_own_one_ran == sitecustomize.__file__)"
    paths = os.pathsep.join([str(own), str(ROOT)])
    done = run("python", "-c", code, env={"PYTHONPATH": paths})
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "armed: True\nTrue\n"


def test_an_error_in_the_own_sitecustomize_is_told_as_ever(run, tmp_path, environment):
    own = tmp_path / "own"
    own.mkdir()
    _script(own / "sitecustomize.py", "raise ValueError('mine')\n")
    paths = os.pathsep.join([str(own), str(ROOT)])
    without = subprocess.run(
        [sys.executable, "-c", "print(1)"],
        env={**environment, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    done = run("python", "-c", "print(1)", env={"PYTHONPATH": paths})
    assert "ValueError: mine" in done.stderr
    assert (done.returncode, done.stdout) == (without.returncode, without.stdout) == (0, "1\n")
    # Two processes say so: ours and the command's.
    assert done.stderr == without.stderr * 2


def test_two_installations_chain_and_end(run, tmp_path):
    other = tmp_path / "other" / "hf_relopt"
    shutil.copytree(AUTOLOAD, other / "autoload")
    shutil.copy(AUTOLOAD.parent / "import_hook.py", other)
    paths = os.pathsep.join([str(other / "autoload"), str(ROOT)])
    done = run("python", "-c", "print(1)", env={"PYTHONPATH": paths}, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")


def test_nested_run_is_the_same_as_one(run, tmp_path):
    ask = _script(tmp_path / "ask.py", ARMED)
    done = run(*MAIN, "run", "python", ask)
    assert (done.returncode, done.stdout) == (0, "armed: True\n"), done.stderr


def test_python_without_hf_relopt_goes_on_and_says_so(environment, tmp_path, bare_python):
    source = """
        from transformers.training_args import OptimizerNames
        OptimizerNames("adamw_torch")
        print("went on", flush=True)
        OptimizerNames("fromage")
    """
    script = _script(tmp_path / "plain.py", source)
    # Started in the source folder, our process finds the package there, and its child does not.
    environment.pop("PYTHONPATH")
    done = subprocess.run(
        [*MAIN, "run", bare_python, script],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    first, *others = done.stderr.splitlines()
    assert first == (
        f"hf-relopt: --optim fromage and madam are not available: {bare_python} cannot import "
        "hf_relopt. Install it there, or start the command with the Python that has it."
    )
    assert not [line for line in others if line.startswith("hf-relopt")]
    assert (done.returncode, done.stdout) == (1, "went on\n")
    assert "fromage is not a valid OptimizerNames" in others[-1]


@pytest.mark.parametrize("code", [0, 1, 2, 77])
def test_exit_code_is_the_command_s_own(run, code):
    assert run("python", "-c", f"import sys; sys.exit({code})").returncode == code


def test_options_after_the_command_are_the_command_s(run):
    done = run("python", "-c", "import sys; print(sys.argv[1:])", "--help", "-h", "--", "--version")
    assert done.stdout == "['--help', '-h', '--', '--version']\n"


def test_a_double_dash_before_the_command_is_allowed(run):
    assert run("--", "python", "-c", "print(1)").stdout == "1\n"


def test_no_command_is_a_usage_error(run):
    done = run()
    assert done.returncode == 2
    assert "Usage: hf-relopt run" in done.stderr and "CMD" in done.stderr


def test_unknown_command_is_one_clear_line(run):
    done = run("no-such-command-here", "--option")
    assert done.returncode == 127
    assert done.stderr == "hf-relopt: no-such-command-here: command not found\n"


@needs_exec
def test_what_cannot_be_run_is_one_clear_line(run, tmp_path):
    plain = _script(tmp_path / "plain.sh", "echo hi\n")
    done = run(plain)
    assert done.returncode == 126
    assert done.stderr == f"hf-relopt: {plain}: permission denied (is it executable?)\n"
    orphan = _script(tmp_path / "orphan.sh", "#!/no/such/interpreter\n")
    orphan.chmod(0o755)
    done = run(orphan)
    assert done.returncode == 127
    assert "interpreter" in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("command", "switch"),
    [
        ("python -I train.py", "I"),
        ("python3.12 -sE train.py", "E"),
        ("/usr/bin/python3 -u -S train.py", "S"),
        ("python -W error -X dev -I train.py", "I"),
        ("python -Werror -Xutf8 -BE", "E"),
        ("pypy3 -S train.py", "S"),
        ("env A=1 nice -n 5 python -bIu train.py", "I"),
        ("accelerate launch --no_python python -S train.py", "S"),
        ("python -W -I train.py", None),  # a value, if a strange one
        ("python -P -s -u train.py -I", None),
        ("python -m torch.distributed.run -E -S", None),
        ("python -bm module -I", None),
        ("python -c pass -S", None),
        ("python", None),
        ("torchrun train.py --with python -I", None),
        ("ls -S", None),
    ],
)
def test_switches_that_hide_our_start_up_file_are_seen(command, switch):
    assert hiding_switch(command.split()) == switch


@pytest.mark.parametrize("switch", ["-I", "-E", "-S"])
def test_a_python_that_would_not_know_us_is_refused_with_the_reason(run, switch):
    done = run("python", "-u", switch, "-c", "print(1)")
    assert (done.returncode, done.stdout) == (126, "")
    (line,) = done.stderr.splitlines()
    for words in (f"Python's {switch} switches off", f"Leave {switch} out", "`import hf_relopt`"):
        assert words in line


@needs_exec
def test_a_script_whose_first_line_hides_us_is_refused(run, tmp_path):
    script = _script(tmp_path / "tool", f"#!{sys.executable} -sE\nprint(1)\n")
    script.chmod(0o755)
    assert shebang(str(script)) == [sys.executable, "-sE"]
    done = run(script)
    assert (done.returncode, done.stdout) == (126, "")
    assert f"hf-relopt: {script}: Python's -E switches off PYTHONPATH" in done.stderr
    assert shebang(sys.executable) == shebang(str(tmp_path)) == []


OURS = """
    import sys
    from hf_relopt.errors import ConfigError

    def check():
        raise ConfigError("p_bound is -1; fromage takes a number > 0. Use 2.0.")

    check()
"""


def test_our_own_errors_end_in_one_message_and_the_exit_code_stays(run, tmp_path):
    done = run("python", _script(tmp_path / "train.py", OURS))
    assert done.returncode == 1
    assert done.stderr == (
        "hf-relopt: ConfigError: p_bound is -1; fromage takes a number > 0. Use 2.0.\n"
        "(train.py, line 6; HF_RELOPT_TRACEBACK=1 shows the traceback)\n"
    )
    done = run("python", tmp_path / "train.py", env={"HF_RELOPT_TRACEBACK": "1"})
    assert (done.returncode, done.stderr.count("Traceback")) == (1, 1)
    assert "hf_relopt.errors.ConfigError: p_bound is -1" in done.stderr


def test_errors_of_others_and_scripts_that_import_us_have_python_s_way(run, tmp_path, environment):
    others = _script(tmp_path / "others.py", "raise ValueError('p_bound')\n")
    done = run("python", others)
    assert (done.returncode, done.stderr.count("Traceback")) == (1, 1)
    ours = _script(tmp_path / "train.py", OURS)
    plain = subprocess.run([sys.executable, ours], env=environment, capture_output=True, text=True)
    assert (plain.returncode, plain.stderr.count("Traceback")) == (1, 1)
    # A script's own hook is asked first, and may call the one before it.
    own = "import sys\nbefore = sys.excepthook\n"
    own += "sys.excepthook = lambda *seen: (print('seen', flush=True), before(*seen))\n"
    both = _script(tmp_path / "both.py", own + textwrap.dedent(OURS))
    done = run("python", both)
    assert (done.returncode, done.stdout) == (1, "seen\n")
    assert "Traceback" not in done.stderr and "ConfigError: p_bound is -1" in done.stderr


@needs_exec
def test_python_is_the_one_that_the_shell_would_take(run, tmp_path):
    fake = _script(tmp_path / "python", "#!/bin/sh\necho the first on PATH: $*\n")
    fake.chmod(0o755)
    path = os.pathsep.join([str(tmp_path), os.environ["PATH"]])
    assert run("python", "-V", env={"PATH": path}).stdout == "the first on PATH: -V\n"


@needs_exec
def test_signals_reach_the_command_itself(environment, tmp_path):
    code = "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(33));"
    code += "print('ready', flush=True); time.sleep(60)"
    child = subprocess.Popen(
        [*MAIN, "run", "python", "-c", code], env=environment, stdout=subprocess.PIPE, text=True
    )
    with child:
        assert child.stdout.readline() == "ready\n"
        child.send_signal(signal.SIGTERM)
        assert child.wait(timeout=30) == 33


@needs_exec
def test_without_exec_signals_and_exit_codes_are_passed_on(environment):
    """The way of Windows, tried here: a child that is waited for."""
    code = f"""
        import os, sys
        from hf_relopt.cli.run import run_and_wait
        inner = "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(33));"
        inner += "print('ready', flush=True); time.sleep(60)"
        sys.exit(run_and_wait([{sys.executable!r}, "-c", inner], os.environ))
    """
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    with child:
        assert child.stdout.readline() == "ready\n"
        child.send_signal(signal.SIGTERM)
        assert child.wait(timeout=30) == 33


@needs_exec
def test_without_exec_a_killed_child_gives_the_shell_s_code():
    before = signal.getsignal(signal.SIGTERM)
    kill = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    assert run_and_wait([sys.executable, "-c", kill], os.environ) == 128 + signal.SIGKILL
    assert run_and_wait([sys.executable, "-c", "raise SystemExit(5)"], os.environ) == 5
    assert signal.getsignal(signal.SIGTERM) is before


def test_start_up_costs_next_to_nothing(run, environment):
    """Reported, not asserted to the millisecond: a start-up must not gain a heavy import."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", "pass"], env=environment, check=True)
    plain = time.perf_counter() - started
    started = time.perf_counter()
    assert run("python", "-c", "pass").returncode == 0
    print(f"python: {plain:.3f} s; under hf-relopt run: {time.perf_counter() - started:.3f} s")
