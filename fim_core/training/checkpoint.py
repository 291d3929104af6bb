"""Resumable states of a run, written under a temporary name and renamed, so that a kill leaves the last complete one.

A state holds what DeepSpeed saves (weights, optimizer, schedule), each rank's random state, and the progress of the
run. Its marker `state.json` is written last, before the rename.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import os
import random
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import torch
from deepspeed import DeepSpeedEngine
from deepspeed.checkpoint import ds_to_universal
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.runtime.zero.offload_config import OffloadDeviceEnum
from deepspeed.utils.tensor_fragment import fragment_address

from fim_core.atomic import flush, flush_tree
from fim_core.config import Experiment
from fim_core.config.training import CheckpointConfig
from fim_core.errors import DamagedFile, FimError
from fim_core.integrity import digests_of, find_damage, read_sealed, write_sealed
from fim_core.training.distributed import Ranks
from fim_core.training.steps import Position, Step

logger = logging.getLogger(__name__)

MARKER = "state.json"
DEEPSPEED_TAG = "deepspeed"

_STATE = re.compile(r"step-(\d+)(?:-\d+)?")
_LEFTOVER = re.compile(r"\.step-\d+(?:-\d+)?-(?:unfinished|universal)")

# Classes that DeepSpeed pickles into its states besides tensors and plain values. No others are loaded: ranks run with
# TORCH_FORCE_WEIGHTS_ONLY_LOAD, see worker.py.
PICKLED_CLASSES = [LossScaler, DynamicLossScaler, fragment_address, ZeroStageEnum, OffloadDeviceEnum]


def _reduce_to_value(member: Enum, protocol: int) -> tuple[type[Enum], tuple[Any]]:
    return type(member), (member.value,)


for _kind in (ZeroStageEnum, OffloadDeviceEnum):
    # As in later Pythons. Early 3.11 pickles members with getattr, which must not be loaded.
    _kind.__reduce_ex__ = _reduce_to_value


@dataclass(frozen=True)
class State:
    """A complete state on disk.

    Attributes:
        path: its folder.
        fingerprint: digest of the options and data of its run.
        world_size: number of ranks that wrote it.
        stage: ZeRO stage by which it is partitioned.
        threads: CPU threads of each rank; sums on a CPU depend on them in their last digits.
        batch_rows: rows of an optimizer step, which the run keeps on any number of ranks.
        files: digest of each file, by its path in the folder (see integrity.py).
        progress: fields of the run's Progress.
    """

    path: Path
    fingerprint: str
    world_size: int
    stage: int
    threads: int
    batch_rows: int
    files: Mapping[str, str]
    progress: Mapping[str, Any]

    @property
    def position(self) -> Position:
        """The position of the run in its data."""
        return Position(**self.progress["position"])


def newest_state(folder: Path, fingerprint: str) -> State | None:
    """The newest state whose files are all undamaged, or None. Damaged states that are newer are logged as warnings.

    Raises:
        FimError: the newest state belongs to other options or other data.
    """
    for state in reversed(_states(folder)):
        if state.fingerprint != fingerprint:
            raise FimError(
                f"{state.path} was saved with other options or other data. Remove {folder} to start from the beginning."
            )
        if (damage := find_damage(state.path, state.files)) is None:
            return state
        logger.warning(
            "%s is damaged (%s). Training resumes from an older state, or from the beginning if there is none.",
            state.path,
            damage,
        )
    return None


def agreed_state(folder: Path, fingerprint: str, ranks: Ranks) -> State | None:
    """The state that all ranks resume from, verified and selected by rank 0; to be called on all ranks."""
    found = newest_state(folder, fingerprint) if ranks.is_first else None
    step = -1.0 if found is None else float(found.position.step)
    (step,) = ranks.sum(step if ranks.is_first else 0.0)
    if ranks.is_first or step < 0:
        return found
    return next(state for state in reversed(_states(folder)) if state.position.step == step)


def save_state(
    folder: Path,
    engine: DeepSpeedEngine,
    ranks: Ranks,
    *,
    progress: Mapping[str, Any],
    fingerprint: str,
    batch_rows: int,
    keep: int,
) -> Path:
    """Save a state; to be called on all ranks. Returns its folder.

    Args:
        progress: of the run, JSON-serialisable, with its `position`.
        keep: number of the run's newest states that are kept.
    """
    step = Position(**progress["position"]).step
    final, scratch = _place(folder, step, fingerprint), folder / f".step-{step}-unfinished"
    if ranks.is_first:
        if os.path.lexists(scratch):
            shutil.rmtree(scratch)
        scratch.mkdir(parents=True)
    ranks.barrier()
    engine.save_checkpoint(str(scratch), tag=DEEPSPEED_TAG, save_latest=False)
    torch.save(_random_state(ranks.device), scratch / f"random-{ranks.rank}.pt")
    ranks.barrier()
    if ranks.is_first:
        stage, threads = engine.zero_optimization_stage(), torch.get_num_threads()
        state = State(
            scratch,
            fingerprint,
            ranks.world_size,
            stage,
            threads,
            batch_rows,
            digests_of(scratch, without=MARKER),
            progress,
        )
        content = {key: value for key, value in asdict(state).items() if key != "path"}
        write_sealed(scratch / MARKER, content)
        publish_folder(scratch, final)
        for old in _outdated(folder, fingerprint, step, keep):
            shutil.rmtree(old)
    ranks.barrier()
    return final


def load_state(state: State, engine: DeepSpeedEngine, ranks: Ranks, seed: int) -> None:
    """Restore the engine and the random number generators; to be called on all ranks.

    A state of another number of ranks is first converted to DeepSpeed's universal format. Its random states belong to
    ranks that no longer exist, so the generators are seeded again.

    Args:
        seed: used where the generators are seeded again.
    """
    if must_convert(state, ranks.world_size, engine.zero_optimization_stage()):
        folder = state.path.with_name(f".{state.path.name}-universal")
        if ranks.is_first:
            _convert(state.path / DEEPSPEED_TAG, folder / DEEPSPEED_TAG)
        ranks.barrier()
        _load_universal(engine, folder)
        ranks.barrier()
        if ranks.is_first:
            shutil.rmtree(folder)
    else:
        _load(engine, state.path)
    if state.world_size == ranks.world_size:
        _set_random_state(torch.load(state.path / f"random-{ranks.rank}.pt", weights_only=True), ranks.device)
    else:
        torch.manual_seed(seed + state.position.step * ranks.world_size + ranks.rank)
    if ranks.is_first and state.threads != torch.get_num_threads():
        logger.warning(
            "The state was saved with %d CPU threads per rank, this run has %d: results may differ in their last digits.",
            state.threads,
            torch.get_num_threads(),
        )


def must_convert(state: State, world_size: int, stage: int) -> bool:
    """Whether a state is partitioned over another number of ranks than this run. ZeRO stage 0 partitions nothing.

    Raises:
        FimError: DeepSpeed cannot convert states between stage 0 and others, nor between stage 3 and lower ones.
    """
    if (state.stage == 0) != (stage == 0) or (state.stage == 3) != (stage == 3):
        raise FimError(
            f"{state.path} was saved with ZeRO stage {state.stage} and cannot be resumed with stage {stage}. "
            f"Set deepspeed.zero_optimization.stage to {state.stage}, or remove {state.path.parent} to start from the "
            "beginning."
        )
    return stage > 0 and state.world_size != world_size


def _convert(saved: Path, universal: Path) -> None:
    """Convert a partitioned checkpoint to DeepSpeed's universal format: one file per parameter, for any number of ranks."""
    shutil.rmtree(universal.parent, ignore_errors=True)
    universal.mkdir(parents=True)
    with torch.serialization.safe_globals(PICKLED_CLASSES):
        ds_to_universal.main(
            argparse.Namespace(
                input_folder=str(saved),
                output_folder=str(universal),
                num_extract_workers=1,
                num_merge_workers=1,
                keep_temp_folder=False,
                strict=True,
                inject_missing_state=True,
            )
        )


def _load_universal(engine: DeepSpeedEngine, folder: Path) -> None:
    """Load a converted state, and work around two faults of DeepSpeed 0.19 with ZeRO 3.

    It gives the options of the first parameter group to all groups, and one shared step counter to all partitions, each
    of which would then increment it.
    """
    optimizer = engine.basic_optimizer
    decays = [group["weight_decay"] for group in optimizer.param_groups]
    _load(engine, folder)
    for group, decay in zip(optimizer.param_groups, decays, strict=True):
        group["weight_decay"] = decay
    for moments in optimizer.state.values():
        if isinstance(moments["step"], torch.Tensor):
            moments["step"] = moments["step"].clone()


def _load(engine: DeepSpeedEngine, folder: Path) -> None:
    with torch.serialization.safe_globals(PICKLED_CLASSES):
        engine.load_checkpoint(str(folder), tag=DEEPSPEED_TAG)


def remove_leftovers(folder: Path) -> None:
    """Remove states that a kill has left half written."""
    for leftover in folder.glob(".step-*"):
        if _LEFTOVER.fullmatch(leftover.name) and leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover)


def publish_folder(scratch: Path, final: Path) -> None:
    """Flush a folder to disk and rename it to `final`, where it replaces an older one.

    Args:
        final: does not exist, or was written by the caller before.
    """
    flush_tree(scratch)
    if os.path.lexists(final):
        shutil.rmtree(final)
    os.rename(scratch, final)
    flush(final.parent)


def _states(folder: Path) -> list[State]:
    """The states in a folder, ordered by step. Everything else in it is ignored."""
    found = [state for path in folder.glob("step-*") if (state := _read_state(path)) is not None]
    return sorted(found, key=lambda state: state.position.step)


def _read_state(folder: Path) -> State | None:
    """The state in a folder; None if there is none or its marker is damaged."""
    place = folder / MARKER
    name = _STATE.fullmatch(folder.name)
    if name is None or folder.is_symlink() or not place.is_file():
        return None
    try:
        state = State(path=folder, **read_sealed(place))
        step = state.position.step
    except (DamagedFile, ValueError, TypeError, KeyError) as error:
        logger.warning("The state %s is not used, as its marker is damaged: %s", folder, error)
        return None
    return state if name[1] == str(step) else None


def _place(folder: Path, step: int, fingerprint: str) -> Path:
    """The folder for a new state: that of the run's own state of this step, or one that does not exist yet."""
    own = {state.path for state in _states(folder) if state.fingerprint == fingerprint}
    names = itertools.chain([f"step-{step}"], (f"step-{step}-{number}" for number in itertools.count(2)))
    return next(path for name in names if (path := folder / name) in own or not os.path.lexists(path))


def _outdated(folder: Path, fingerprint: str, step: int, keep: int) -> list[Path]:
    """The states of a run to remove once `step` is saved.

    These are all but the newest `keep`, and those after `step`, from an attempt that was not resumed from there.
    """
    own = [state for state in _states(folder) if state.fingerprint == fingerprint]
    before = [state for state in own if state.position.step <= step]
    after = [state for state in own if state.position.step > step]
    return [state.path for state in before[:-keep] + after]


def _random_state(device: torch.device) -> dict[str, Any]:
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    assert isinstance(keys, np.ndarray)
    state = {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def _set_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)


@dataclass(frozen=True)
class SavePlan:
    """The steps after which states and weights are saved, by the `checkpoint` entries."""

    states: tuple[CheckpointConfig, ...]
    exports: tuple[CheckpointConfig, ...]

    @classmethod
    def of(cls, experiment: Experiment) -> SavePlan:
        """The plan of an experiment."""
        entries = experiment.checkpoint
        resumable = [entry for entry in entries if entry.type == "deepspeed"]
        weights = [entry for entry in entries if entry.type == "huggingface"]
        return cls(tuple(resumable or weights), tuple(entry for entry in weights if entry.output_dir))

    @property
    def keep(self) -> int:
        """Number of resumable states to keep."""
        return max((entry.keep for entry in self.states), default=1)

    def state_due(self, step: Step, last: bool) -> bool:
        """Whether a resumable state is saved after this step: as the entries say, or by default at the end of an epoch."""
        asked = [entry for entry in self.states if entry.save_every_n_steps or entry.save_every_n_epochs]
        if not asked and step.ends_epoch and all(entry.type == "huggingface" for entry in self.states):
            return True
        return any(_due(entry, step, last) for entry in self.states)

    def exports_due(self, step: Step, last: bool) -> list[CheckpointConfig]:
        """The entries to whose `output_dir` the weights of this step are exported."""
        return [entry for entry in self.exports if _due(entry, step, last)]


def _due(entry: CheckpointConfig, step: Step, last: bool) -> bool:
    by_steps, by_epochs = entry.save_every_n_steps, entry.save_every_n_epochs
    return (
        (last and entry.save_end_of_training)
        or (by_steps is not None and step.position.step % by_steps == 0)
        or (by_epochs is not None and step.ends_epoch and step.position.epoch % by_epochs == 0)
    )
