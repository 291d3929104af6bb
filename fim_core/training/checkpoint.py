"""Resumable states: written under another name and renamed when whole, so that a kill at any moment leaves the last good one.

A state holds what DeepSpeed saves (weights, optimizer, schedule), each rank's random state, and how far the run had
come. Its marker `state.json` is written last, before the rename.
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

# What DeepSpeed pickles into its states besides tensors and plain values. Nothing else is loaded: the ranks run with
# TORCH_FORCE_WEIGHTS_ONLY_LOAD, see main.py.
PICKLED_CLASSES = [LossScaler, DynamicLossScaler, fragment_address, ZeroStageEnum, OffloadDeviceEnum]


@dataclass(frozen=True)
class State:
    """A whole state on disk.

    Attributes:
        path: its folder.
        fingerprint: digest of the options and data that it belongs to.
        world_size: ranks that wrote it. stage: ZeRO stage that it was partitioned by.
        threads: CPU threads of each rank; sums on a CPU depend on them in their last digits.
        batch_rows: rows of an optimizer step, which the run keeps on any number of ranks.
        files: digest of each file by its path in the folder (see integrity.py).
        progress: position and counters of the run.
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
        """What is done."""
        return Position(**self.progress["position"])


def newest_state(folder: Path, fingerprint: str) -> State | None:
    """The newest state that is whole, byte by byte, or None. Of newer ones that are damaged a warning tells.

    Raises:
        FimError: the newest belongs to other options or other data.
    """
    for state in reversed(_states(folder)):
        if state.fingerprint != fingerprint:
            raise FimError(
                f"{state.path} was saved with other options or other data. Remove {folder} to start from the beginning."
            )
        if (damage := find_damage(state.path, state.files)) is None:
            return state
        logger.warning("%s is damaged (%s); an older state is used, or none.", state.path, damage)
    return None


def agreed_state(folder: Path, fingerprint: str, ranks: Ranks) -> State | None:
    """The state that all ranks resume from: rank 0 reads every byte of it, the others follow; to be called on all."""
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
        keep: older states of the run beyond so many are removed.
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
    """Put engine and random numbers where they stood; to be called on all ranks.

    A state of another number of ranks is brought into DeepSpeed's universal form first. Its random numbers cannot go on
    on other ranks, so they begin anew.

    Args:
        seed: of random numbers that begin anew.
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
            "The state was saved with %d CPU threads a rank, this run has %d: results may differ in their last digits.",
            state.threads,
            torch.get_num_threads(),
        )


def must_convert(state: State, world_size: int, stage: int) -> bool:
    """Whether a state is partitioned otherwise than this run. With ZeRO 0 nothing is.

    Raises:
        FimError: between ZeRO 0 and another stage, or between ZeRO 3 and less, a state cannot be converted.
    """
    if (state.stage == 0) != (stage == 0) or (state.stage == 3) != (stage == 3):
        raise FimError(
            f"{state.path} was saved with ZeRO stage {state.stage} and cannot be resumed with stage {stage}. "
            f"Set deepspeed.zero_optimization.stage to {state.stage}, or remove {state.path.parent} to start anew."
        )
    return stage > 0 and state.world_size != world_size


def _convert(saved: Path, universal: Path) -> None:
    """DeepSpeed's conversion of a partitioned checkpoint to one file a parameter, for any number of ranks."""
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
    """Load a converted state, and mend what DeepSpeed 0.19 leaves wrong with ZeRO 3: it gives the options of the first
    parameter group to all, and one step counter to all partitions, which each of them would then count up."""
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
    """Remove what a kill left half written."""
    for leftover in folder.glob(".step-*"):
        if _LEFTOVER.fullmatch(leftover.name) and leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover)


def publish_folder(scratch: Path, final: Path) -> None:
    """Flush a folder to disk and rename it into place, where it replaces an older one.

    Args:
        final: free, or known to hold what the caller has put there before.
    """
    flush_tree(scratch)
    if os.path.lexists(final):
        shutil.rmtree(final)
    os.rename(scratch, final)
    flush(final.parent)


def _states(folder: Path) -> list[State]:
    """The states in a folder, in the order of their steps. Whatever else is there is passed over."""
    found = [state for path in folder.glob("step-*") if (state := _read_state(path)) is not None]
    return sorted(found, key=lambda state: state.position.step)


def _read_state(folder: Path) -> State | None:
    """The state in a folder; None where there is none, or its marker is damaged."""
    place = folder / MARKER
    name = _STATE.fullmatch(folder.name)
    if name is None or folder.is_symlink() or not place.is_file():
        return None
    try:
        state = State(path=folder, **read_sealed(place))
        step = state.position.step
    except (DamagedFile, ValueError, TypeError, KeyError) as error:
        logger.warning("%s is damaged, so this state is not used: %s", place, error)
        return None
    return state if name[1] == str(step) else None


def _place(folder: Path, step: int, fingerprint: str) -> Path:
    """Where a state goes: in place of the run's own of that step, and never in place of anything else."""
    own = {state.path for state in _states(folder) if state.fingerprint == fingerprint}
    names = itertools.chain([f"step-{step}"], (f"step-{step}-{number}" for number in itertools.count(2)))
    return next(path for name in names if (path := folder / name) in own or not os.path.lexists(path))


def _outdated(folder: Path, fingerprint: str, step: int, keep: int) -> list[Path]:
    """The states of a run that go once `step` is saved: those beyond the newest `keep`, and those after `step`, which an
    attempt saved that did not go on from there."""
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
    """When what is saved, as the `checkpoint` entries ask."""

    states: tuple[CheckpointConfig, ...]
    exports: tuple[CheckpointConfig, ...]

    @classmethod
    def of(cls, experiment: Experiment) -> SavePlan:
        """Read the entries."""
        entries = experiment.checkpoint
        resumable = [entry for entry in entries if entry.type == "deepspeed"]
        weights = [entry for entry in entries if entry.type == "huggingface"]
        return cls(tuple(resumable or weights), tuple(entry for entry in weights if entry.output_dir))

    @property
    def keep(self) -> int:
        """How many resumable states are kept."""
        return max((entry.keep for entry in self.states), default=1)

    def state_due(self, step: Step, last: bool) -> bool:
        """Whether a resumable state is saved after this step: where an entry asks, otherwise where an epoch ends."""
        asked = [entry for entry in self.states if entry.save_every_n_steps or entry.save_every_n_epochs]
        if not asked and step.ends_epoch and all(entry.type == "huggingface" for entry in self.states):
            return True
        return any(_due(entry, step, last) for entry in self.states)

    def exports_due(self, step: Step, last: bool) -> list[CheckpointConfig]:
        """The entries whose `output_dir` gets the weights of this step."""
        return [entry for entry in self.exports if _due(entry, step, last)]


def _due(entry: CheckpointConfig, step: Step, last: bool) -> bool:
    by_steps, by_epochs = entry.save_every_n_steps, entry.save_every_n_epochs
    return (
        (last and entry.save_end_of_training)
        or (by_steps is not None and step.position.step % by_steps == 0)
        or (by_epochs is not None and step.ends_epoch and step.position.epoch % by_epochs == 0)
    )
