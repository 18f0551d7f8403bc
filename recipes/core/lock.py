"""A folder that one command at a time is at work in."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from recipes.core.errors import UserError

_held: set[int] = set()  # descriptors of this process


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep every other process from locking `folder`; the end of this one, however it comes, ends that too.

    Raises:
        UserError: another process has locked it.
    """
    lock = os.open(folder, os.O_RDONLY)
    _held.add(lock)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"output_dir: another command is still at work in {folder}; wait for it, or choose another --output_dir"
            ) from None
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        _unlock(lock)


def _unlock(lock: int) -> None:
    if lock in _held:
        _held.remove(lock)
        os.close(lock)


def _leave_to_parent() -> None:
    """In a forked worker, which may outlive the run: the lock is of the process that took it."""
    for lock in [*_held]:
        _unlock(lock)


os.register_at_fork(after_in_child=_leave_to_parent)
