"""Check that generation stops at end tokens."""

from __future__ import annotations

from fim_core.atomic import read_json
from fim_core.quality.check import Evidence, Finding, PythonCheck


def find(evidence: Evidence) -> Finding:
    """Find tokens that end a completion but do not stop generation."""
    path = evidence.tables["checkpoint"] / "generation_config.json"
    if not path.is_file():
        return Finding(1, 1, note="There is no generation_config.json.")
    found = read_json(path).get("eos_token_id")
    end_ids = evidence.fact("recipe.fim_tokens.end_ids")
    stops = set(found) if isinstance(found, list) else {found}
    missing = sorted(set(end_ids) - stops)
    return Finding(len(missing), len(end_ids), [str(token) for token in missing])


CHECK = PythonCheck("Generation stops at every token that ends a completion.", "error", find)
