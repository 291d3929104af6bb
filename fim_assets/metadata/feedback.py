"""What users did with completions, as metadata of `fim_prompts`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import dagster as dg

from fim_core.markdown import escaped

_TEXTS = 20
_SHOWN_CHARACTERS = 200


def describe_feedback(feedback: Mapping[str, Any] | None, raw: Path | None) -> dict[str, Any]:
    """Figures to plot and tables; empty without feedback.

    Args:
        feedback: `FeedbackMetrics` as saved.
        raw: the raw table, to show the texts that were rejected most; None shows none.
    """
    from fim_core.prompts.feedback_metrics import texts_rejected_most

    if feedback is None:
        return {}
    total = feedback["total"]
    plotted = {
        "acceptance_rate": total["acceptance"],
        "retained_characters": total["retained"],
        "edit_similarity_of_edited": total["edit_similarity"],
    }
    tables = {
        "feedback": _actions("type", [total, *feedback["by_type"]]),
        # Earlier versions do not count by model.
        **({"feedback_by_model": _actions("model", by_model)} if (by_model := feedback.get("by_model")) else {}),
        "rejected_most": _rejected_most(feedback["rejected_most"]),
    }
    if raw is not None and (texts := texts_rejected_most(raw, _TEXTS)):
        lines = [[f"{rows:,}", _cell(text[:_SHOWN_CHARACTERS])] for text, rows in texts]
        tables["texts_rejected_most"] = _markdown(["rejected", "completion"], lines)
    return {
        **{name: round(value, 4) for name, value in plotted.items() if value is not None},
        **{name: dg.MetadataValue.md(text) for name, text in tables.items()},
    }


def _actions(key: Literal["type", "model"], counts: Sequence[Mapping[str, Any]]) -> str:
    head = [
        *(
            "TYPE" if key == "type" else key,
            "shown",
            "accepted",
            "edited",
            "rejected",
            "acceptance rate",
            "retained characters",
        ),
        "edit similarity of edited",
    ]
    rows = [
        [
            "**all**" if found[key] is None else _cell(found[key] or "(none)"),
            *(f"{found[name]:,}" for name in ("shown", "accepted", "edited", "rejected")),
            *(_share(found[name]) for name in ("acceptance", "retained", "edit_similarity")),
        ]
        for found in counts
    ]
    return _markdown(head, rows)


def _rejected_most(groups: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [
            _cell(group["type"] or "(none)"),
            "longer" if group["longest"] is None else f"up to {group['longest']}",
            f"{group['rejected']:,}",
            f"{group['shown']:,}",
            _share(group["rejected"] / group["shown"]),
        ]
        for group in groups
    ]
    return _markdown(["TYPE", "characters", "rejected", "shown", "share"], rows)


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def _cell(text: str) -> str:
    return escaped(text) or " "


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"
