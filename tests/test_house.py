"""The house holds: floors, one clock, one vocabulary, light imports. Each look is tried on a planted offence too."""

import ast
import inspect
import json
import pydoc
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import rqlab
from rqlab.fields import explained

ROOT = Path(rqlab.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

#: Who may know `rqlab.clock`: the front door, and what stands beside or above it.
CLOCK_READERS = {
    "queues.py", "supervisor.py", "cli.py", "demo.py", "tables.py", "testing.py",
    "measurement/callers.py", "measurement/cuts.py", "measurement/kills.py", "measurement/machine.py",
    "measurement/progress.py", "exploration/__init__.py", "exploration/hunting.py",
    "widgets/ticker.py", "widgets/handle.py", "widgets/controller.py", "widgets/process.py", "widgets/view.py",
    "widgets/workload.py", "widgets/lab.py", "widgets/explorer.py", "widgets/measurer.py",
}  # fmt: skip
CLOCKS = {"time", "sched", "timeit"}  # modules that tell the time, or pass it
CHANCE = {"random", "secrets", "uuid"}  # modules that draw numbers
#: Attributes by which other modules tell the time or draw numbers: datetime.now(), os.urandom().
TELLS = {"now", "utcnow", "today", "urandom", "getrandom", "monotonic", "perf_counter", "time_ns", "clock_gettime"}
ALLOWED = {
    "clock.py": CLOCKS,
    "storage/locks.py": {"time"},  # sleeps between two looks at a lock of another process; measures nothing
    "queues.py": CHANCE,  # ids and jitter are drawn at the front door
    "measurement/kills.py": {"random"},  # the moment of a kill
    "measurement/paced.py": {"random"},  # from the seed that it is given
    "measurement/whereabouts.py": {"random"},  # the same
    "power_cut.py": {"random"},  # the same
    "simulation/run.py": {"secrets"},  # the seed, where none is given
    "simulation/recorder.py": {"random"},  # from the seed that it is given
    "simulation/platter.py": {"random"},  # from the seed of a cut
}


def offences(source: str, file: str) -> list[str]:
    """Where a file reads a clock or draws a number that it may not."""
    allowed = ALLOWED.get(file, set())
    found = []
    for node in ast.walk(ast.parse(source)):
        modules = []
        if isinstance(node, ast.Import):
            modules = [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [node.module or ""]
            if "clock" in {node.module, *(name.name for name in node.names)} or node.module == "rqlab.clock":
                found += [] if file in CLOCK_READERS else [f"{file}:{node.lineno} imports rqlab.clock"]
        wrong = [name for name in modules if name.split(".")[0] in (CLOCKS | CHANCE) - allowed]
        found += [f"{file}:{node.lineno} imports {name}" for name in wrong if hasattr(node, "lineno")]
        called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
        owner, _, name = called.rpartition(".")
        if name in TELLS and called != "now" and owner != "clock" and file != "clock.py":  # our own clock: see above
            found.append(f"{file}:{node.lineno} calls {called}")
    return found


@pytest.mark.parametrize("file", [str(path.relative_to(ROOT)) for path in FILES])
def test_only_the_clock_reads_a_clock_and_only_the_front_door_draws_numbers(file: str) -> None:
    assert offences((ROOT / file).read_text(), file) == []


@pytest.mark.parametrize(
    "planted",
    [
        "import time", "from time import monotonic", "import random", "from secrets import token_hex", "import uuid",
        "from rqlab import clock", "from rqlab.clock import now", "import datetime\ndatetime.datetime.now()",
        "from datetime import datetime, UTC\ndatetime.now(UTC)", "import os\nos.urandom(8)",
        "def f():\n    import time as t", "from datetime import date\ndate.today()",
        "from os import urandom\nurandom(8)",
    ],
)  # fmt: skip
def test_the_look_for_clocks_would_notice(planted: str) -> None:
    for file in ("engine.py", "storage/memory.py", "worker.py", "lifecycle.py"):
        assert offences(planted, file)


def test_what_is_allowed_is_there() -> None:
    """A list of exceptions that names nobody any more hides the next offence."""
    for file, modules in ALLOWED.items():
        source = (ROOT / file).read_text()
        assert any(f"import {module}" in source for module in modules), file


def test_the_floors_hold() -> None:
    linted = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"],
        cwd=ROOT.parent, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip

    assert linted.returncode == 0, linted.stdout + linted.stderr
    assert "0 broken" in linted.stdout


def test_no_import_goes_round_the_floors_for_types() -> None:
    """What is imported under TYPE_CHECKING is none of ours: else the thing lives on the wrong floor.

    The package itself stands above all floors: there it is for names that are imported at first use.
    """
    for path in set(FILES) - {ROOT / "__init__.py"}:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                for inner in node.body:
                    assert "rqlab" not in ast.unparse(inner), path


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_opens_with_why_it_exists(path: Path) -> None:
    docstring = ast.get_docstring(ast.parse(path.read_text()))

    assert docstring
    assert docstring.splitlines()[0].rstrip().endswith((".", "?", "!", ":")) or len(docstring.split("\n\n")[0]) > 60


HEAVY = ("pandas", "numpy", "matplotlib", "ipywidgets", "typer", "rich", "asyncio", "prometheus_client", "cloudpickle")


@pytest.mark.parametrize("statement", ["import rqlab", "import rqlab; rq = rqlab.memory(); rq.push('q', 'n'); rq.pull('q')"])  # fmt: skip # noqa: E501
def test_import_rqlab_loads_nothing_heavy(statement: str) -> None:
    code = f"{statement}; import json, sys; print(json.dumps(sorted(sys.modules)))"
    loaded = json.loads(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout
    )

    assert "rqlab.queues" in loaded
    assert [name for name in HEAVY if name in loaded] == []


# The vocabulary.

FORBIDDEN = {"task", "tasks", "claim", "claims", "claimed", "nack", "reaper", "reap", "message", "messages", "msg"}
UNCLEAR = {"ts", "prio", "cfg", "mgr", "utils", "helpers", "common"}
#: `progress(job, percent, message)` is words for people, and the contract's own name.
WORDS_FOR_PEOPLE = {("progress", "message"), ("Progress", "message")}


def public_names(source: str, file: str) -> Iterator[tuple[str, str]]:
    """(where, name) of every file, class, function, parameter, constant and field that is not private."""
    yield file, Path(file).stem
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield file, node.name
            for item in node.body:
                field = ast.unparse(item.target) if isinstance(item, ast.AnnAssign) else ""
                if (node.name, field) not in WORDS_FOR_PEOPLE:
                    yield f"{file} {node.name}", field
                if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef) and not item.name.startswith("_"):
                    yield from of_function(item, f"{file} {node.name}")
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            yield from of_function(node, file)
        for target in node.targets if isinstance(node, ast.Assign) else []:
            if isinstance(target, ast.Name):
                yield file, target.id


def of_function(node: ast.FunctionDef | ast.AsyncFunctionDef, where: str) -> Iterator[tuple[str, str]]:
    yield where, node.name
    for parameter in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]:
        if (node.name, parameter.arg) not in WORDS_FOR_PEOPLE:
            yield f"{where} {node.name}()", parameter.arg


def second_words(source: str, file: str) -> list[str]:
    wrong = []
    for where, name in public_names(source, file):
        spaced = "".join(f"_{letter}" if letter.isupper() and not name.isupper() else letter for letter in name)
        wrong += [f"{where}: {name}" for word in spaced.lower().split("_") if word in FORBIDDEN | UNCLEAR]
    return wrong


@pytest.mark.parametrize("file", [str(path.relative_to(ROOT)) for path in FILES])
def test_there_is_one_word_for_each_thing(file: str) -> None:
    assert second_words((ROOT / file).read_text(), file) == []


@pytest.mark.parametrize(
    "planted",
    [
        "class TaskRunner: pass", "def claim_job(): pass", "def push(message): pass", "MAX_TASKS = 5",
        "class Job:\n    msg: str", "class Queue:\n    def nack(self): pass",
    ],
)  # fmt: skip
def test_the_look_for_second_words_would_notice(planted: str) -> None:
    assert second_words(planted, "queues.py")
    assert second_words("", "storage/utils.py")


# What is public.


def test_everything_public_is_there_and_has_a_docstring() -> None:
    for name in rqlab.__all__:
        public = getattr(rqlab, name)
        if inspect.isclass(public) or inspect.isfunction(public):
            assert public.__doc__, name
            assert not public.__doc__.startswith(f"{name}("), f"{name} has only a generated docstring"
    for name, method in inspect.getmembers(rqlab.Queues, inspect.isfunction):
        assert name.startswith("_") or method.__doc__, name


def test_the_front_door_has_the_names_of_the_contract() -> None:
    names = """push push_many pull ack ack_many fail heartbeat progress release get jobs frame counts queues
        get_dlq_jobs cancel requeue requeue_all purge pause resume schedule schedules pause_schedule resume_schedule
        unschedule run_worker worker start_housekeeping tick metrics on_change drain backup vacuum flush close"""

    assert [name for name in names.split() if not callable(getattr(rqlab.Queues, name, None))] == []
    with rqlab.memory() as rq:
        assert (rq.path, rq.durability) == (None, "memory")


def test_the_arguments_of_push_are_those_of_the_contract() -> None:
    parameters = inspect.signature(rqlab.Queues.push).parameters
    contract = {
        "queue": inspect.Parameter.empty, "name": inspect.Parameter.empty, "data": None, "priority": 0, "delay": None,
        "max_attempts": 3, "backoff": "exponential", "backoff_delay": 1.0, "max_backoff": 86400, "jitter": 0.0,
        "timeout": None, "ttl": None, "unique_key": None, "on_conflict": "raise", "tags": (), "metadata": None,
        "remove_on_complete": False,
    }  # fmt: skip

    assert {name: each.default for name, each in parameters.items() if name != "self"} == contract
    assert all(parameters[name].kind is inspect.Parameter.KEYWORD_ONLY for name in list(contract)[3:])


def test_every_field_of_the_job_says_what_it_is() -> None:
    source = (ROOT / "job.py").read_text()
    (job,) = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.name == "Job"]
    lines = source.splitlines()
    fields = [node for node in job.body if isinstance(node, ast.AnnAssign)]

    assert len(fields) == len(rqlab.Job.__struct_fields__)
    assert [ast.unparse(field) for field in fields if "#: " not in lines[field.lineno - 1]] == []


@pytest.mark.parametrize("record", [rqlab.Job, rqlab.Delivery, rqlab.Schedule, rqlab.Change])
def test_help_shows_the_sentence_of_every_field_that_has_one(record: type) -> None:
    source = inspect.getsource(record)
    sentences = re.findall(r"^    (\w+):.*#: (.+)$", source, re.MULTILINE)
    shown = pydoc.plain(pydoc.render_doc(record))

    assert len(sentences) > 1
    assert [name for name, sentence in sentences if f"`{name}`: {sentence}" not in shown] == []
    assert inspect.getdoc(record) == record.__doc__, "one indentation for all of it"


def test_a_class_whose_source_or_docstring_is_not_there_stays_as_it_is() -> None:
    bare = type("Bare", (), {"__module__": "rqlab.fields"})
    unknown = type("Unknown", (), {"__module__": "rqlab.fields", "__doc__": "Kept."})

    assert explained(bare).__doc__ is None
    assert explained(unknown).__doc__ == "Kept."
