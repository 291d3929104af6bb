"""Models: attention over packs, training loss, loading and saving."""

from fim_core.modeling.flops import training_cost
from fim_core.modeling.load import build_model, checkpoint_dtype, enable_activation_checkpointing, training_dtype
from fim_core.modeling.loss import LossSums, PackedCausalLM, batch_loss
from fim_core.modeling.save import save_model
from fim_core.modeling.support import supports_prefix_tree
from fim_core.modeling.tiling import enable_tiled_compute

__all__ = [
    "LossSums",
    "PackedCausalLM",
    "batch_loss",
    "build_model",
    "checkpoint_dtype",
    "enable_activation_checkpointing",
    "enable_tiled_compute",
    "save_model",
    "supports_prefix_tree",
    "training_cost",
    "training_dtype",
]
