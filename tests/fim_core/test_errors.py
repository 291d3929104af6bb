"""Errors of the system, reported with the path and what to do."""

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
    reported = system_error(error)
    assert (reported is not None and "The disk is full" in str(reported)) == full
    with (
        pytest.raises(FimError if full else type(error), match="disk is full" if full else None),
        Store(tmp_path).reporting_full_disk("fim_prompts"),
    ):
        raise error


def test_programming_errors_are_not_replaced() -> None:
    assert system_error(KeyError("x")) is None
    assert system_error(FileNotFoundError(errno.ENOENT, "No such file", "x")) is None
    assert "x cannot be used: Read-only" in str(system_error(OSError(errno.EROFS, "Read-only file system", "x")))


@pytest.mark.parametrize("command", [("demo-data", "-o", "/sys/x.csv"), ("benchmark", "build", "-o", "/sys/bench")])
def test_an_unwritable_path_is_a_clear_error(command: tuple[str, ...]) -> None:
    code = "from fim_core.cli.main import main; main()"
    result = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.startswith("fim: /sys/")
    assert "cannot be used" in result.stderr
    assert "Traceback" not in result.stderr
