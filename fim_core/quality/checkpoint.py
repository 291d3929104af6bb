"""Checks of a trained checkpoint: can it be trusted, does it load, did it learn, will it stop."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from fim_core.files import read_json
from fim_core.quality.result import Check, Evidence, Finding

_UNSAFE_SUFFIXES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"}
SHOWN_ROWS = 5


def only_safetensors(evidence: Evidence) -> Finding:
    """Weights in formats that can run code when they are loaded, or no weights at all."""
    folder = evidence.tables["checkpoint"]
    files = [path for path in folder.rglob("*") if path.is_file()]
    weights = [path for path in files if path.suffix == ".safetensors"]
    unsafe = [path for path in files if path.suffix in _UNSAFE_SUFFIXES]
    offending = sorted(str(path.relative_to(folder)) for path in unsafe) or ([] if weights else ["no *.safetensors"])
    return Finding(len(offending), len(weights) + len(unsafe), offending[:SHOWN_ROWS])


def finite_weights(evidence: Evidence) -> Finding:
    """Tensors that hold a NaN or an infinity, read one at a time, and files that cannot be read."""
    import torch
    from safetensors import SafetensorError, safe_open

    total, offending = 0, []
    for path in sorted(evidence.tables["checkpoint"].glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 - the handle is not a mapping
                    total += 1
                    if not torch.isfinite(tensors.get_tensor(name)).all():
                        offending.append(name)
        except SafetensorError:
            total += 1
            offending.append(path.name)
    return Finding(len(offending), total, offending[:SHOWN_ROWS])


def loads(evidence: Evidence) -> Finding:
    """Tensors that `AutoModelForCausalLM.from_pretrained` misses, does not expect, or finds of the wrong shape."""
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from fim_core.modeling.weights import no_progress_bar

    folder = evidence.tables["checkpoint"]
    try:
        with no_progress_bar():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder, dtype="auto", local_files_only=True, trust_remote_code=False, output_loading_info=True
            )
        model, info = loaded
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        return Finding(1, 1, note=f"It does not load: {type(error).__name__}.")
    parts = ("missing_keys", "unexpected_keys", "mismatched_keys")
    offending = sorted({str(key) for part in parts for key in info[part]})
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        offending.append("tokenizer larger than the embedding")
    with torch.inference_mode():
        logits = model(torch.zeros(1, 2, dtype=torch.long)).logits
    if not torch.isfinite(logits).all():
        offending.append("logits")
    return Finding(len(offending), len(model.state_dict()), offending[:SHOWN_ROWS])


def loss_fell(evidence: Evidence) -> Finding:
    """Whether the held-out loss is lower than before training."""
    before, after = (evidence.parameters[name] for name in ("loss_before", "loss_after"))
    if before is None or after is None:
        return Finding(0, 1, note="Not checked: there are no held-out rows.")
    fell = math.isfinite(before) and math.isfinite(after) and after < before
    return Finding(int(not fell), 1, note=f"The held-out loss went from {before:.4f} to {after:.4f}.")


def has_end_token(evidence: Evidence) -> Finding:
    """Whether generation stops at every token that ends a completion."""
    path = evidence.tables["checkpoint"] / "generation_config.json"
    if not path.is_file():
        return Finding(1, 1, note="There is no generation_config.json.")
    found = read_json(path).get("eos_token_id")
    stops = set(found) if isinstance(found, list) else {found}
    missing = sorted(set(evidence.parameters["end_ids"]) - stops)
    return Finding(len(missing), len(evidence.parameters["end_ids"]), [str(token) for token in missing])


def _check(name: str, description: str, find: Callable[[Evidence], Finding]) -> Check:
    return Check("trained_checkpoint", name, description, "error", 0, None, find)


CHECKS = (
    _check("only_safetensors", "Weights lie in safetensors files only.", only_safetensors),
    _check("finite_weights", "No weight is NaN or infinite.", finite_weights),
    _check("loads", "AutoModelForCausalLM loads the checkpoint with every tensor in its place.", loads),
    _check("loss_fell", "The held-out loss is lower after training than before.", loss_fell),
    _check("has_end_token", "Generation stops at every token that ends a completion.", has_end_token),
)
