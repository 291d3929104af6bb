"""Streamed text against the text decoded in one go."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_tokenizers import sentencepiece_like
from transformers import PreTrainedTokenizerFast

from fim_core.serving.text_stream import TextStream
from fim_core.tokenization.encoder import TextEncoder

TEXTS = st.text(st.sampled_from("ab;\n éß漢🙂👩🏽\ufffd"), max_size=12)


@pytest.fixture(scope="module")
def encoder(tokenizer: PreTrainedTokenizerFast) -> TextEncoder:
    return TextEncoder(tokenizer)


def stream(encoder: TextEncoder, text: str, stop: list[str]) -> tuple[list[str], bool]:
    """The pieces of a text whose tokens arrive one by one."""
    stream = TextStream(encoder, stop)
    pieces = []
    for token in encoder.join([text]):
        pieces.append(stream.add(token))
        if stream.stopped:
            return pieces, True
    return [*pieces, stream.finish()], False


@given(text=TEXTS)
def test_pieces_add_up(encoder: TextEncoder, text: str) -> None:
    pieces, stopped = stream(encoder, text, [])
    assert "".join(pieces) == text
    assert not stopped


@given(text=TEXTS, stop=st.lists(st.text(st.sampled_from("ab;\né漢"), min_size=1, max_size=3), max_size=3))
def test_stops_before_the_first_stop_string(encoder: TextEncoder, text: str, stop: list[str]) -> None:
    pieces, stopped = stream(encoder, text, stop)
    # The slow way: read character by character until one of the strings is there.
    read = next((text[:end] for end in range(len(text) + 1) if any(s in text[:end] for s in stop)), None)
    expected = text if read is None else read[: min(read.index(s) for s in stop if s in read)]
    assert "".join(pieces) == expected
    assert stopped == (read is not None) or text.endswith("\ufffd")


def test_never_sends_incomplete_characters(encoder: TextEncoder) -> None:
    text = "é漢🙂" * 3
    assert len(encoder.join([text])) > len(text), "the case must split characters over tokens"
    pieces, _ = stream(encoder, text, [])
    assert all("\ufffd" not in piece for piece in pieces)


def test_sends_certain_text_immediately(encoder: TextEncoder) -> None:
    text = "SELECT a FROM t"
    pieces, _ = stream(encoder, text, [";"])
    assert len([piece for piece in pieces if piece]) == len(encoder.join([text]))


def test_the_space_before_a_completion_is_part_of_it() -> None:
    """A decoder that strips it would make `SELECT aFROM t` of an editor's text."""
    encoder = TextEncoder(sentencepiece_like())
    for text in (" FROM t", "FROM t", "  x", "\n x"):
        pieces, _ = stream(encoder, text, [])
        assert "".join(pieces) == text
