"""The one exception that users are meant to read."""

from __future__ import annotations


class FimError(Exception):
    """A mistake that the user can mend: bad input, a wrong option, a missing file.

    The message is one or two plain sentences: what is wrong, where, and what to do about it. Front doors
    (the command line, Dagster) show it without a traceback. It never quotes customer SQL.
    """


class DamagedFile(FimError):
    """A file of the package's own, or of a model, that cannot be read as what it is."""
