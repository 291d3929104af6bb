"""MLPs and norms computed in tiles of tokens, so that activation memory hardly grows with the tokens of a rank.

An MLP keeps several tensors of [tokens, intermediate size] for the backward pass, and an RMSNorm of transformers a
float32 copy and a normalized copy of its input. Both compute each token by itself. Here each tile of tokens goes through
a checkpoint: its input is kept, which other modules need anyway, and the rest is computed again when the backward pass
reaches the tile, so that it exists for one tile at a time.

The tiles are part of one autograd graph, which sums their gradients before it hands the sum to the parameter. The hooks
of a parameter therefore run once in each backward pass, and ZeRO, adapters and gradient accumulation work unchanged.
(Autograd functions that call `backward` for each tile, as `TiledMLP` of DeepSpeed, run the hooks once a tile, and mark
the parameters so that ZeRO ignores all but the last.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from fim_core.errors import FimError
from fim_core.modeling.partition import is_partitioned
from fim_core.modeling.support import PACKED_MODEL_TYPES, causal_model

if TYPE_CHECKING:
    from peft import PeftModel

TILE_TOKENS = 4096
"""Maximum number of tokens of a tile.

Each tile adds a gradient of the size of the weights to their sum, and ZeRO-3 may gather the weights for it. At 4096
tokens that is little next to the tile's products (6 x 4096 operations for each weight), and its intermediate results
take about as much memory as the MLP's weights and their gradients.
"""

Compute = Callable[[torch.Tensor], torch.Tensor]


def enable_tiled_compute(model: PreTrainedModel | PeftModel, *, tile_tokens: int = TILE_TOKENS) -> None:
    """Compute MLPs and RMSNorms in tiles of tokens. Results are equal, except for rounding and random numbers (dropout).

    Combined with activation checkpointing, MLPs are computed three times instead of twice.

    Raises:
        FimError: the tiles are not tested for this type of model.
    """
    causal = causal_model(model)
    kind = causal.config.model_type
    if kind not in PACKED_MODEL_TYPES:
        raise FimError(
            f"tiled_mlp_compute: the model type {kind} is not among those that are tested: "
            f"{', '.join(sorted(PACKED_MODEL_TYPES))}. Leave the option out."
        )
    for module, layer in list(_per_token_modules(causal)):
        # On the instance, so that the module's hooks still run around the whole and names of parameters stay.
        module.forward = partial(_compute_in_tiles, module, module.forward, layer, tile_tokens)


def _per_token_modules(causal: PreTrainedModel) -> Iterator[tuple[nn.Module, nn.Module | None]]:
    """The modules to tile, each with its decoder layer; None for the norm after the last layer.

    Other norms (`nn.LayerNorm`, and Liger's, which replace the forward of an instance) keep only their input.
    """
    body: Any = causal.base_model
    layers: list[nn.Module] = list(body.layers)
    for layer in layers:
        yield layer.get_submodule("mlp"), layer
    for owner, layer_of in [(body.norm, None), *((layer, layer) for layer in layers)]:
        for module in owner.modules():
            if type(module).__name__.endswith("RMSNorm") and "forward" not in vars(module):
                yield module, layer_of


def _compute_in_tiles(
    module: nn.Module, forward: Compute, layer: nn.Module | None, tile_tokens: int, states: torch.Tensor
) -> torch.Tensor:
    """Compute a module that treats every vector of its input by itself.

    Args:
        forward: the module's own forward.
        layer: see `_per_token_modules`.
        states: [..., size]; tokens are its longest dimension, or it fits in one tile whatever they are.
    """
    if is_partitioned(module, recurse=False):
        # ZeRO-3 gathers a module's own weights around its whole forward, not when a tile is computed again.
        return forward(states)
    dim = max(range(states.dim() - 1), key=states.shape.__getitem__)
    tiles = max(1, -(-states.shape[dim] // tile_tokens))
    if is_partitioned(module):
        tiles = _most_of_all_ranks(tiles, states.device)
    if tiles == 1 and getattr(layer, "gradient_checkpointing", False):
        return forward(states)  # a checkpoint of the only tile within that of its layer would save nothing
    run: Compute = partial(checkpoint, forward, use_reentrant=False) if torch.is_grad_enabled() else forward
    if tiles == 1:
        return run(states)
    # Autograd cuts the gradient of `cat` into views and joins those of `split` once. With slices, and with assignments
    # to parts of one output, it would copy all tokens for each tile.
    return torch.cat([run(tile) for tile in states.split(_sizes(states.shape[dim], tiles), dim)], dim)


def _sizes(length: int, parts: int) -> list[int]:
    """Sizes of nearly equal parts; some are 0 if there are more parts than elements."""
    return [length // parts + (part < length % parts) for part in range(parts)]


def _most_of_all_ranks(tiles: int, device: torch.device) -> int:
    """The largest number of tiles of any rank: ZeRO-3 gathers weights for each tile, on all ranks at once."""
    most = torch.tensor(tiles, device=device)
    dist.all_reduce(most, dist.ReduceOp.MAX)
    return int(most)
