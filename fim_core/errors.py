"""The one exception that users are meant to read."""

from __future__ import annotations

import errno

_CURES = {
    errno.ENOSPC: "Free some space; `fim gc` helps.",
    errno.EDQUOT: "Free some space; `fim gc` helps.",
    errno.EROFS: "Name another place, or have this one made writable.",
    errno.EACCES: "Name another place, or have its rights changed.",
    errno.EPERM: "Name another place, or have its rights changed.",
}
"""What to do about errors of the system that no change of this package can prevent."""


class FimError(Exception):
    """A mistake that the user can mend: bad input, a wrong option, a missing file.

    The message is one or two plain sentences: what is wrong, where, and what to do about it. Front doors
    (the command line, Dagster) show it without a traceback. It never quotes customer SQL.
    """


class DamagedFile(FimError):
    """A file of the package's own, or of a model, that cannot be read as what it is."""


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, says that a disk or a quota is full.

    Libraries that are written in Rust raise exceptions of their own, which hold the system's words alone.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if "os error 28" in str(error) or "No space left on device" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def system_error(error: Exception) -> FimError | None:
    """What to say of a full disk, a read-only place or missing rights; None for any other error."""
    if is_disk_full(error):
        place = f": {error.filename}" if isinstance(error, OSError) and error.filename else ""
        return FimError(f"The disk is full{place}. {_CURES[errno.ENOSPC]}")
    if isinstance(error, OSError) and error.errno in _CURES:
        return FimError(f"{error.filename or 'A file'} cannot be used: {error.strerror}. {_CURES[error.errno]}")
    return None


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its name where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
