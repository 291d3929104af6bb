"""Exports of the weights of single steps to a folder of the user, in which only the run's own files are changed.

<output_dir>/<run>/exports.json     list of the run's exports, in the order in which they were written
<output_dir>/<run>/step-N/          the weights of optimizer step N
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from fim_core.atomic import flush, flush_tree
from fim_core.config.training import CheckpointConfig
from fim_core.errors import DamagedFile, FimError
from fim_core.integrity import read_sealed, write_sealed
from fim_core.training.job import Job

LIST = "exports.json"


class StepExports:
    """The exports of one run for one `checkpoint` entry; used on rank 0. A resumed attempt continues the list.

    A step is added to the list before anything of it is written, and taken off after it has been removed, so that
    everything a kill leaves behind is known to be the run's own.
    """

    def __init__(self, entry: CheckpointConfig, job: Job, fingerprint: str) -> None:
        """Derive the folder; nothing is read or written.

        Args:
            fingerprint: digest of the run's options and data, by which the folder of another run is recognized.
        """
        self.folder = Path(str(entry.output_dir)).absolute() / job.run_name
        self._keep = entry.keep
        self._fingerprint = fingerprint

    def require_own(self) -> None:
        """Require that the run's folder is missing, empty, or this run's.

        Raises:
            FimError: it holds something else.
        """
        self._listed()

    def begin(self, step: int) -> Path:
        """Add a step to the list; returns the path to write its weights to, which does not exist yet.

        Raises:
            FimError: something that this run did not write is in the way.
        """
        name, listed = f"step-{step}", self._listed()
        final, scratch = self.folder / name, self._scratch(name)
        for place in (final, scratch):
            if name not in listed and os.path.lexists(place):
                raise FimError(
                    f"{place} was not written by this run, so it is not replaced. Move it away; training resumes from "
                    "its newest state."
                )
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write([*(other for other in listed if other != name), name])
        _remove(scratch)
        return scratch

    def publish(self, step: int) -> Path:
        """Rename the weights that were written to the path from `begin` to their final name."""
        name = f"step-{step}"
        scratch, final = self._scratch(name), self.folder / name
        flush_tree(scratch)
        _remove(final)
        os.rename(scratch, final)
        flush(self.folder)
        return final

    def surplus(self) -> list[Path]:
        """The exports beyond the newest `keep`, oldest first."""
        return [self.folder / name for name in self._listed()[: -self._keep]]

    def remove(self, path: Path) -> None:
        """Remove a step that is on the list."""
        listed = self._listed()
        listed.remove(path.name)
        _remove(path)
        _remove(self._scratch(path.name))
        self._write(listed)

    def _scratch(self, name: str) -> Path:
        return self.folder / f".{name}"

    def _listed(self) -> list[str]:
        place = self.folder / LIST
        if self.folder.is_symlink() or place.is_symlink():
            raise self._foreign("it is a symbolic link")
        try:
            content = read_sealed(place)
        except FileNotFoundError:
            if self.folder.is_dir() and any(self.folder.iterdir()):
                raise self._foreign(f"it has no {LIST}") from None
            return []
        except DamagedFile as error:
            raise self._foreign(f"its {LIST} is damaged") from error
        if content["fingerprint"] != self._fingerprint:
            raise self._foreign(f"its {LIST} is that of another run")
        return content["exports"]

    def _foreign(self, why: str) -> FimError:
        return FimError(
            f"checkpoint.output_dir: {self.folder} is not the folder of this run ({why}), so nothing in it is touched. "
            "Name another output_dir, or move that folder away."
        )

    def _write(self, names: list[str]) -> None:
        write_sealed(self.folder / LIST, {"fingerprint": self._fingerprint, "exports": names})


def _remove(folder: Path) -> None:
    # A link is not followed: rmtree refuses it.
    if os.path.lexists(folder):
        shutil.rmtree(folder)
