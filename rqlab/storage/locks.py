"""Who may use a directory, and who may write now: flock, so that a lock dies with its process.

Knows files and processes, not what is stored. POSIX only.
"""

import errno
import fcntl
import json
import os
import time
import weakref
from collections.abc import Callable
from functools import partial
from io import FileIO
from pathlib import Path

from rqlab.errors import StoreBusy, StoreError, StoreFull, StoreLocked

#: Between two looks at a lock that is held. Looks this close together keep the worst wait of 8 busy processes below
#: what a queue in the kernel gave, and a stopped process holds no place in line.
POLL_SECONDS = 0.0005
#: After so many looks the lock is not merely contended but kept (a stopped process, a long vacuum): look less often.
CLOSE_LOOKS = 200
SLOW_POLL_SECONDS = 0.01

NETWORK_FILE_SYSTEMS = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "ceph", "glusterfs", "lustre", "fuse.sshfs", "fuse.s3fs", "9p"}
)

DISK_FAILED = "The disk, or the way to it, failed: look into the system's log (dmesg), then call again"
NOT_ALLOWED = "Choose another directory, or make this one readable and writable for this user"
#: What to do about errors of the system that say no more than what failed.
REMEDIES = {
    errno.EIO: DISK_FAILED,
    errno.EACCES: NOT_ALLOWED,
    errno.EPERM: NOT_ALLOWED,
    errno.EROFS: "Choose a directory on a file system that can be written",
}

_open_locks: "weakref.WeakSet[Lock]" = weakref.WeakSet()


class Lock:
    """A lock between processes (and between two handles of one process) on one file.

    `only_look` takes it shared, and makes no file; without a file there is nobody to keep out.
    """

    def __init__(self, path: Path, timeout: float, *, only_look: bool = False) -> None:
        self.path = path
        self.timeout = timeout  #: seconds to wait before StoreBusy
        self.kind = fcntl.LOCK_SH if only_look else fcntl.LOCK_EX
        #: Let go; no error if it was not held. It is C all through: in a `finally` no interrupt can keep it from that.
        self.release: Callable[[], object] = int
        self.file: FileIO | None = None
        try:
            self.file = FileIO(path, "r" if only_look else "r+", opener=None if only_look else _create)
        except FileNotFoundError:
            if not only_look:
                raise
            return
        except OSError as error:
            raise file_error(f"cannot open the lock {path}", error) from error
        self.release = partial(fcntl.flock, self.file, fcntl.LOCK_UN)
        _open_locks.add(self)

    def acquire(self) -> None:
        """Take the lock; StoreBusy after `timeout` seconds. Taking a lock that this handle holds is no error."""
        looks = 0
        waited = 0.0
        while self.file is not None and not try_flock(self.file, self.kind):
            if waited >= self.timeout:
                raise StoreBusy(
                    f"cannot use {self.path.parent}: another process held {self.path.name} for all of "
                    f"busy_timeout ({self.timeout:g} s); nothing was changed. Find it with: fuser {self.path}"
                )
            pause = POLL_SECONDS if looks < CLOSE_LOOKS else SLOW_POLL_SECONDS
            time.sleep(pause)
            looks += 1
            waited += pause

    def close(self) -> None:
        """Let go and close the file. Idempotent."""
        if self.file is not None:
            self.file.close()


def own(directory: Path, durability: str, exclusive: bool) -> Lock:
    """Share the directory with others of its kind, or own it alone; StoreLocked at once if that cannot be."""
    lock = Lock(directory / "owner.lock", 0.0)
    assert lock.file is not None, "a lock that may create its file has one"
    try:
        if not try_flock(lock.file, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH):
            raise StoreLocked(_locked(directory, durability, lock.file))
        lock.file.truncate(0)
        os.pwrite(lock.file.fileno(), json.dumps({"pid": os.getpid(), "durability": durability}).encode(), 0)
    except OSError as error:
        lock.close()
        raise file_error(f"cannot open {directory}: writing {lock.path.name}", error) from error
    except BaseException:
        lock.close()
        raise
    return lock


def file_error(attempted: str, error: OSError) -> StoreError:
    """The system's error in our words."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreFull(f"{attempted}: the disk is full; nothing was changed. Free some space")
    said = f"{attempted}: {error.strerror or error}"
    return StoreError(f"{said}. {REMEDIES[error.errno]}" if error.errno in REMEDIES else said)


def try_flock(file: FileIO, kind: int) -> bool:
    """Whether the lock could be had at once."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def file_system(path: Path, mounts: Path = Path("/proc/mounts")) -> str | None:
    """The type of the file system that holds `path` (ext4, nfs4, …); None where the system does not tell."""
    try:
        lines = mounts.read_text().splitlines()
    except OSError:
        return None
    resolved = path.resolve()
    best = ("", "")
    for line in lines:
        _, mounted_on, kind, *_ = line.split(" ")
        mounted_on = mounted_on.encode().decode("unicode_escape")  # a space in the path is written \040
        if (resolved == Path(mounted_on) or Path(mounted_on) in resolved.parents) and len(mounted_on) >= len(best[0]):
            best = (mounted_on, kind)
    return best[1] or None


def network_file_system(path: Path) -> str | None:
    """The type of the file system if it is one of the network, where flock and SQLite's WAL do not hold."""
    kind = file_system(path)
    return kind if kind in NETWORK_FILE_SYSTEMS else None


def _create(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _locked(directory: Path, durability: str, file: FileIO) -> str:
    said = _said(file)
    pids = _holders(file)
    written = said.get("pid", "unknown")
    pid = written if not pids or written in pids else min(pids)  # who wrote it may have left; others share the lock
    who = f"this very process (pid {pid}) has it open" if pid == os.getpid() else f"process {pid} has it open"
    return (
        f"cannot open {directory} as {durability!r}: {who} as {said.get('durability', 'unknown')!r}, and of these two "
        "one must be alone. Close it there first; to look only, open it with read_only=True"
    )


def _said(file: FileIO) -> dict[str, object]:
    try:
        said = json.loads(os.pread(file.fileno(), 4096, 0))
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


def _holders(file: FileIO, locks: Path = Path("/proc/locks")) -> set[int]:
    """The processes that hold a flock on the file; empty where the system does not tell."""
    try:
        lines = [line.split() for line in locks.read_text().splitlines()]
    except OSError:
        return set()
    end = f":{os.fstat(file.fileno()).st_ino}"
    return {int(line[4]) for line in lines if line[1] == "FLOCK" and line[5].endswith(end)}


def _forget_locks_in_a_fork() -> None:
    """A child's copy of the file would keep its parent's lock alive after the parent is gone."""
    for lock in list(_open_locks):
        lock.close()


os.register_at_fork(after_in_child=_forget_locks_in_a_fork)
