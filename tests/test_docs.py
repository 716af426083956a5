"""The documents are true: every block is run, every table and picture is made from the code.

`python -m tests.test_docs` writes the tables, the markup of pictures, and what `rqlab demo --power` prints.
"""

import inspect
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from functools import cache, partial
from pathlib import Path

import pytest

import rqlab
from fixtures import pictures
from rqlab import documents

ROOT = Path(__file__).parent.parent
README, ARCHITECTURE = ROOT / "README.md", ROOT / "ARCHITECTURE.md"
TEACHERS = ROOT / "notebooks" / "README.md"
REFERENCE = max((ROOT / "fixtures" / "results").glob("v*.json"))
DEADLINE_SECONDS = 90.0
BIN = Path(sys.executable).parent


def transition_table() -> str:
    """TRANSITIONS as a Markdown table."""
    lines = ["| event | from | to | by |", "|---|---|---|---|"]
    for event, row in rqlab.TRANSITIONS.items():
        sources, targets = ", ".join(row.sources) or "–", ", ".join(row.targets) or "gone"
        lines.append(f"| {event.replace('_', ' ')} | {sources} | {targets} | {row.by} |")
    return "\n".join(lines)


def mode_table() -> str:
    """MODES as a Markdown table, with figures of the reference measurement."""
    return documents.measured_promises(rqlab.Measurement.load(REFERENCE))


def exercise_table() -> str:
    """EXERCISES as a Markdown table."""
    rows = []
    for name, row in rqlab.EXERCISES.items():
        takes = ", ".join(inspect.signature(row.check).parameters)
        rows.append(f"| {row.notebook[:2]} | `rqlab.check_{name}({takes})` | {row.asks} |")
    return "\n".join(["| notebook | check | what it asks |", "|---|---|---|", *rows])


@cache
def alt_texts() -> dict[str, str]:
    return pictures.alts()


def picture(name: str) -> str:
    return pictures.markup(name, alt_texts()[name])


TABLES = (
    (README, "MODES", mode_table),
    (ARCHITECTURE, "TRANSITIONS", transition_table),
    (TEACHERS, "EXERCISES", exercise_table),
    *((README, name.upper(), partial(picture, name)) for name in pictures.NAMES),
)


POWER_CUT = re.compile(r"(<!-- POWER: .*?-->\n```text\n)(.*?)(^```$)", re.MULTILINE | re.DOTALL)


def power_cut_demo() -> str:
    """The same in every run: its time is virtual, and its seed is given."""
    run = subprocess.run([BIN / "rqlab", "demo", "--power"], capture_output=True, text=True, timeout=DEADLINE_SECONDS)
    return run.stdout


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", path.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(("path", "name", "table"), TABLES, ids=["modes", "transitions", "exercises", *pictures.NAMES])
def test_a_table_in_a_document_is_made_from_the_code(path: Path, name: str, table: object) -> None:
    assert callable(table)

    found = re.search(rf"<!-- {name}:.*?-->\n(.*?)<!-- /{name} -->", path.read_text(), re.DOTALL)

    assert found is not None
    assert found[1].strip() == table(), "write it anew: python -m tests.test_docs"


PROGRAMS = [(path, number) for path in (README, TEACHERS) for number in range(len(blocks(path, "python")))]


@pytest.mark.parametrize(("path", "number"), PROGRAMS, ids=[f"{path.relative_to(ROOT)}-{n}" for path, n in PROGRAMS])
def test_every_program_in_the_readmes_runs_and_prints_what_it_says(path: Path, number: int, tmp_path: Path) -> None:
    program, printed = blocks(path, "python")[number], blocks(path, "output")[number]

    run = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=DEADLINE_SECONDS
    )

    assert run.returncode == 0, run.stderr
    assert run.stdout == printed


def test_every_make_command_in_the_documents_is_there() -> None:
    commands = [
        line.split("#")[0].strip()
        for path in (README, TEACHERS, ROOT / "CONTRIBUTING.md")
        for block in blocks(path, "sh")
        for line in block.splitlines()
        if line.startswith("make")
    ]

    assert len(commands) >= 5
    for command in commands:
        assert subprocess.run([*shlex.split(command), "--dry-run"], cwd=ROOT, capture_output=True).returncode == 0


def test_the_walkthrough_in_the_readme_is_what_the_demo_prints() -> None:
    (said,) = re.findall(r"<!-- DEMO:.*?-->\n```text\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)

    run = subprocess.run([BIN / "rqlab", "demo"], capture_output=True, text=True, timeout=DEADLINE_SECONDS)

    assert run.returncode == 0, run.stdout + run.stderr
    assert _shape(run.stdout) == _shape(said)


def test_the_power_cut_in_the_readme_is_what_the_demo_prints() -> None:
    ((_, said, _),) = POWER_CUT.findall(README.read_text())

    assert said == power_cut_demo()


def test_the_two_terminal_walkthrough_works_as_written(tmp_path: Path) -> None:
    in_one, in_two = [
        [shlex.split(line, comments=True) for line in block.splitlines()]
        for block in re.findall(r"^```sh\n(.*?)^```$", README.read_text().split("<!-- TERMINALS")[1], re.M | re.S)[:2]
    ]
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}

    def start(command: list[str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL)

    worker = start(in_one[0])
    try:
        pushed = subprocess.run(in_two[0], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
        job_id = pushed.stdout.strip()
        watching = start(in_two[1])
        with rqlab.open(tmp_path / "jobs", read_only=True) as rq:
            _until(lambda: rq.get(job_id).progress >= 30)
            worker.kill()
            worker.wait(DEADLINE_SECONDS)
            worker = start(in_one[0])
            _until(lambda: rq.get(job_id).is_finished)
            job = rq.get(job_id)
        assert watching.poll() is None
        watching.send_signal(signal.SIGINT)
        watching.wait(DEADLINE_SECONDS)
    finally:
        worker.kill()
        worker.wait(DEADLINE_SECONDS)

    assert (job.state, job.attempt, job.deliveries) == (rqlab.State.COMPLETED, 1, 2)


def test_every_command_in_the_readme_is_in_the_help_and_none_is_missing() -> None:
    section = README.read_text().split("## The command line")[1].split("##")[0]
    in_readme = set(re.findall(r"\brqlab ([a-z]+) ", section))

    shown = subprocess.run([BIN / "rqlab", "--help"], capture_output=True, text=True, check=True).stdout

    assert in_readme == set(re.findall(r"^│ ([a-z]+)  ", shown, re.MULTILINE))


def test_links_in_the_documents_lead_somewhere() -> None:
    for path in (README, ARCHITECTURE, ROOT / "CONTRIBUTING.md"):
        for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
            assert target.startswith("https://") or (ROOT / target).exists(), f"{path.name}: {target}"


def test_the_readmes_pictures_are_drawn_as_they_stand_there(tmp_path: Path) -> None:
    """Their words, and their size; bytes differ with fonts. The panel is photographed where there is a chromium."""
    from PIL import Image

    missing = pictures.main(tmp_path)
    drawn = {path.name for path in tmp_path.glob("*.png")}

    assert drawn == {f"{name}-{each}.png" for name in pictures.NAMES for each in ("light", "dark")} or (
        missing and "no chromium" in missing[0] and not os.environ.get("CI")
    )
    for name in drawn:
        with Image.open(tmp_path / name) as new, Image.open(pictures.FOLDER / name) as old:
            slack = 40 if name.startswith("lab") else 8  # pixels: a line of another font is a little higher
            assert all(abs(a - b) <= slack for a, b in zip(new.size, old.size, strict=True)), name
            assert new.info["Description"] == old.info["Description"] == alt_texts()[name.split("-")[0]], name


def test_files_named_in_the_architecture_exist() -> None:
    for name in re.findall(
        r"`((?:tests/|rqlab/|storage/|executors/|simulation/|measurement/|exploration/)?[a-z_]+\.py)`",
        ARCHITECTURE.read_text(),
    ):
        assert any((ROOT / base / name).exists() for base in (".", "rqlab")), name


def _shape(printed: str) -> list[str]:
    """What the lines say, without times, pids, ids and names of directories."""
    printed = re.sub(r"/\S*rqlab-demo-\w+", "DIRECTORY", printed)
    printed = re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "ID", printed)
    printed = re.sub(r"from \S+:\d+:\w+", "from WORKER", printed)
    lines = [re.sub(r"\d+(\.\d+)?", "N", line).strip() for line in printed.splitlines()]
    lines = [re.sub(r"^(N\s+)+", "", re.sub(r"\s+", " ", line)) for line in lines]
    return [line for line in lines if not re.fullmatch(r"progress N %", line)]


def _until(is_so: object) -> None:
    assert callable(is_so)
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not is_so():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.02)


def write_tables() -> None:
    for path, name, table in TABLES:
        pattern = rf"(<!-- {name}:.*?-->\n).*?(<!-- /{name} -->)"
        text = re.sub(pattern, lambda m, t=table: f"{m[1]}{t()}\n{m[2]}", path.read_text(), flags=re.DOTALL)
        path.write_text(text)
    said = power_cut_demo()
    README.write_text(POWER_CUT.sub(lambda m: f"{m[1]}{said}{m[3]}", README.read_text()))


if __name__ == "__main__":
    write_tables()
