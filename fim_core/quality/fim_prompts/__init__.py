"""Checks of fim_prompts, one SQL or Python file per check."""
