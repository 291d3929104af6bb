"""The pipeline as Dagster assets. `FimPipeline` is its component, for use in other Dagster projects."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fim_assets.component import FimPipeline

__all__ = ["FimPipeline"]


# Loaded on use: Dagster's web server and daemon import only `fim_assets.resources.run_launcher`, and `python -m` a module.
def __getattr__(name: str) -> Any:
    if name == "FimPipeline":
        from fim_assets.component import FimPipeline

        return FimPipeline
    raise AttributeError(f"module {__name__} has no attribute {name}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
