"""Checks of fim_prompts: a SQL or Python file each."""
