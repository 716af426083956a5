"""Files that rqlab writes itself, under the same power cuts as its directories of jobs."""

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import rqlab
from rqlab import files
from rqlab.files import write_whole
from rqlab.simulation.audit import Audit, audit
from rqlab.simulation.platter import NAME_MODELS

VERSIONS = 4
#: What rqlab writes: a document that grows with its number, into the path that it is given.
WRITERS: dict[str, Callable[[int, Path], None]] = {
    "any": lambda number, path: write_whole(path, b"%d\n" % number * 300),
    "a measurement": lambda number, path: rqlab.Measurement([], {"number": number}).save(path),
    "a history": lambda number, path: rqlab.simulate(0, seed=number, jobs=1, faults=(), store="memory").to_jsonl(path),
}


def audited(write: Callable[[int, Path], None], names: str = "strict") -> Audit:
    """The same file, written again and again: a version that is there in part, or not at all, has lost those before."""
    whole: dict[bytes, int] = {}

    def workload(directory: Path) -> Iterator[int]:
        for number in range(VERSIONS):
            write(number, directory / "kept")
            whole[(directory / "kept").read_bytes()] = number
            yield number

    def survivors(directory: Path) -> range:
        return range(whole[(directory / "kept").read_bytes()] + 1) if (directory / "kept").exists() else range(0)

    return audit(workload, survivors, names=names)


@pytest.mark.parametrize("names", NAME_MODELS)
@pytest.mark.parametrize("what", WRITERS)
def test_what_was_written_is_there_whole_after_any_power_cut(what: str, names: str) -> None:
    found = audited(WRITERS[what], names)

    assert found.ok, str(found)
    assert found.syncs >= 2 * VERSIONS


@pytest.mark.parametrize("forgets", ["the content", "the name"])
def test_a_writer_that_forgets_a_sync_is_caught(forgets: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(fd: int, real: Callable[[int], None] = os.fsync) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode) is (forgets == "the content"):
            real(fd)

    def write(number: int, path: Path) -> None:
        there: Any = SimpleNamespace(**{**vars(os), "fsync": lambda fd: fsync(fd, os.fsync)})
        with monkeypatch.context() as patch:
            patch.setattr(files, "os", there)
            WRITERS["any"](number, path)

    assert not audited(write).ok


def test_an_error_leaves_the_file_that_was_there_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_whole(tmp_path / "kept", b"before")
    monkeypatch.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        write_whole(tmp_path / "kept", b"after")

    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"kept": b"before"}


def test_a_link_stays_a_link_and_a_pipe_is_written_to(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("kept")
    write_whole(tmp_path / "link", b"content")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "kept").read_bytes() == b"content"

    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_whole(tmp_path / "pipe", b"content")
    assert os.read(reader, 100) == b"content"
    os.close(reader)
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
