"""What the server imports and caches from which ranks are forked."""

from fim_core.quick_imports import quick_imports

with quick_imports():
    import rank_functions  # noqa: F401
    import training_helpers  # noqa: F401  # its imports too
    from transformers import Qwen3ForCausalLM  # noqa: F401
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    get_checkpoint_conversion_mapping("qwen3")  # compiles 900 regular expressions
