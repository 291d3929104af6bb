"""Reading and validation of experiment files, our own and those of ArcticTraining."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from fim_core.config.arctic_training.defaults import report
from fim_core.config.arctic_training.translate import Translation, translate
from fim_core.config.base import NAME_LENGTH, Section, closest
from fim_core.config.experiment import Experiment
from fim_core.config.launchers import LAUNCHER_TYPES, LauncherSection
from fim_core.config.yaml_file import InvalidYaml, read_yaml
from fim_core.errors import FimError


@dataclass(frozen=True)
class ExperimentFile:
    """An experiment and the translation of its file."""

    experiment: Experiment
    translation: Translation

    @property
    def notice(self) -> str | None:
        """Differences to report for a file of ArcticTraining; None for a file of our own."""
        return report(self.translation, self.experiment)


def load_experiment(path: str | Path) -> Experiment:
    """Read and validate an experiment file, as `read_experiment_file` does."""
    return read_experiment_file(path).experiment


def read_experiment_file(path: str | Path, replaced: Mapping[str, Any] | None = None) -> ExperimentFile:
    """Read and validate an experiment file, our own or one of ArcticTraining.

    Relative paths in it are relative to the current folder, as in ArcticTraining.

    Args:
        replaced: sections that replace those of the file.

    Raises:
        FimError: the file is missing or not YAML, or a key is unknown or a value invalid. The message lists each key as it
            is spelled in the file.
    """
    path = Path(path)
    content = read_options(path) | dict(replaced or {})
    translation = translate(content)
    if "name" not in content:
        translation.content["name"] = _name_of(path)
    problems = list(translation.refused)
    experiment = None
    if translation.content.get("type", "sft") == "sft":
        try:
            experiment = Experiment.model_validate(translation.content)
        except ValidationError as error:
            problems += _explain(error, translation)
    if problems or experiment is None:
        raise FimError("\n  ".join([f"{path} has options that cannot be used:", *problems]))
    if "name" not in content:
        experiment._named_by = path.resolve()
    return ExperimentFile(experiment, translation)


def read_options(path: Path) -> dict[str, Any]:
    """Read the options of an experiment file without validating them.

    Raises:
        FimError: the file is missing, is not YAML, or holds no mapping.
    """
    if not path.is_file():
        raise FimError(f"There is no experiment file {path}. Give the path of a YAML file, such as configs/demo.yaml.")
    try:
        content = read_yaml(path.read_text(encoding="utf-8"))
    except (InvalidYaml, UnicodeDecodeError) as error:
        raise FimError(f"{path} is not valid YAML: {error}") from error
    except OSError as error:
        raise FimError(f"{path} cannot be read: {error.strerror}.") from error
    if not isinstance(content, dict):
        raise FimError(f"{path} holds no options. It needs at least `model` and `data`; see configs/demo.yaml.")
    return content


def name_in(path: Path) -> str:
    """The name of the experiment in a file; that of the file if the file is missing or its options cannot be read."""
    try:
        return str(read_options(path).get("name") or _name_of(path))
    except FimError:
        return path.stem


def _name_of(path: Path) -> str:
    """Derive an experiment's name from its file's name; characters that are unsafe in folder names become `-`.

    Raises:
        FimError: no usable character is left.
    """
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", path.stem).strip("-_.")[:NAME_LENGTH]
    if not name:
        raise FimError(
            f"{path}: the file's name cannot be used as the experiment's. Set `name`, in letters and digits."
        )
    return name


def _explain(error: ValidationError, translation: Translation) -> list[str]:
    lines = []
    for problem in error.errors(include_url=False):
        key = translation.name_of(problem["loc"]) or "(file)"
        if problem["type"] == "extra_forbidden":
            lines.append(f"{key}: {_refusal(problem['loc'])}")
        elif problem["type"] == "missing":
            lines.append(f"{key}: missing")
        else:
            lines.append(f"{key}: {problem['msg'].removeprefix('Value error, ')}")
    return lines


def _refusal(location: tuple[int | str, ...]) -> str:
    """Why an unknown option is refused, with a hint at the option that was probably meant."""
    if location == ("schedule",):
        return "this section is called `retraining` now; the learning rate's is `scheduler`"
    known = _option_names(Experiment)
    return "no such option" + (" here" if location[-1] in known else closest(str(location[-1]), sorted(known)))


def _option_names(section: type[Section]) -> set[str]:
    names: set[str] = set()
    pending: list[Any] = [section]
    while pending:
        kind = pending.pop()
        if isinstance(kind, type) and issubclass(kind, Section):
            names |= set(kind.model_fields)
            if kind is LauncherSection:
                pending += LAUNCHER_TYPES.values()
            pending += [field.annotation for field in kind.model_fields.values()]
        else:
            pending += get_args(kind)
    return names
