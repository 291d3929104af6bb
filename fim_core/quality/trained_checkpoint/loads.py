"""Check that transformers loads the checkpoint."""

from __future__ import annotations

from typing import Any

from fim_core.quality.check import SHOWN_ROWS, Evidence, Finding, PythonCheck


def find(evidence: Evidence) -> Finding:
    """Find tensors that are missing, unexpected or of the wrong shape for `AutoModelForCausalLM.from_pretrained`."""
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from fim_core.hub import no_progress_bar

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


CHECK = PythonCheck(
    "AutoModelForCausalLM loads the checkpoint without missing, unexpected or mismatched tensors.", "error", find
)
