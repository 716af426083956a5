"""The wheel is whole: rqlab works without its checkout, with its types."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with nothing but what the wheel brings; its dependencies are those of the test environment."""
    wheels, target = tmp_path_factory.mktemp("wheels"), tmp_path_factory.mktemp("installed")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(wheels), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = wheels.glob("*.whl")
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", str(target), str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    return target


def run(installed: Path, *arguments: str) -> str:
    environment = {"PYTHONPATH": str(installed), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=installed, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_runs_a_job_without_the_checkout(installed: Path) -> None:
    program = (
        "import rqlab; print(rqlab.__file__)\n"
        "with rqlab.open('jobs') as rq:\n"
        "    rq.push('q', 'job'); print(rq.drain('q', lambda job: None)['completed'])\n"
    )

    where, completed = run(installed, "-c", program).split()

    assert where.startswith(str(installed))
    assert completed == "1"


def test_the_wheel_has_the_command_line_and_the_types(installed: Path) -> None:
    assert (
        run(installed, "-m", "rqlab", "--version")
        .strip()
        .endswith(run(installed, "-c", "import rqlab; print(rqlab.__version__)").strip())
    )
    assert (installed / "rqlab" / "py.typed").exists()
    assert not (installed / "tests").exists()


def test_the_wheel_brings_the_pytest_plugin(installed: Path) -> None:
    (installed / "test_application.py").write_text(
        "def test(rq):\n    rq.push('q', 'job')\n    rq.assert_pushed('q')\n"
    )

    assert "1 passed" in run(installed, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_application.py")
