"""`dg scaffold defs fim_assets.FimPipeline NAME`: the files of a new instance."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import dagster as dg
from dagster.components.component_scaffolding import scaffold_component
from pydantic import BaseModel, Field

STARTER = Path(__file__).with_name("starter_experiment.yaml")
"""The experiment file of a new instance: it runs as it is, on synthetic rows."""


class ScaffoldParams(BaseModel):
    """Options of the command."""

    experiment: str | None = Field(
        None, description="Existing experiment file. Default: a new one, NAME.yaml, in the instance's folder."
    )
    key_prefix: str | None = Field(None, description="First parts of the asset keys, separated by /. Default: NAME.")


class FimPipelineScaffolder(dg.Scaffolder[ScaffoldParams]):
    """Writes `defs.yaml` and, unless an existing experiment is given, an experiment file."""

    @classmethod
    def get_scaffold_params(cls) -> type[ScaffoldParams]:
        """Options of the command."""
        return ScaffoldParams

    def scaffold(self, request: dg.ScaffoldRequest[ScaffoldParams]) -> None:
        """Write the files; an experiment file that exists is kept."""
        folder = request.target_path.parent if request.append else request.target_path
        name = re.sub(r"\W+", "_", folder.name, flags=re.ASCII).strip("_")
        if request.params.experiment is not None:
            experiment = os.path.relpath(request.params.experiment, folder)
        else:
            experiment = f"{folder.name}.yaml"
            if not (folder / experiment).exists():
                shutil.copyfile(STARTER, folder / experiment)
        scaffold_component(request, {"experiment": experiment, "key_prefix": request.params.key_prefix or name})
