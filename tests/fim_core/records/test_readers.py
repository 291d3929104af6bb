"""Files are read verbatim, value by value, or refused."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fim_core.errors import FimError
from fim_core.records import readers
from fim_core.records.readers import read_file


def read(path: Path) -> list[dict[str, str]]:
    export = read_file(path, path.name)
    return [row for batch in export.batches(pytest.fail) for row in batch.to_pylist()]


def write(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


WORDS = ["NULL", "NA", "null", "None", "nan", "007", "1.10", "true", "1e5", "2024-01-01", "", " ", " x ", "'", "#"]


def test_csv_values_stay_text(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "INPUT,OUTPUT\n" + "".join(f'{word},"{word}"\n' for word in WORDS))
    assert read(path) == [{"INPUT": word, "OUTPUT": word} for word in WORDS]


def test_csv_line_breaks_quotes_and_empty_fields(tmp_path: Path) -> None:
    content = '\ufeffa,b,c\r\n"x\r\ny\n\rz","say ""hi""",\r\n\r\n,"",\x00"\r\n"a,b",\u2028,\x85'
    assert read(write(tmp_path / "a.CSV", content)) == [
        {"a": "x\r\ny\n\rz", "b": 'say "hi"', "c": ""},
        {"a": "", "b": "", "c": '\x00"'},
        {"a": "a,b", "b": "\u2028", "c": "\x85"},
    ]


@pytest.mark.parametrize("suffix", ["csv", "csv.gz", "csv.zst", "CSV.GZ"])
def test_compression_by_suffix(tmp_path: Path, suffix: str) -> None:
    pack = {"csv": bytes, "gz": gzip.compress, "zst": zstd}[suffix.lower().split(".")[-1]]
    content = b'INPUT,OUTPUT\n"a\r\nb",\xc3\xa9\n'
    assert read(write(tmp_path / f"a.{suffix}", pack(content))) == [{"INPUT": "a\r\nb", "OUTPUT": "é"}]


def test_gzip_of_several_members(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv.gz", gzip.compress(b"a,b\n1,2\n") + gzip.compress(b"3,4\n"))
    assert read(path) == [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}]


def test_a_field_longer_than_any_buffer(tmp_path: Path) -> None:
    long = 'x"\r\n' * 1_000_000
    path = tmp_path / "a.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["a", "b"], ["1", long], ["2", ""]])
    assert read(path) == [{"a": "1", "b": long}, {"a": "2", "b": ""}]


def test_batches_are_bounded_and_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "BATCH_ROWS", 10)
    monkeypatch.setattr(readers, "BATCH_CHARACTERS", 100)
    path = write(tmp_path / "a.csv", "a\n" + "".join(f"{n}\n" for n in range(25)) + "x" * 150 + "\nlast\n")
    batches = list(read_file(path, "a").batches(pytest.fail))
    assert [batch.num_rows for batch in batches] == [10, 10, 6, 1]
    assert [row["a"] for batch in batches for row in batch.to_pylist()] == [*map(str, range(25)), "x" * 150, "last"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"\n\n", "empty"),
        (b"a,b\n1,2\n3\n4,5\n", "line 3: 1 values where the header has 2"),
        (b'a,b\n"x\ny",2\n1,2,3\n', "line 4: 3 values"),
        (b'a,b\n1,"never closed\n2,3\n', "line 2, is not well-formed.*begins in this row is not closed"),
        (b'a,b\n1,"x\ny"z\n', "line 3, is not well-formed"),
        (b'a,b\n1,"{\\"text\\": 1}"\n', "line 2.*escaped by a backslash"),
        (b'a,b\n1,"x, \\", \\"y"\n', "line 2.*escaped by a backslash"),
        (b'a,b\n1,"{""t"": ""\\""""}",3\n', "line 2: 3 values.*damaged or truncated"),
        ("a,b\n1,2\n1,ü\n".encode("latin-1"), "line 3, is not UTF-8"),
        (b'a,b\n1,"x"y\n', "line 2.*not well-formed"),
        (b"a,b\n1,\xff\n", "not UTF-8"),
        ("a,b\n1,é\n".encode("utf-16"), "not UTF-8"),
    ],
)
def test_damaged_csv(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(FimError, match=message):
        read(write(tmp_path / "a.csv", content))


@pytest.mark.parametrize("pack", [gzip.compress, zstd])
def test_truncated_compressed_file(tmp_path: Path, pack: object) -> None:
    rows = "".join(f"{n},{n * 7919 % 10007}\n" for n in range(20_000))
    content = pack(f"a,b\n{rows}".encode())  # type: ignore[operator]
    suffix = "gz" if pack is gzip.compress else "zst"
    for share in (0.3, 0.9, 0.999):
        path = write(tmp_path / f"a.csv.{suffix}", content[: int(len(content) * share)])
        with pytest.raises(FimError, match=r"a\.csv"):
            read(path)


def test_an_error_does_not_quote_the_file(tmp_path: Path) -> None:
    for name, content in [
        ("a.csv", 'a,b\n1,"hunter2"hunter2\n'),
        ("b.csv", "a,b\nhunter2\n"),
        ("c.jsonl", "hunter2\n"),
    ]:
        with pytest.raises(FimError) as caught:
            read(write(tmp_path / name, content))
        assert "hunter2" not in str(caught.value)


def test_json_lines(tmp_path: Path) -> None:
    lines = [
        '{"INPUT": "a\\r\\nb", "OUTPUT": 1.10, "n": 70e-1}',
        "",
        '{"OUTPUT": null, "INPUT": [{"type": "text", "text": "é\\u2028 <fillMe>", "x": 1.50}], "b": true}',
        '{"n": 123456789012345678901234567890, "OUTPUT": "NULL", "d": {}, "e": {"k": [null, false, "\\""]}}',
    ]
    assert read(write(tmp_path / "a.jsonl", "\ufeff" + "\r\n".join(lines))) == [
        {"INPUT": "a\r\nb", "OUTPUT": "1.10", "n": "70e-1", "b": "", "d": "", "e": ""},
        {
            "INPUT": '[{"type": "text", "text": "é\u2028 <fillMe>", "x": 1.50}]',
            "OUTPUT": "",
            "n": "",
            "b": "true",
            "d": "",
            "e": "",
        },
        {
            "INPUT": "",
            "OUTPUT": "NULL",
            "n": "123456789012345678901234567890",
            "b": "",
            "d": "{}",
            "e": '{"k": [null, false, "\\""]}',
        },
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b'{"a": 1}\n[1]\n', "line 2"),
        (b'{"a": 1}\n{"a": 1\n', "line 2"),
        (b'{"a": 1, "a": 2}\n', "line 1"),
        (b'{"a": ' + b"[" * 100_000 + b"\n", "line 1"),
        (b'{"a": "x"}\n{"a": "\\ud800"}\n', "line 2, holds half of a surrogate"),
        (b'{"\\udfff": "x"}\n', "line 1, holds half of a surrogate"),
        (b'{"a": "\\ud83d\\ude42", "b": "\\ude42\\ud83d"}\n', "line 1, holds half of a surrogate"),
        (b'{"a": "\xff"}\n', "not UTF-8"),
    ],
)
def test_damaged_json_lines(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(FimError, match=message):
        read(write(tmp_path / "a.jsonl", content))


def test_keys_that_are_data_are_refused(tmp_path: Path) -> None:
    """As many columns as rows would cost their product; so would a header of that length."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f'{{"id {number}": 1}}\n' for number in range(readers.MOST_COLUMNS + 1)))
    header = tmp_path / "rows.csv"
    header.write_text(",".join(f"c{number}" for number in range(readers.MOST_COLUMNS + 1)) + "\n")
    for file in (path, header):
        with pytest.raises(FimError, match=f"{file.name} has more than 1,000 columns"):
            read_file(file, file.name)


def test_half_a_surrogate_pair_inside_a_nested_value_stays_an_escape(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"INPUT": [{"text": "é\\ud800"}]}\n')
    assert json.loads(read(path)[0]["INPUT"]) == [{"text": "é\ud800"}]


@pytest.mark.parametrize(
    "make",
    [
        lambda values: pa.array(values, pa.string()),
        lambda values: pa.array(values, pa.large_string()),
        lambda values: pa.array(values, pa.string_view()),
        lambda values: pa.array(values, pa.string()).dictionary_encode(),
        lambda values: pa.array(values, pa.large_string()).dictionary_encode(),
        lambda values: pa.array(values, pa.binary()),
    ],
)
def test_parquet_text_of_every_kind(tmp_path: Path, make: object) -> None:
    values = [*WORDS, "a\r\nb\x00é", None]
    pq.write_table(pa.table({"OUTPUT": make(values)}), tmp_path / "a.parquet")  # type: ignore[operator]
    assert [row["OUTPUT"] for row in read(tmp_path / "a.parquet")] == [value or "" for value in values]


def _list_of(values: pa.Array) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array([0, len(values)], pa.int32()), values)


@pytest.mark.parametrize(
    ("array", "texts"),
    [
        (pa.array([1, None], pa.int64()), ["1", ""]),
        (pa.array([2**64 - 1], pa.uint64()), ["18446744073709551615"]),
        (pa.array([True, False, None]), ["true", "false", ""]),
        (pa.array([Decimal("1.10"), None]), ["1.10", ""]),
        (pa.array([None, None], pa.null()), ["", ""]),
        (pa.array([b"\xff\x00", b"text", None]), ["ff00", "text", ""]),
        (pa.array([[1, 2], None, []]), ["[1, 2]", "", "[]"]),
        (pa.array([{"a": "\u2028é", "b": None}]), ['{"a": "\u2028é", "b": null}']),
        (pa.array([0], pa.date32()), ["1970-01-01"]),
        (pa.array([0], pa.timestamp("s", "Etc/GMT-1")), ["1970-01-01 01:00:00.000+0100"]),
        (pa.array([7], pa.duration("s")), ["7"]),
        (pa.array([1, None]).dictionary_encode(), ["1", ""]),
        (pa.array([["a", "b"], None], pa.list_(pa.large_string())), ['["a", "b"]', ""]),
        (pa.array([["a"]], pa.list_(pa.string_view())), ['["a"]']),
        (_list_of(pa.array(["a", "b", "a"]).dictionary_encode()), ['["a", "b", "a"]']),
        (pa.StructArray.from_arrays([pa.array(["a"]).dictionary_encode()], ["k"]), ['{"k": "a"}']),
    ],
)
def test_parquet_other_types_as_text(tmp_path: Path, array: pa.Array, texts: list[str]) -> None:
    pq.write_table(pa.table({"x": array}), tmp_path / "a.parquet")
    assert [row["x"] for row in read(tmp_path / "a.parquet")] == texts


@pytest.mark.parametrize(
    "make",
    [
        lambda texts: pa.array(texts),
        lambda texts: pa.array(texts, pa.large_string()),
        lambda texts: pa.array(texts, pa.string_view()),
        lambda texts: pa.array(texts).dictionary_encode(),
        lambda texts: pa.StructArray.from_arrays([pa.array(texts).dictionary_encode()], ["text"]),
    ],
    ids=["string", "large_string", "string_view", "dictionary", "nested_dictionary"],
)
def test_memory_stays_flat_with_large_values(tmp_path: Path, make: Callable[[list[str]], pa.Array]) -> None:
    rows, size = 512, 200_000
    texts = [str(row % 3) * size for row in range(rows)]
    pq.write_table(pa.table({"a": make(texts)}), tmp_path / "a.parquet")
    pool, before = pa.proxy_memory_pool(pa.default_memory_pool()), pa.default_memory_pool()
    pa.set_memory_pool(pool)
    try:
        read_rows = total = 0
        for batch in read_file(tmp_path / "a.parquet", "a").batches(print):
            read_rows, total = read_rows + len(batch), total + sum(map(len, batch.column(0).to_pylist()))
            del batch
    finally:
        pa.set_memory_pool(before)
    assert read_rows == rows
    assert total - rows * size in (0, rows * len('{"text": ""}'))
    assert pool.max_memory() < rows * size


def test_parquet_native_items(tmp_path: Path) -> None:
    items = [{"type": "text", "text": 'a "b"\n'}, {"type": "text", "text": "<fillMe>"}]
    pq.write_table(pa.table({"INPUT": pa.array([items, None])}), tmp_path / "a.parquet")
    first, second = read(tmp_path / "a.parquet")
    assert json.loads(first["INPUT"]) == items
    assert second["INPUT"] == ""


@pytest.mark.parametrize("nested", [False, True])
def test_parquet_text_that_is_not_utf_8(tmp_path: Path, nested: bool) -> None:
    buffers = [None, pa.array([0, 2], pa.int32()).buffers()[1], pa.py_buffer(b"a\xff")]
    text = pa.Array.from_buffers(pa.string(), 1, buffers)
    column = pa.StructArray.from_arrays([text], ["x"]) if nested else text
    pq.write_table(pa.table({"a": column}), tmp_path / "a.parquet")
    with pytest.raises(FimError, match=r"a\.parquet"):
        read(tmp_path / "a.parquet")


def test_truncated_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"a": [str(n) for n in range(10_000)]}), path)
    content = path.read_bytes()
    for damaged in (content[:-1], content[: len(content) // 2], b"", content[:4] + bytes(3000) + content[3004:]):
        with pytest.raises(FimError, match=r"a\.parquet"):
            read(write(path, damaged))


nasty = st.text(
    st.sampled_from('",\r\n\\ \x00é\u2028\U0001f600') | st.characters(exclude_categories=["Cs"]), max_size=20
)


# Python's writer quotes a line break only where it could be the end of a line.
dialects = st.sampled_from([(csv.QUOTE_MINIMAL, "\r\n"), *((csv.QUOTE_ALL, end) for end in ("\n", "\r\n", "\r"))])


@given(st.lists(st.tuples(nasty, nasty), max_size=5), dialects, st.sampled_from(["utf-8", "utf-8-sig"]))
def test_csv_round_trip(tmp_path: Path, rows: list[tuple[str, str]], dialect: tuple[int, str], encoding: str) -> None:
    quoting, terminator = dialect
    text = io.StringIO(newline="")
    csv.writer(text, quoting=quoting, lineterminator=terminator).writerows([("a", "b"), *rows])
    path = write(tmp_path / "a.csv", text.getvalue().encode(encoding))
    assert [(row["a"], row["b"]) for row in read(path)] == rows


@given(st.lists(st.dictionaries(st.sampled_from("abc"), nasty, min_size=1), min_size=1, max_size=5), st.booleans())
def test_json_lines_round_trip(tmp_path: Path, rows: list[dict[str, str]], ascii_only: bool) -> None:
    path = write(tmp_path / "a.jsonl", "\n".join(json.dumps(row, ensure_ascii=ascii_only) for row in rows))
    for written, found in zip(rows, read(path), strict=True):
        assert {key: value for key, value in found.items() if value} == {k: v for k, v in written.items() if v}


@given(
    st.lists(st.tuples(nasty, nasty), min_size=1, max_size=4),
    st.sampled_from(["a.csv", "a.csv.gz", "a.csv.zst", "a.jsonl", "a.parquet"]),
    st.lists(st.tuples(st.integers(0), st.binary(max_size=3), st.integers(0, 3)), max_size=3),
)
def test_damaged_bytes_raise_only_FimError(
    tmp_path: Path, rows: list[tuple[str, str]], name: str, damage: list[tuple[int, bytes, int]]
) -> None:
    content = bytearray(_file(name, rows))
    for at, inserted, removed in damage:
        at %= len(content) + 1
        content[at : at + removed] = inserted
    path = write(tmp_path / name, bytes(content))
    try:
        found = read(path)
    except FimError:
        return
    assert all(isinstance(value, str) for row in found for value in row.values())
    if not damage:
        assert [(row["a"], row["b"]) for row in found] == rows


def _file(name: str, rows: list[tuple[str, str]]) -> bytes:
    if name == "a.parquet":
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table({"a": [a for a, _ in rows], "b": [b for _, b in rows]}), sink)
        return sink.getvalue().to_pybytes()
    if name == "a.jsonl":
        return "\n".join(json.dumps({"a": a, "b": b}) for a, b in rows).encode()
    text = io.StringIO(newline="")
    csv.writer(text).writerows([("a", "b"), *rows])
    content = text.getvalue().encode()
    return {"csv": bytes, "gz": gzip.compress, "zst": zstd}[name.split(".")[-1]](content)


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_is_detected(delimiter: str, tmp_path: Path) -> None:
    rows = [["TYPE", "INPUT", "OUT;PUT,|\t"], ["a,b", "x;y", "1\t2"], ["", "p|q", 'say "a"']]
    with (tmp_path / "e.csv").open("w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    export = read_file(tmp_path / "e.csv", "e.csv")
    assert export.columns == tuple(rows[0])
    (batch,) = export.batches(lambda text: None)
    assert [list(row.values()) for row in batch.to_pylist()] == rows[1:]
