"""A place on disk for one running process: told to be impossible before any work, and locked while it lasts."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from prunecomp.errors import OutputError, PrunecompError
from prunecomp.io.values import LONGEST_NAME

LONGEST_SUFFIX = 40
"""Bytes that hidden names beside an output add to its own: the weights of a journal's round while they are written."""

OF_A_JOURNAL = 26
"""What they add to the journal's."""

NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EBADF, errno.EINVAL, errno.EPERM)
"""What a file system answers that has no locks, or none for this kind of file. Folders of one's own and atomic renames
must do there."""

NO_SYNC = (errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF, errno.EINVAL, errno.EPERM, errno.EACCES)
"""What one answers that cannot be asked whether something is on disk."""

_owners: dict[Path, tuple[tuple[int, int], list[Path]]] = {}
"""Process and thread that hold a lock, who may claim it again, and the folders made for it, by its file."""


def placed(path: Path) -> Path:
    """``path`` with every link and ``..`` on the way to its folder followed, itself not."""
    path = Path(path).absolute()
    return Path(os.path.realpath(path.parent)) / path.name


def check_place(
    path: Path,
    error: type[PrunecompError] = OutputError,
    remedy: str = "choose another --out",
    suffix: int = LONGEST_SUFFIX,
) -> None:
    """Raise ``error`` unless something new can be made at ``path``, in folders that are there or can be made."""
    try:
        obstacle = _obstacle(path, suffix)
    except (OSError, ValueError) as problem:  # a name with a null byte is a ValueError, one not in UTF-8 too
        reason = problem.strerror if isinstance(problem, OSError) else "its name is no text in UTF-8 or has a null byte"
        obstacle = f"cannot be written ({reason})"
    if obstacle is not None:
        raise error(f"{_shown(path)} {obstacle}: {remedy}")


def _obstacle(path: Path, suffix: int) -> str | None:
    if path.name in ("", ".."):
        return "names no new file or folder"
    str(path).encode()  # a cause of its own: cards and records are UTF-8
    if max(len(os.fsencode(name)) for name in (*path.parts, path.name + " " * suffix)) > LONGEST_NAME:
        return f"has a name of more than {LONGEST_NAME - suffix} bytes"
    with suppress(FileNotFoundError, NotADirectoryError):
        os.lstat(path)  # raises for what is too long as a whole, or may not be looked at
    parent = placed(path).parent
    while not os.path.lexists(parent):
        parent = parent.parent
    if not parent.is_dir():
        return f"cannot be made: {parent} is no folder"
    if not os.access(parent, os.W_OK | os.X_OK):
        return f"cannot be made: {parent} is not writable"
    return None


def _shown(path: Path) -> str:
    text = str(path).encode("utf-8", "backslashreplace").decode()
    return text if len(text) < 300 else f"{text[:100]}...{text[-100:]}"


@contextmanager
def claimed(
    path: Path,
    error: type[PrunecompError] = OutputError,
    remedy: str = "choose another --out",
    suffix: int = LONGEST_SUFFIX,
) -> Iterator[list[Path]]:
    """Have no other process that claims ``path`` run at the same time. The kernel lets go when this one ends, however.

    Raises ``error`` at once where another one has it, or where nothing can be made there. Folders on the way are made,
    and on leaving, where nothing came into them, removed: those in the list that this gives.
    """
    check_place(path, error, remedy, suffix)
    path = placed(path)
    lock = path.with_name(f".{path.name}.lock")
    me = (os.getpid(), threading.get_ident())
    owner, made = _owners.get(lock, (None, []))
    if owner == me:
        yield made
        return
    made = [folder for folder in path.parents if not os.path.lexists(folder)]
    try:
        descriptor = _opened(lock)
        if descriptor is None:
            raise error(f"another run is writing to {path}: wait until it has ended, or {remedy}")
        _owners[lock] = me, made
        try:
            yield made
        finally:
            del _owners[lock]
            with suppress(OSError):  # removed while it is held, so that nobody locks a file that is going
                if os.path.samestat(os.fstat(descriptor), os.stat(lock)):
                    lock.unlink()
            os.close(descriptor)
    except _Unlockable as problem:
        raise error(f"{path} cannot be written ({problem}): {remedy}") from None
    finally:
        for folder in made:
            with suppress(OSError):
                folder.rmdir()


class _Unlockable(Exception):
    """A lock file that cannot be made."""


def _opened(lock: Path) -> int | None:
    """The open, locked file; None where another process has it."""
    for _ in range(100):  # who held it may remove the file, or the folder, between two of these steps
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        except FileNotFoundError:
            continue
        except OSError as problem:
            raise _Unlockable(f"{lock}: {problem.strerror}") from None
        try:
            free = locked(descriptor)
        except OSError as problem:
            os.close(descriptor)
            raise _Unlockable(f"{lock}: {problem.strerror}") from None
        if not free:
            os.close(descriptor)
            return None
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(lock)):
                return descriptor
        os.close(descriptor)
    raise _Unlockable("its folder comes and goes")


def locked(descriptor: int, *, without: bool = True) -> bool:
    """Lock an open file or folder for as long as it stays open; False where another process has locked it, and
    ``without`` where the file system has no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as problem:
        if problem.errno not in NO_LOCKS:
            raise
        return without
    return True


def sync(path: Path) -> None:
    """Have a file or folder on disk, as far as its file system can be asked to."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as problem:
        if problem.errno not in NO_SYNC:
            raise


def sync_name(path: Path) -> None:
    """The same for the name that something whole has just been given: it is there, whatever this comes to."""
    with suppress(OSError):
        sync(path.parent)
