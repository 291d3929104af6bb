"""Errors for users."""

from __future__ import annotations

import errno
import re

_CURES = {
    errno.ENOSPC: "Free some space; `fim gc` helps.",
    errno.EDQUOT: "Free some space; `fim gc` helps.",
    errno.EROFS: "Name another path, or make this one writable.",
    errno.EACCES: "Name another path, or change its permissions.",
    errno.EPERM: "Name another path, or change its permissions.",
}
"""What to do about errors of the operating system, by their number."""


class FimError(Exception):
    """A problem that the user can fix: bad input, a wrong option, a missing file.

    The message is one or two plain sentences: what is wrong, where, and what to do about it. The command line and
    Dagster show it without a traceback. It never quotes customer SQL.
    """


class DamagedFile(FimError):
    """A file of this package or of a model that is damaged."""


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error, or one of its causes, says that a disk or a quota is full.

    Libraries written in Rust raise other exceptions than OSError, which have only the system's message.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if "os error 28" in str(error) or "No space left on device" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def system_error(error: Exception) -> FimError | None:
    """The error for users about a full disk, a read-only path or missing permissions; None for any other error."""
    if is_disk_full(error):
        place = f": {error.filename}" if isinstance(error, OSError) and error.filename else ""
        return FimError(f"The disk is full{place}. {_CURES[errno.ENOSPC]}")
    if isinstance(error, OSError) and error.errno in _CURES:
        return FimError(f"{error.filename or 'A file'} cannot be used: {error.strerror}. {_CURES[error.errno]}")
    return None


def reason_of(error: BaseException) -> str:
    """The class of an error and the first line of its message, without users and queries of URLs, which may be secrets."""
    message = re.sub(r"//[^/\s@]+@", "//", re.sub(r"\?\S+", "", first_line(error)))
    return f"{type(error).__name__}: {message.rstrip('.')}"


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its class if it has no message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
