"""Option `publish`: where the champion is published."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Discriminator, Field, Tag, field_validator

from fim_core.config.base import PlaceOrId, Section


class FolderTarget(Section):
    """`type: folder`: a folder, or a prefix in object storage."""

    type: Literal["folder"] = "folder"
    path: PlaceOrId = Field(
        min_length=1, description="Folder, `s3://`, `gs://` or `az://` URL, of this experiment's champions only."
    )

    @field_validator("path")
    @classmethod
    def _is_writable(cls, value: str) -> str:
        if value.startswith("hf://"):
            raise ValueError("for the Hugging Face hub use {type: hub, repo: organization/name}")
        return value

    @property
    def place(self) -> str:
        """What messages call this target."""
        return self.path


class HubTarget(Section):
    """`type: hub`: a model repository of the Hugging Face hub."""

    type: Literal["hub"]
    repo: str = Field(pattern=r"^[\w.-]+/[\w.-]+$", description="Repository of the hub, organization/name.")
    private: bool = Field(True, description="Whether a repository that is created is private.")

    @property
    def place(self) -> str:
        """What messages call this target."""
        return f"hub repository {self.repo}"


class MlflowTarget(Section):
    """`type: mlflow`: a model of an MLflow registry."""

    type: Literal["mlflow"]
    model: str | None = Field(
        None, pattern=r"^[^'\"/:]+$", description="Name of the registered model. Default: the experiment's name."
    )
    tracking_uri: str | None = Field(
        None, min_length=1, description="MLflow server or database. Default: $MLFLOW_TRACKING_URI."
    )

    @field_validator("tracking_uri")
    @classmethod
    def _without_password(cls, value: str | None) -> str | None:
        if value is not None and urlsplit(value).password is not None:
            raise ValueError("the URI holds a password; set MLFLOW_TRACKING_URI in the environment instead")
        return value

    @property
    def place(self) -> str:
        """What messages call this target."""
        return f"MLflow model {self.model}" if self.model else "MLflow"


def _in_full(target: Any) -> Any:
    """A bare path is short for `{type: folder, path: …}`."""
    if isinstance(target, str):
        return {"type": "folder", "path": target}
    return {"type": "folder", **target} if isinstance(target, dict) else target


def _type_of(target: Any) -> Any:
    return target.get("type") if isinstance(target, dict) else getattr(target, "type", None)


PublishTarget = Annotated[
    Annotated[FolderTarget, Tag("folder")] | Annotated[HubTarget, Tag("hub")] | Annotated[MlflowTarget, Tag("mlflow")],
    Discriminator(
        _type_of, custom_error_type="publish_type", custom_error_message="`type` is one of: folder, hub, mlflow"
    ),
    BeforeValidator(_in_full),
]
"""One place to publish to."""
