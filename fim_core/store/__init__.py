"""Content-addressed store of immutable artifacts, each published whole or not at all.

    .fim/fim-store.json                 marks the folder as a store; nothing is deleted in a folder without it
    .fim/<asset>/<version>/…            what the stage wrote, and manifest.json
    .fim/<asset>/current                link to the newest version
    .fim/<asset>/by_experiment/<name>   link to the version that this experiment uses
    .fim/tmp/<draft>/owner.json, new/   a version that is being written, and the process that writes it
    .fim/work/<asset>/<version>/        intermediate results of an unfinished attempt, from which the next one resumes
    .fim/locks/<asset>-<version>        locked while a process makes the version
    .fim/downloads/<key>/…              copies of exports from object storage (see object_storage/download.py)
    .fim/checks/<asset>/…               results of the checks of a version
    .fim/batch_cache/<asset>/…          results for batches of rows, for reuse (see batch_cache.py)

A version is the hash of everything that decides the content (versions of the inputs, options, code). So the same work
is never done twice, and a checkpoint names every byte that it was made from.

The root may be any folder, also one that holds other files. Therefore the store replaces and deletes only paths that
match one of its own patterns (places.py) and that no symbolic link leads to.
"""

from fim_core.store.artifact import MANIFEST, Artifact, digest, require_whole_copy, version_of
from fim_core.store.drafts import OWNER, Draft, DraftOwner
from fim_core.store.places import ASSETS, MARKER, StoreFolder
from fim_core.store.store import Store

__all__ = [
    "ASSETS",
    "MANIFEST",
    "MARKER",
    "OWNER",
    "Artifact",
    "Draft",
    "DraftOwner",
    "Store",
    "StoreFolder",
    "digest",
    "require_whole_copy",
    "version_of",
]
