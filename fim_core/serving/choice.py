"""The choice of what to show: the greedy completion, a better alternative, or nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from fim_core.confidence.features import completion_features
from fim_core.confidence.filter import CompletionFilter
from fim_core.records.schema import Completion
from fim_core.serving.delta import Delta

if TYPE_CHECKING:
    from fim_core.metrics.sql_workers.statement import Statement, StatementChecker


@dataclass(frozen=True)
class Choice:
    """What to show for a request.

    Attributes:
        deltas: of the chosen completion; without text if it is not shown.
        confidence: the probability that users accept it, by the completion filter; None without a filter.
        shown: whether it is confident enough to be shown.
        alternative: whether it was chosen in place of the greedy completion.
        hidden: its text if it is not shown.
    """

    deltas: list[Delta]
    confidence: float | None = None
    shown: bool = True
    alternative: bool = False
    hidden: str = ""

    @property
    def text(self) -> str:
        """The text to insert at the cursor."""
        return _text(self.deltas)


@dataclass(frozen=True)
class Chooser:
    """Chooses completions of one model.

    Attributes:
        checker: parses and binds them.
        filter: hides those that are not confident enough; None shows all.
        candidates: number of completions to choose from, the greedy one included.
    """

    checker: StatementChecker
    filter: CompletionFilter | None
    candidates: int

    @property
    def least_logprob(self) -> float:
        """The log-probability below which no completion is shown."""
        return self.filter.least_logprob if self.filter else float("-inf")

    def choose(
        self, completion: Completion, greedy: list[Delta], alternatives: Iterator[list[list[Delta]]]
    ) -> Iterator[Choice | None]:
        """Choose what to show: yields None while it is not known, and the choice last.

        The greedy completion stays unless the statement with it does not parse, or names something that does not exist; then
        the most probable alternative without these faults takes its place, unless the filter hides it and not the greedy
        one. An empty completion is treated alike, and is never hidden.

        Args:
            completion: the state of the editor.
            greedy: the whole greedy completion.
            alternatives: the finished ones after each step of the model; taken only if they are needed.
        """
        if self.candidates == 1 and not _text(greedy).strip():
            yield Choice(greedy)
            return
        [statement] = self._check(completion, [greedy])
        choice = self._filtered(greedy, statement)
        if not statement.is_sound and self.candidates > 1:
            found: list[list[Delta]] = []
            for finished in alternatives:
                found = finished
                yield None
            checked = zip(found, self._check(completion, found), strict=True)
            if sound := [pair for pair in checked if pair[1].is_sound]:
                other = self._filtered(*max(sound, key=lambda pair: _logprob(pair[0])))
                if other.shown or not choice.shown:
                    choice = replace(other, alternative=True)
        yield choice

    def _check(self, completion: Completion, candidates: Sequence[list[Delta]]) -> list[Statement]:
        texts = [_text(deltas) for deltas in candidates]
        return self.checker.check(completion.prefix, completion.suffix, texts, completion.ddl_context)

    def _filtered(self, deltas: list[Delta], statement: Statement) -> Choice:
        if self.filter is None or statement.parses is None or not _text(deltas).strip():
            return Choice(deltas)
        logprobs = [delta.logprob for delta in deltas]
        features = completion_features(logprobs, parses=statement.parses, binds=statement.binds)
        shown = bool(self.filter.shows(features))
        hidden = "" if shown else _text(deltas)
        if not shown:
            deltas = [replace(delta, text="") for delta in deltas]
        return Choice(deltas, float(self.filter.confidence(features)), shown, hidden=hidden)


def _text(deltas: Sequence[Delta]) -> str:
    return "".join(delta.text for delta in deltas)


def _logprob(deltas: Sequence[Delta]) -> float:
    return sum(delta.logprob for delta in deltas)
