"""The notebooks keep their rules: clean, short, one question each, and with an answer. `make test` runs them apart.

Each look is tried on a planted offence too.
"""

import ast
import re
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

import rqlab

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
FILES = sorted(NOTEBOOKS.glob("*.ipynb"))
STRIP = (sys.executable, "-m", "nbstripout", "--extra-keys", "metadata.language_info")  # as `make strip`
MOST_LINES, MEDIAN_LINES = 10, 3
DEADLINE_SECONDS = 60.0

QUESTIONS = {
    "00_first_queue": "How do I push a job, run it, and see what happened?",
    "01_kill_a_worker": "What happens to a job when its worker is killed with SIGKILL?",
    "02_retries_and_backoff": "When is a job tried again, and when does it give up?",
    "03_what_does_durable_mean": "Why is kill −9 not a power cut?",
    "04_durability_tradeoffs": "What does each mode cost, and what does it lose?",
    "05_simulate_crashes": "Can I run a thousand crashes before lunch, and trust them?",
    "06_scrub_a_crash": "What was on the disk when the power went?",
    "07_exactly_once_is_a_lie": "Is my handler idempotent?",
    "08_schedules_and_clocks": "When do schedules run, and what when the clock jumps?",
    "09_graceful_shutdown": "How do I stop a worker without losing or charging anything?",
    "10_beat_the_queue": "Can you make it lose an acknowledged job?",
    "11_audit_your_queue": "Which other queues lose acknowledged jobs at a power cut?",
}

#: What no code cell may contain, and why.
FORBIDDEN = {
    r"^\s*[!%]": "magic and shell lines run in a notebook alone",
    r"\bpip\b": "it installs something",
    r"\bpyplot\b|\bplt\b": "pyplot spoils figures in click handlers",
    r"\bCI\b|environ|getenv": "the same code runs in CI and for people",
    r"https?://(?!127\.0\.0\.1)": "it needs a network",
    r"/tmp\b|/home\b|/root\b|/work\b|/Users\b|/var\b": "a path of one machine",
    r"\bsleep\(": "it waits and hopes",
    r"display\(": "what matters is the cell's value",
}


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def code(notebook: Any) -> list[str]:
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def offences(notebook: Any, question: str) -> list[str]:
    """What a notebook does that it should not."""
    cells, sources = notebook.cells, code(notebook)
    lengths = [len(source.splitlines()) for source in sources]
    found = [
        f"{why}: {line.strip()}"
        for source in sources
        for line in source.splitlines()
        for pattern, why in FORBIDDEN.items()
        if re.search(pattern, line)
    ]
    said = {
        "the first cell asks its question and answers it": cells[0].cell_type == "markdown"
        and cells[0].source.startswith(f"# {question}")
        and "**Answer.**" in cells[0].source,
        "the last cell answers again": cells[-1].cell_type == "markdown" and "**So:**" in cells[-1].source,
        f"half of the code cells have {MEDIAN_LINES} lines at most": statistics.median(lengths) <= MEDIAN_LINES,
        f"no code cell has more than {MOST_LINES}": max(lengths) <= MOST_LINES,
        "the last code cell asserts what was claimed": sources[-1].startswith("assert "),
        "somewhere one predicts": any("**Predict:**" in cell.source for cell in cells),
        "it sets an exercise": any(re.search(r"rqlab\.check_\w+\(", source) for source in sources),
    }
    return found + [f"not so: {what}" for what, holds in said.items() if not holds]


def dirt(notebook: Any) -> list[str]:
    """What is stored that should not be."""
    found = [f"cell {cell.id} has outputs" for cell in notebook.cells if cell.get("outputs")]
    found += [f"cell {cell.id} has been counted" for cell in notebook.cells if cell.get("execution_count")]
    found += [f"cell {cell.id} has metadata" for cell in notebook.cells if cell.metadata]
    found += [f"metadata.{key}" for key in notebook.metadata if key != "kernelspec"]
    if notebook.metadata.get("kernelspec", {}).get("name") != "python3":
        found.append("another kernel than python3")
    if [cell.id for cell in notebook.cells] != [str(number) for number in range(len(notebook.cells))]:
        found.append("ids that change with each save")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_notebook_is_short_asks_one_question_and_answers_it(path: Path) -> None:
    assert offences(read(path), QUESTIONS[path.stem]) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_notebook_is_stored_clean(path: Path) -> None:
    assert dirt(read(path)) == [], "make strip"


def test_make_strip_would_change_nothing() -> None:
    stripped = subprocess.run(
        [*STRIP, "--verify", *map(str, FILES)], capture_output=True, text=True, timeout=DEADLINE_SECONDS
    )

    assert stripped.returncode == 0, stripped.stdout


def test_make_strip_cleans_what_jupyter_leaves(tmp_path: Path) -> None:
    used = read(FILES[0])
    used.metadata.update(widgets={"state": {}}, language_info={"name": "python", "version": "3.11.7"})
    for cell in used.cells:
        cell.id = f"random{cell.id}"
        if cell.cell_type == "code":
            cell.update(execution_count=3, outputs=[nbformat.v4.new_output("stream", text="said")])
            cell.metadata["execution"] = {"iopub.status.busy": "2026-01-01T00:00:00Z"}
    path = tmp_path / "used.ipynb"
    nbformat.write(used, path)

    subprocess.run([*STRIP, str(path)], check=True, timeout=DEADLINE_SECONDS)

    assert len(dirt(used)) > len(used.cells)
    assert read(path) == read(FILES[0])


@pytest.mark.parametrize(
    "planted",
    [
        "!ls", "%pip install rqlab", "import matplotlib.pyplot as plt", "if os.environ['CI']: pass", "time.sleep(1)",
        "open('/tmp/jobs')", "urlopen('https://example.org')", "\n".join(["x = 1"] * 11), "print('no assert')",
    ],
)  # fmt: skip
def test_the_look_at_notebooks_would_notice(planted: str) -> None:
    notebook = read(FILES[0])
    notebook.cells.insert(-1, nbformat.v4.new_code_cell(planted))

    assert offences(notebook, QUESTIONS[FILES[0].stem])


def test_the_notebooks_are_those_of_the_teachers_page() -> None:
    page = (NOTEBOOKS / "README.md").read_text()

    assert [path.stem for path in FILES] == list(QUESTIONS)
    for stem, question in QUESTIONS.items():
        assert f"| [{stem}]({stem}.ipynb) | {question} |" in page


def test_every_notebook_sets_its_exercise() -> None:
    for path in FILES:
        called = re.findall(r"rqlab\.check_(\w+)\(", "\n".join(code(read(path))))

        asked = [name for name, row in rqlab.EXERCISES.items() if row.notebook == path.stem]
        assert list(dict.fromkeys(called)) == asked


def test_the_code_of_a_notebook_is_python() -> None:
    for path in FILES:
        for source in code(read(path)):
            ast.parse(source)


def test_links_between_notebooks_lead_somewhere() -> None:
    for path in [*FILES, *NOTEBOOKS.glob("*.md")]:
        text = path.read_text() if path.suffix == ".md" else "\n".join(cell.source for cell in read(path).cells)
        for target in re.findall(r"\]\(([^)#]+)\)", text):
            assert target.startswith("https://") or (NOTEBOOKS / target).exists(), f"{path.name}: {target}"


def test_a_notebook_that_leaves_a_process_or_a_file_fails(tmp_path: Path) -> None:
    """The look in notebooks/conftest.py, on a process that has left its kernel's session."""
    (tmp_path / "conftest.py").write_text((NOTEBOOKS / "conftest.py").read_text())
    planted = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(LEAVES_A_PROCESS)])
    nbformat.write(planted, tmp_path / "leaves.ipynb")

    run = subprocess.run(
        [sys.executable, "-m", "pytest", "--nbmake", "--nbmake-kernel=python3", "-p", "no:cacheprovider", "."],
        cwd=tmp_path, capture_output=True, text=True, timeout=DEADLINE_SECONDS,
    )  # fmt: skip
    left = int((tmp_path / "pid").read_text())

    assert run.returncode == 1, run.stdout
    assert "left behind: sleep 20, forgotten" in run.stdout, left


LEAVES_A_PROCESS = """
import subprocess, tempfile
from pathlib import Path
left = subprocess.Popen(["sleep", "20"], start_new_session=True)
Path("pid").write_text(str(left.pid))
Path(tempfile.gettempdir(), "forgotten").touch()
"""


def opens(notebook: Any) -> bool:
    """Whether it opens something that it must close: queues, a lab, an explorer."""
    return any(re.search(r"rqlab\.(open|memory|lab|explorer)\(", source) for source in code(notebook))


#: What is left of ours, as the kernel itself sees it.
LEFT_IN_THE_KERNEL = """
import psutil, threading
children = [" ".join(each.cmdline()) for each in psutil.Process().children(recursive=True)]
threads = [each.name for each in threading.enumerate() if each.name.startswith("rqlab")]
print(children + threads)
"""


@pytest.mark.timeout(300)  # seconds; real processes, twice: 26 s while six other things run
@pytest.mark.parametrize("path", [path for path in FILES if opens(read(path))], ids=lambda path: path.stem)
def test_a_notebook_can_be_run_again_in_its_kernel_and_closes_what_it_opened(path: Path) -> None:
    notebook = read(path)
    notebook.cells = [*notebook.cells, *read(path).cells, nbformat.v4.new_code_cell(LEFT_IN_THE_KERNEL)]
    for number, cell in enumerate(notebook.cells):
        cell.id = str(number)

    NotebookClient(notebook, timeout=2 * DEADLINE_SECONDS, kernel_name="python3").execute(cwd=str(NOTEBOOKS))

    printed = [output.text.strip() for output in notebook.cells[-1].outputs if output.output_type == "stream"]
    assert printed == ["[]"]


PRESSED = """
lab.push(3)
lab.settle()
lab.kill("w1")
lab.restart("w1")
lab.wait_until(lambda view: view["crashes"] == 1)
"""


@pytest.mark.timeout(300)  # seconds; real processes: 17 s while six other things run
def test_who_presses_the_buttons_as_invited_can_go_on_with_the_notebook() -> None:
    notebook = read(NOTEBOOKS / "01_kill_a_worker.ipynb")
    shown = next(number for number, cell in enumerate(notebook.cells) if cell.source.endswith("\nlab"))
    notebook.cells.insert(shown + 1, nbformat.v4.new_code_cell(PRESSED))

    NotebookClient(notebook, timeout=2 * DEADLINE_SECONDS, kernel_name="python3").execute(cwd=str(NOTEBOOKS))
