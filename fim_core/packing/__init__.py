"""Packing rows into sequences with shared prefixes: rows, pack plans, batches."""

from fim_core.folders.tokenized import IGNORE_INDEX
from fim_core.packing.batch import PackedBatch, collate
from fim_core.packing.layout import Layout
from fim_core.packing.plan import Pack, PackPlan, PackStats, plan_packs
from fim_core.packing.rows import Rows

__all__ = ["IGNORE_INDEX", "Layout", "Pack", "PackPlan", "PackStats", "PackedBatch", "Rows", "collate", "plan_packs"]
