"""Who may use a directory, and who may write now: flock, so that a lock dies with its process.

Knows files and processes, not what is stored. POSIX only.
"""

import fcntl
import json
import os
import time
import weakref
from pathlib import Path

from rqlab.errors import StoreBusy, StoreLocked

#: Between two looks at a lock that is held. Looks this close together keep the worst wait of 8 busy processes below
#: what a queue in the kernel gave, and a stopped process holds no place in line.
POLL_SECONDS = 0.0005
#: After so many looks the lock is not merely contended but kept (a stopped process, a long vacuum): look less often.
CLOSE_LOOKS = 200
SLOW_POLL_SECONDS = 0.01

NETWORK_FILE_SYSTEMS = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "ceph", "glusterfs", "lustre", "fuse.sshfs", "fuse.s3fs", "9p"}
)

_open_locks: "weakref.WeakSet[Lock]" = weakref.WeakSet()


class Lock:
    """An exclusive lock between processes (and between two handles of one process) on one file."""

    def __init__(self, path: Path, timeout: float) -> None:
        self.path = path
        self.timeout = timeout  #: seconds to wait before StoreBusy
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        _open_locks.add(self)

    def acquire(self) -> None:
        """Take the lock; StoreBusy after `timeout` seconds. Taking a lock that this handle holds is no error."""
        looks = 0
        waited = 0.0
        while not try_flock(self.fd, fcntl.LOCK_EX):
            if waited >= self.timeout:
                raise StoreBusy(
                    f"cannot write to {self.path.parent}: another process held {self.path.name} for all of "
                    f"busy_timeout ({self.timeout:g} s); nothing was changed. Find it with: fuser {self.path}"
                )
            pause = POLL_SECONDS if looks < CLOSE_LOOKS else SLOW_POLL_SECONDS
            time.sleep(pause)
            looks += 1
            waited += pause

    def release(self) -> None:
        if self.fd >= 0:
            fcntl.flock(self.fd, fcntl.LOCK_UN)

    def close(self) -> None:
        """Let go and close the file. Idempotent."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


def own(directory: Path, durability: str, exclusive: bool) -> Lock:
    """Share the directory with others of its kind, or own it alone; StoreLocked at once if that cannot be."""
    lock = Lock(directory / "owner.lock", 0.0)
    if not try_flock(lock.fd, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH):
        holder = _holder(lock.fd)
        lock.close()
        raise StoreLocked(_locked(directory, durability, holder))
    os.ftruncate(lock.fd, 0)
    os.pwrite(lock.fd, json.dumps({"pid": os.getpid(), "durability": durability}).encode(), 0)
    return lock


def try_flock(fd: int, kind: int) -> bool:
    """Whether the lock could be had at once."""
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
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


def _holder(fd: int) -> dict[str, object]:
    try:
        said = json.loads(os.pread(fd, 4096, 0))
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


def _locked(directory: Path, durability: str, holder: dict[str, object]) -> str:
    pid, held_as = holder.get("pid", "unknown"), holder.get("durability", "unknown")
    who = f"this very process (pid {pid}) has it open" if pid == os.getpid() else f"process {pid} has it open"
    return (
        f"cannot open {directory} as {durability!r}: {who} as {held_as!r}, and of these two one must be alone. "
        "Close it there first; to look only, open it with read_only=True"
    )


def _forget_locks_in_a_fork() -> None:
    """A child's copy of the file would keep its parent's lock alive after the parent is gone."""
    for lock in list(_open_locks):
        lock.close()


os.register_at_fork(after_in_child=_forget_locks_in_a_fork)
