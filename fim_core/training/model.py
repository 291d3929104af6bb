"""An experiment's model as it is trained: its packing, options that save activation memory, and the loss."""

from __future__ import annotations

from peft import PeftModel
from transformers import PretrainedConfig, PreTrainedModel

from fim_core.config import Experiment
from fim_core.modeling.load import enable_activation_checkpointing
from fim_core.modeling.loss import PackedCausalLM
from fim_core.modeling.sequence_parallel import SequenceGroup
from fim_core.modeling.support import supports_prefix_tree
from fim_core.modeling.tiling import enable_tiled_compute
from fim_core.packing.plan import Strategy


def choose_packing(experiment: Experiment, config: PretrainedConfig) -> tuple[Strategy, tuple[str, ...]]:
    """The packing with which a model of this configuration can be trained exactly, with a notice if it is not the one requested."""
    asked = experiment.data.packing
    supported, why = supports_prefix_tree(config)
    if asked != "prefix_tree" or supported:
        return asked, ()
    notice = f"Rows are packed flat, as data.pack_samples: prefix_tree is not possible: {why}."
    return "flat", (notice,)


def save_activation_memory(experiment: Experiment, model: PreTrainedModel | PeftModel) -> None:
    """Switch on what the experiment asks for: activation checkpointing, its offload, and tiled MLPs.

    Raises:
        FimError: an option does not support this type of model.
    """
    if experiment.activation_checkpointing or experiment.activation_checkpoint_cpu_offload:
        # On a CPU activations are in host memory already, and there is no pinned memory to copy them to.
        offload = experiment.activation_checkpoint_cpu_offload and model.device.type == "cuda"
        enable_activation_checkpointing(model, offload=offload)
    if experiment.tiled_mlp_compute:
        enable_tiled_compute(model)


def with_loss(
    experiment: Experiment, model: PreTrainedModel | PeftModel, sequence_group: SequenceGroup | None
) -> PackedCausalLM:
    """The model with the loss of the experiment's training."""
    return PackedCausalLM(
        model,
        reduction="sample" if experiment.data.sample_weighted_loss else "token",
        label_smoothing=experiment.loss.label_smoothing,
        z_loss=experiment.loss.z_loss,
        accumulate_in_place=True,
        sequence_group=sequence_group,
    )
