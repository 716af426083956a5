"""The gate gets its browser: `.ci/chromium` among commands that answer as a test wants."""

import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / ".ci" / "chromium"
FAILS_ONCE = '[ "$1" = update ] || [ -e tried ] || { touch tried; exit 100; }'
ROOT, PERSON = "echo 0", "echo 1000"


def run(folder: Path, **commands: str) -> tuple[int, list[str], str]:
    """Its exit code, what it called, and what it said, where there are these commands and no others."""
    there = folder / "bin"
    there.mkdir()
    for name in ("bash", "env", "touch"):
        (there / name).symlink_to(str(shutil.which(name)))
    for name, body in commands.items():
        command = there / name.replace("_", "-")
        command.write_text(f'#!{shutil.which("bash")}\n[ {name} = id ] || echo "{name} $*" >> called\n{body}\n')
        command.chmod(0o755)
    done = subprocess.run(
        [SCRIPT],
        cwd=folder,
        env={"PATH": str(there)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    called = folder / "called"
    return done.returncode, called.read_text().splitlines() if called.exists() else [], done.stderr


def test_a_browser_that_is_there_is_left_alone(tmp_path: Path) -> None:
    assert run(tmp_path, chromium="", apt_get="", id=ROOT) == (0, [], "")


def test_the_browser_is_installed_where_there_is_none(tmp_path: Path) -> None:
    code, called, _ = run(tmp_path, apt_get='[ "$DEBIAN_FRONTEND" = noninteractive ]', id=ROOT)

    assert code == 0
    assert called == ["apt_get update --quiet=2", "apt_get install --yes --quiet=2 chromium"]


def test_an_installation_that_fails_is_tried_once_more(tmp_path: Path) -> None:
    code, called, _ = run(tmp_path, apt_get=FAILS_ONCE, id=ROOT)

    assert code == 0
    assert [line.split()[1] for line in called] == ["update", "install"] * 2


def test_one_that_fails_twice_says_what_to_do(tmp_path: Path) -> None:
    code, called, said = run(tmp_path, apt_get="echo E: no mirror >&2; exit 100", id=ROOT)

    assert (code, len(called)) == (1, 2)
    assert "E: no mirror" in said
    assert (
        "twice; its own words are above. Install a browser and run this again: apt-get install --yes chromium" in said
    )


def test_who_is_not_root_installs_by_a_sudo_that_asks_nothing(tmp_path: Path) -> None:
    code, called, _ = run(tmp_path, apt_get="", id=PERSON, sudo='[ "$2" = true ] || { shift; "$@"; }')

    assert code == 0
    assert called[0] == "sudo -n true"
    assert called[1] == "sudo -n env DEBIAN_FRONTEND=noninteractive apt-get update --quiet=2"


@pytest.mark.parametrize("sudo", [{}, {"sudo": "exit 1"}], ids=["no sudo", "a sudo that asks"])
def test_who_may_not_install_is_told(tmp_path: Path, sudo: dict[str, str]) -> None:
    code, _, said = run(tmp_path, apt_get="", id=PERSON, **sudo)

    assert code == 1
    assert "expected root or a sudo that asks no password, found neither" in said


def test_another_system_is_told_what_is_needed(tmp_path: Path) -> None:
    code, _, said = run(tmp_path, id=ROOT)

    assert code == 1
    assert "The browser tests need chromium, and there is no apt-get here" in said
