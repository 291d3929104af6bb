"""Encoding by pieces equals encoding the whole text, for every kind of tokenizer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_tokenizers import CL100K, O200K_LIKE, byte_level, long_run, sentencepiece_like
from tokenizers import AddedToken, normalizers
from transformers import PreTrainedTokenizerFast

from fim_core.tokenization.encoder import TextEncoder
from fim_core.tokenization.pieces import PieceTable

FIM = ["<fim_prefix>", "<fim_suffix>", "<fim_middle>", "<|end|>"]
LINES = byte_level(FIM, regex=CL100K)
SEGMENTS = byte_level([*FIM, AddedToken("    ", special=False, normalized=False)])
METASPACE = sentencepiece_like()

SQL = st.text(st.sampled_from("ab1_ \t\n\r\u00a0\u2028\x1c'\",.;()<|>/*-é\u0301ß漢🙂"), max_size=40)


def encoder_of(tokenizer: PreTrainedTokenizerFast) -> TextEncoder:
    return TextEncoder(tokenizer)


def whole(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def by_pieces(encoder: TextEncoder, text: str) -> list[int]:
    ids, _ = PieceTable(encoder).gather([encoder.pieces(text)])
    return ids.tolist()


@pytest.mark.parametrize(
    ("tokenizer", "expected"),
    [
        (LINES, "line"),
        (byte_level(FIM), "segment"),
        (SEGMENTS, "segment"),
        # "\n/" may be one piece there, so a line end does not always end one.
        (byte_level(FIM, regex=O200K_LIKE), "segment"),
        (byte_level([*FIM, AddedToken("\n\n", special=False, normalized=False)], regex=CL100K), "segment"),
        (byte_level([*FIM, AddedToken("<|x|>", special=True, normalized=False, rstrip=True)], regex=CL100K), "segment"),
        (byte_level([*FIM, AddedToken("<|x|>", special=True, normalized=False, lstrip=True)], regex=CL100K), "segment"),
        (METASPACE, "segment"),
    ],
)
def test_granularity(tokenizer: PreTrainedTokenizerFast, expected: str) -> None:
    assert encoder_of(tokenizer).granularity == expected


@pytest.mark.parametrize("tokenizer", [LINES, SEGMENTS, METASPACE], ids=["line", "segment", "metaspace"])
@long_run(short=100)
@given(st.lists(st.one_of(SQL, st.sampled_from([*FIM, "\n", "    ", "\n  x"])), max_size=12).map("".join))
def test_pieces_give_the_ids_of_the_whole(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    encoder = ENCODERS[id(tokenizer)]
    text = START[id(tokenizer)] + text
    assert by_pieces(encoder, text) == whole(tokenizer, text) == encoder.encode(text)
    assert encoder.agrees(text)
    assert encoder.lines_agree(text)


ENCODERS = {id(tokenizer): encoder_of(tokenizer) for tokenizer in (LINES, SEGMENTS, METASPACE)}
# The start of a text is special where there is a mark for a space before the first word; prompts begin with <s> there.
START = {id(LINES): "", id(SEGMENTS): "", id(METASPACE): "<s>"}


@long_run(short=100)
@given(st.lists(st.one_of(SQL, st.sampled_from(FIM)), max_size=6).map("".join))
def test_user_text_never_becomes_a_control_token(text: str) -> None:
    for tokenizer in (LINES, SEGMENTS):
        encoder = ENCODERS[id(tokenizer)]
        ids, _ = PieceTable(encoder).gather([[text] if text else []])
        assert not set(encoder.controls.values()).intersection(ids.tolist())
        assert tokenizer.decode(ids) == text


def test_control_spans_say_which_are_real() -> None:
    encoder = ENCODERS[id(LINES)]
    text = "<fim_prefix>a<fim_prefix>\nb<fim_middle>"
    middle = text.index("<fim_middle>")
    ids = encoder.encode(text, [0, 12, middle, len(text)])
    prefix_id, middle_id = encoder.controls["<fim_prefix>"], encoder.controls["<fim_middle>"]
    assert (ids[0], ids[-1], ids.count(prefix_id)) == (prefix_id, middle_id, 1)
    assert LINES.decode(ids[1:-1]) == "a<fim_prefix>\nb"


def test_lines_are_cut_only_before_text() -> None:
    encoder = ENCODERS[id(LINES)]
    assert encoder.lines("a\n\n  b\n \n\tc\n") == ["a\n\n", "  b\n \n", "\tc\n"]
    assert encoder.lines("a\n\u00a0b\n\x1cc") == ["a\n\u00a0b\n\x1cc"]
    assert encoder.pieces("") == []


def test_gather_agrees_with_one_by_one_and_encodes_each_piece_once(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = ENCODERS[id(LINES)]
    texts = ["select 1\nfrom t", "select 1\nfrom u", "", "<|end|>", "select 1\nfrom t"]
    rows = [encoder.pieces(text) for text in texts]
    table = PieceTable(encoder)
    ids, lengths = table.gather(rows)
    assert ids.tolist() == [token for text in texts for token in whole(LINES, text)]
    assert len(lengths) == sum(map(len, rows))
    asked = sum(len(whole(LINES, line)) for line in ("select 1\n", "from t", "from u"))
    assert table.encoded == asked
    again, _ = table.gather(rows)
    assert (again.tolist(), table.encoded) == (ids.tolist(), asked)

    monkeypatch.setattr("fim_core.tokenization.pieces.MAX_TOKENS", 3)
    fresh, _ = table.gather(rows)
    assert (fresh.tolist(), table.encoded) == (ids.tolist(), 2 * asked)
    empty, none = table.gather([])
    assert (len(empty), len(none)) == (0, 0)


ACUTE = "e\u0301"
NFC_BYTES = byte_level(FIM)
NFC_BYTES.backend_tokenizer.normalizer = normalizers.NFC()


@pytest.mark.parametrize("scheme", ["first", "always", "never"])
@given(st.text(st.sampled_from("ab (;\n"), max_size=8))
def test_what_a_model_learns_is_what_an_editor_gets(scheme: str, text: str) -> None:
    """The space before a completion belongs to it: `SELECT a` and ` FROM t` must not become `SELECT aFROM t`."""
    encoder = MARKED[scheme]
    back = encoder.decode(encoder.join([text]))
    assert encoder.changed_by(text) == (None if back == text else back)
    if scheme == "always":
        # This one makes the same tokens of both.
        assert back in (text, text.removeprefix(" "))
    else:
        assert back == text


MARKED = {scheme: encoder_of(sentencepiece_like(scheme=scheme)) for scheme in ("first", "always", "never")}


def test_which_texts_a_tokenizer_changes() -> None:
    for tokenizer, text, expected in (
        (LINES, ACUTE, None),
        (LINES, " a\u00a0\U0001f642", None),
        (NFC_BYTES, ACUTE, "\u00e9"),
        (NFC_BYTES, " ascii\n", None),
        (METASPACE, "a\U0001f642b", "ab"),
    ):
        assert encoder_of(tokenizer).changed_by(text) == expected


def test_no_text_can_contain_the_anchor() -> None:
    encoder = MARKED["first"]
    ids = encoder.join(["\ue000" * 3 + "\ue001"])
    assert max(ids) < len(METASPACE)
