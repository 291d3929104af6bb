"""The folder of an export: written as a whole, and replaced only by another export."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fim_core.atomic import exchange, flush, flush_tree
from fim_core.errors import DamagedFile, FimError
from fim_core.integrity import digests_of, find_damage, read_sealed, write_sealed

RECORD = "export.json"


@contextmanager
def export_folder(final: Path, record: Mapping[str, Any]) -> Iterator[Path]:
    """Yield a new folder, which becomes `final` in one step if the block ends without an error.

    Args:
        final: does not exist, is empty, or is an earlier export, which is replaced.
        record: what is exported; written to export.json with the digest of each file.

    Raises:
        FimError: `final` is something else, or an export that was changed afterwards.
    """
    _require_replaceable(final)
    final.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{final.name}-", dir=final.parent) as scratch:
        new = Path(scratch) / "new"
        new.mkdir()
        yield new
        write_sealed(new / RECORD, {**record, "files": digests_of(new, without=RECORD)})
        flush_tree(new)
        _require_replaceable(final)
        if (final / RECORD).exists():
            exchange(new, final)
        else:
            os.rename(new, final)
            flush(final.parent)


def _require_replaceable(final: Path) -> None:
    if not os.path.lexists(final) or (final.is_dir() and not final.is_symlink() and not any(final.iterdir())):
        return
    cure = "Name another folder with --output, or remove it."
    try:
        files = read_sealed(final / RECORD)["files"]
        damage = find_damage(final, files)
    except (OSError, DamagedFile, KeyError) as error:
        raise FimError(f"{final} exists and is not an export of this command, so it is not replaced. {cure}") from error
    more = sorted({path.name for path in final.iterdir()} - {RECORD, *(name.split("/")[0] for name in files)})
    if damage is not None or more:
        what = damage or f"{more[0]} was added"
        raise FimError(f"{final} was changed after it was exported ({what}), so it is not replaced. {cure}")
