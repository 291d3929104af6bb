"""What the system refuses is told in a sentence, with the place and what to do."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from fim_core.errors import FimError, is_disk_full, system_error
from fim_core.store import Store


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "x"), True),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), True),
        (Exception("No space left on device (os error 28)"), True),
        (caused(RuntimeError("cannot write"), OSError(errno.ENOSPC, "full")), True),
        (OSError(errno.EACCES, "Permission denied"), False),
        (RuntimeError("os error 2"), False),
    ],
)
def test_a_full_disk_is_recognised(error: Exception, full: bool, tmp_path: Path) -> None:
    assert is_disk_full(error) == full
    told = system_error(error)
    assert (told is not None and "The disk is full" in str(told)) == full
    with (
        pytest.raises(FimError if full else type(error), match="disk is full" if full else None),
        Store(tmp_path).reporting_full_disk("fim_prompts"),
    ):
        raise error


def test_what_is_nobodys_fault_but_ours_stays_an_error() -> None:
    assert system_error(KeyError("x")) is None
    assert system_error(FileNotFoundError(errno.ENOENT, "No such file", "x")) is None
    assert "x cannot be used: Read-only" in str(system_error(OSError(errno.EROFS, "Read-only file system", "x")))


@pytest.mark.parametrize("command", [("demo-data", "-o", "/sys/x.csv"), ("benchmark", "build", "-o", "/sys/bench")])
def test_a_place_that_cannot_be_written_gives_a_sentence(command: tuple[str, ...]) -> None:
    code = "from fim_core.cli.main import main; main()"
    told = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True)
    assert told.returncode == 2
    assert told.stderr.startswith("fim: /sys/")
    assert "cannot be used" in told.stderr
    assert "Traceback" not in told.stderr
