"""Every SQL check passes on clean tables and finds exactly the rows that violate it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict, Features, List, Value

from fim_core import quality
from fim_core.prompts.secrets import mask_secrets
from fim_core.quality.check import Check
from fim_core.quality.run import load_checks, run_checks
from fim_core.records.feedback import NOT_ACCEPTED

Rows = list[dict[str, Any]]
Tables = dict[str, Rows]

PLACES = {
    "prefix_token": "recipe.fim_tokens.prefix",
    "suffix_token": "recipe.fim_tokens.suffix",
    "middle_token": "recipe.fim_tokens.middle",
    "group_by": "config.data.group_by",
    "placeholder": "config.data.placeholder",
    "shared_statements": "counts.shared",
    "mask_inputs": "config.data.mask_inputs",
    "max_length": "config.data.max_length",
    "vocab_size": "fim_prompts.counts.vocab_size",
    "nothing_held_out": "fim_prompts.counts.nothing_held_out",
    "end_id": "fim_prompts.recipe.fim_tokens.end_id",
}
PARAMETERS = {
    "prefix_token": "<|fim_prefix|>",
    "suffix_token": "<|fim_suffix|>",
    "middle_token": "<|fim_middle|>",
    "group_by": "worksheet_id",
    "placeholder": "<fillMe>",
    "asked": None,
    "shared_statements": 0,
    "nothing_held_out": "",
    "mask_inputs": True,
    "vocab_size": 100,
    "max_length": 8,
    "end_id": 9,
}
TYPES = ("fillMe_line", "fillMe_expr", "fillMe_empty")
FEATURES = Features(
    {
        "row_id": Value("string"),
        "type": Value("string"),
        "input_ids": List(Value("int32")),
        "labels": List(Value("int32")),
        "prompt_length": Value("int32"),
    }
)


def prompt_row(number: int, split: str) -> dict[str, Any]:
    prefix, response, suffix = f"SELECT column_{'abcdefghij'[number]} ", f"FROM table_{number}", " LIMIT 10;"
    return {
        "row_id": f"r{number}",
        "type": TYPES[number % 3],
        "prompt": f"system<|fim_prefix|>{prefix}<|fim_suffix|>{suffix}<|fim_middle|>",
        "response": response,
        "prefix": prefix,
        "suffix": suffix,
        "split": split,
        "group": f"g{number}",
        "source_type": "fim_completions",
        "is_completion": True,
        "control_spans": None,
        "trained_spans": None,
    }


def clean_tables() -> Tables:
    prompts = [prompt_row(number, "eval" if number >= 6 else "train") for number in range(9)]
    raw = [
        {
            "row_id": f"r{number}",
            "source": "export.csv",
            "source_type": "fim_completions",
            "type": TYPES[number % 3],
            "input": f"input {number}",
            "output": f"output {number}",
            "held_out": False,
            "worksheet_id": f"w{number // 3}",
        }
        for number in range(10)
    ]
    tokens = [
        {
            "row_id": row["row_id"],
            "type": row["type"],
            "input_ids": [1, 2, 3, 4, 9],
            "labels": [-100, -100, -100, 4, 9],
            "prompt_length": 3,
            "split": row["split"],
        }
        for row in prompts[:-1]
    ]
    return {
        "raw_completions": raw,
        "fim_prompts": prompts,
        "rejected": [{"row_id": "r9", "reason": "invalid_json", "detail": ""}],
        "tokenized_dataset": tokens,
        "not_tokenized": [{"row_id": "r8", "reason": "too_long", "detail": ""}],
        "changed": [],
    }


def row(tables: Tables, table: str, number: int) -> dict[str, Any]:
    return tables[table][number]


def setting(table: str, number: int, **values: Any) -> Callable[[Tables], None]:
    return lambda tables: tables[table][number].update(values)


def dropping(table: str, number: int) -> Callable[[Tables], None]:
    return lambda tables: tables[table].__delitem__(number)


def adding(table: str, **values: Any) -> Callable[[Tables], None]:
    return lambda tables: tables[table].append(values)


def repeating(table: str, number: int, **changes: Any) -> Callable[[Tables], None]:
    return lambda tables: tables[table].append({**tables[table][number], **changes})


def only(table: str, keep: Callable[[dict[str, Any]], bool]) -> Callable[[Tables], None]:
    return lambda tables: tables.update({table: [row for row in tables[table] if keep(row)]})


def previous(scale: int) -> Callable[[Tables], None]:
    """Enough rows of each type to compare; the previous ones `scale` times as long."""

    def spoil(tables: Tables) -> None:
        rows = [prompt_row(0, "train") | {"row_id": f"p{number}"} for number in range(30)]
        tables["fim_prompts"] += rows
        tables["previous"] = [row | {"response": row["response"] * scale} for row in copy.deepcopy(rows)]

    return spoil


def conversation(labels: list[int], prompt_length: int = 3) -> Callable[[Tables], None]:
    """Labels of a row with one earlier turn of the assistant, which is its second token of three before the response."""

    def spoil(tables: Tables) -> None:
        setting(P, 2, trained_spans=[3, 5], source_type="messages", is_completion=False)(tables)
        setting(T, 2, prompt_length=prompt_length, labels=labels)(tables)

    return spoil


def no_type(tables: Tables) -> None:
    for raw in tables["raw_completions"]:
        del raw["type"]


def in_groups(sizes: list[int], left_out: int = 0) -> Callable[[Tables], None]:
    """Held-out groups of these sizes in 200 rows."""

    def spoil(tables: Tables) -> None:
        names = [f"h{group}" for group, size in enumerate(sizes) for _ in range(size)]
        held = [prompt_row(0, "eval") | {"row_id": f"e{place}", "group": name} for place, name in enumerate(names)]
        others = ["left_out"] * left_out + ["train"] * (200 - len(held) - left_out)
        tables["fim_prompts"] = held + [
            prompt_row(0, split) | {"row_id": f"t{place}", "group": f"t{place}"} for place, split in enumerate(others)
        ]

    return spoil


def same_query(tables: Tables) -> None:
    """Rows 0 (training) and 7 (held out) differ in case, white space and literals only."""
    row(tables, "fim_prompts", 0).update(prefix="select  A from t\nwhere b = 'x' and c = ", response="10", suffix=";")
    row(tables, "fim_prompts", 7).update(prefix="SELECT a FROM t WHERE b = 'y''z' AND ", response="c = 2.5", suffix=";")


def prompt_of(number: int, prompt: str) -> Callable[[Tables], None]:
    return setting("fim_prompts", number, prompt=prompt)


P, R, T = "fim_prompts", "raw_completions", "tokenized_dataset"
MIDDLE = "<|fim_prefix|>a<|fim_suffix|>b<|fim_middle|>"

# check, how to spoil the tables, keys of the offenders
CASES: list[tuple[str, Callable[[Tables], None], list[str]]] = [
    ("required_columns", no_type, ["type"]),
    ("raw_not_empty", only(R, lambda row: False), ["raw_completions"]),
    ("repeated_row_ids", repeating(R, 3), ["r3"]),
    ("empty_input", setting(R, 2, input=" \n"), ["r2"]),
    ("empty_input", setting(R, 2, input=None), ["r2"]),
    ("exact_duplicates", setting(R, 4, input="input 1", output="output 1"), ["r4"]),
    ("conflicting_outputs", setting(R, 4, input="input 1"), ["r1", "r4"]),
    ("prompts_not_empty", only(P, lambda row: row["split"] == "eval"), ["train"]),
    ("prompts_accounted_for", dropping(P, 5), ["r5"]),
    ("prompts_accounted_for", repeating(P, 5), ["r5"]),
    ("prompts_accounted_for", repeating(P, 5, row_id="stranger"), ["stranger"]),
    ("prompts_accounted_for", setting("rejected", 0, reason=""), ["r9"]),
    ("rejected_share", adding("rejected", row_id="r1", reason="too_long", detail=""), ["r1", "r9"]),
    (
        "rejected_share",
        lambda tables: [
            adding("rejected", row_id=f"u{n}", reason=str(reason), detail="")(tables)
            for n, reason in enumerate(NOT_ACCEPTED)
        ],
        ["r9"],
    ),
    ("not_accepted", adding("rejected", row_id="r1", reason="rejected_by_user", detail=""), ["r1"]),
    ("not_accepted", adding("rejected", row_id="r1", reason="no_action", detail=""), ["r1"]),
    ("not_accepted", adding("rejected", row_id="r1", reason="no_kept_text", detail=""), ["r1"]),
    ("not_accepted", adding("rejected", row_id="r1", reason="unknown_feedback", detail=""), []),
    ("empty_outputs", setting(P, 2, response=""), ["r2"]),
    ("empty_prefix", setting(P, 2, prefix=""), ["r2"]),
    ("ends_in_middle_token", prompt_of(1, MIDDLE + " "), ["r1"]),
    ("fim_tokens_once", prompt_of(1, "<|fim_prefix|>" + MIDDLE), ["r1"]),
    ("fim_tokens_once", prompt_of(1, MIDDLE.replace("<|fim_suffix|>", "")), ["r1"]),
    ("fim_tokens_once", prompt_of(1, MIDDLE * 2), ["r1"]),
    ("fim_tokens_once", setting(P, 1, response="x<|fim_middle|>"), ["r1"]),
    ("placeholder_left", setting(P, 1, suffix="a <fillMe> b"), ["r1"]),
    ("length_limits", setting(P, 1, response="x" * 4001), ["r1"]),
    ("length_limits", prompt_of(1, "x" * 100_001), ["r1"]),
    ("split_by_group", setting(P, 7, group="g0"), ["r7"]),
    ("held_out_share", in_groups([5, 4, 1, 1, 1, 1, 1, 1, 1]), ["groups", "largest group"]),
    ("held_out_share", in_groups([]), ["groups"]),
    ("split_by_query", same_query, ["r7"]),
    ("split_by_worksheet", setting(R, 7, worksheet_id="w0"), ["r7"]),
    ("answer_in_context", setting(P, 3, response="nineteen and one more", prompt="x nineteen and one more y"), ["r3"]),
    ("secrets", setting(P, 3, response="CREDENTIALS = (AWS_SECRET_KEY = 'abcdef123456')"), ["r3"]),
    ("secrets", setting(P, 3, response="-- AKIAABCDEFGHIJKLMNOP"), ["r3"]),
    ("secrets", prompt_of(3, "password => 'hunter2x'"), ["r3"]),
    ("email_like_text", prompt_of(3, "where mail = 'ann.lee@mail.example.org'"), ["r3"]),
    *[
        ("null_like_outputs", setting(P, 3, response=mark), ["r3"])
        for mark in (" NULL", "\\N", "null", "NaN", "None", "<NA>", "NaT", "N/A", "#N/A", "(null)", "[NULL]")
    ],
    ("length_drift", previous(scale=3), ["fillMe_line"]),
    ("tokens_not_empty", only(T, lambda row: row["split"] == "eval"), ["train"]),
    ("held_out_rows", only(T, lambda row: row["split"] == "train"), ["eval"]),
    ("tokens_accounted_for", dropping(T, 2), ["r2"]),
    ("tokens_accounted_for", repeating(T, 2), ["r2"]),
    ("tokens_accounted_for", repeating(T, 2, row_id="stranger"), ["stranger"]),
    ("tokens_accounted_for", repeating("not_tokenized", 0, row_id="r1"), ["r1"]),
    ("responses_unchanged", adding("changed", row_id="r4"), ["r4"]),
    ("label_mask", setting(T, 2, labels=[-100, -100, 3, 4, 9]), ["r2"]),
    ("label_mask", setting(T, 2, labels=[-100, -100, -100, -100, 9]), ["r2"]),
    ("label_mask", setting(T, 2, labels=[-100, -100, -100, 5, 9]), ["r2"]),
    ("label_mask", setting(T, 2, labels=[-100, -100, -100, 4]), ["r2"]),
    ("label_mask", setting(T, 2, prompt_length=5, labels=[-100] * 5), ["r2"]),
    ("label_mask", setting(T, 2, prompt_length=6), ["r2"]),
    # A conversation whose only trained stretch is the response, though its earlier turn should be one as well.
    ("label_mask", setting(P, 2, trained_spans=[3, 5]), ["r2"]),
    ("label_mask", conversation([-100, 2, 3, 4, 9]), ["r2"]),
    ("label_mask", conversation([-100, 2, -100, 5, 9]), ["r2"]),
    ("label_mask", conversation([1, -100, 3, 4, 9]), ["r2"]),
    ("label_mask", conversation([-100, 2, -100, 4, -100]), ["r2"]),
    ("label_mask", conversation([-100, 2, -100, -100, 9]), ["r2"]),
    ("label_mask", conversation([-100, 2, -100, 4, 9], prompt_length=1), ["r2"]),
    ("label_mask", conversation([-100, 2, -100, 4, 9], prompt_length=4), ["r2"]),
    ("vocabulary_range", setting(T, 2, input_ids=[1, 2, 3, 100, 9]), ["r2"]),
    ("vocabulary_range", setting(T, 2, input_ids=[-1, 2, 3, 4, 9]), ["r2"]),
    ("token_limit", setting(T, 2, input_ids=[1] * 9), ["r2"]),
    ("ends_in_end_token", setting(T, 2, labels=[-100, -100, -100, 4, 5]), ["r2"]),
    ("ends_in_end_token", setting(T, 2, labels=[]), ["r2"]),
    ("trained_tokens", setting(T, 2, labels=[-100] * 5), ["r2"]),
]


def write_tables(tables: Tables, folder: Path) -> dict[str, Path]:
    paths = {}
    for name, rows in tables.items():
        if name == T:
            splits = {
                split: Dataset.from_dict(
                    {key: [row[key] for row in rows if row["split"] == split] for key in FEATURES}, features=FEATURES
                )
                for split in ("train", "eval")
            }
            DatasetDict(splits).save_to_disk(folder / name)
            paths[name] = folder / name
        else:
            # Types come from the clean rows, so that a table without rows has its columns.
            schema = pa.Table.from_pylist(rows or clean_tables()[name] or [{"row_id": ""}]).schema
            paths[name] = folder / f"{name}.parquet"
            pq.write_table(pa.Table.from_pylist(rows, schema=schema), paths[name])
    return paths


def results_of(asset: str, tables: dict[str, Path], **parameters: Any) -> dict[str, Any]:
    return {result.name: result for result in run_checks(asset, tables, facts(PARAMETERS | parameters), {})}


def facts(parameters: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    places = PLACES.items() | {("asked", "counts.asked_share"), ("asked", "fim_prompts.counts.asked_share")}
    for name, place in places:
        *folders, last = place.split(".")
        inner = found
        for folder in folders:
            inner = inner.setdefault(folder, {})
        inner[last] = parameters[name]
    return found


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_tables(clean_tables(), tmp_path_factory.mktemp("clean"))


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only SQL checks; those in Python have tests of their own."""
    load_all = load_checks.__wrapped__

    def load_sql(asset: str) -> list[Check]:
        return [check for check in load_all(asset) if isinstance(check.find, partial)]

    monkeypatch.setattr("fim_core.quality.run.load_checks", load_sql)


@pytest.mark.parametrize("asset", [R, P, T])
def test_clean_tables_pass(asset: str, clean: dict[str, Path]) -> None:
    found = {name: (result.rows, result.passed) for name, result in results_of(asset, clean).items()}
    tolerated = {"rejected_share": (1, True), "held_out_share": (2, False)}
    assert found == {name: tolerated.get(name, (0, True)) for name in found}


@pytest.mark.parametrize(("name", "spoil", "keys"), CASES, ids=[f"{name}-{i}" for i, (name, _, _) in enumerate(CASES)])
def test_bad_rows_are_found(
    name: str, spoil: Callable[[Tables], None], keys: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = clean_tables()
    spoil(tables)
    asset = next(path.parent.name for path in sql_files() if path.stem == name)
    wanted = [check for check in load_checks(asset) if check.name == name]
    monkeypatch.setattr("fim_core.quality.run.load_checks", lambda asset: wanted)
    monkeypatch.setattr("fim_core.quality.run.known_checks", lambda: {name: asset})
    result = results_of(asset, write_tables(tables, tmp_path))[name]
    assert (result.rows, result.row_ids) == (len(keys), keys)
    strict = result.max_share is None
    assert result.passed is (False if strict else result.rows <= result.max_share * result.total)


def sql_files() -> list[Path]:
    return sorted(Path(quality.__file__).parent.glob("*/*.sql"))


def test_every_file_has_a_case() -> None:
    assert {path.stem for path in sql_files()} == {name for name, _, _ in CASES}


def test_labels_when_training_on_every_token(tmp_path: Path, clean: dict[str, Path]) -> None:
    assert results_of(T, clean, mask_inputs=False)["label_mask"].rows == 8
    tables = clean_tables()
    for tokens in tables[T]:
        tokens["labels"] = tokens["input_ids"]
    assert results_of(T, write_tables(tables, tmp_path), mask_inputs=False)["label_mask"].passed


def test_the_note_on_held_out_rows(tmp_path: Path) -> None:
    tables = clean_tables()
    in_groups([2] * 10, left_out=3)(tables)
    found = results_of(P, write_tables(tables, tmp_path), asked=0.1, shared_statements=7)["held_out_share"]
    assert found.passed
    assert found.note == (
        "20 of 200 rows (10.0%) in 10 of 190 groups are held out. The largest of these groups has 10.0% of the held-out "
        "rows. 3 rows are in neither split: their group is held out, but their statement also occurs in training groups."
    )
    (shown,) = found.breakdown
    assert (shown["asked"], shown["held_out_share"], shown["rows_of_shared_statements"]) == (0.1, 0.1, 7)
    assert (shown["largest_group_rows"], shown["largest_held_out_group_share"], shown["left_out"]) == (2, 0.1, 3)
    for asked, faults in ((0.13, ["share"]), (0.12, []), (0.07, ["share"])):
        assert results_of(P, write_tables(tables, tmp_path), asked=asked)["held_out_share"].row_ids == faults


@pytest.mark.parametrize(
    ("parameters", "note"),
    [
        ({"asked": 0.0}, "No rows are to be held out: data.eval_fraction is 0."),
        ({"nothing_held_out": "The reason."}, "The reason."),
        ({}, "All 3 held-out rows are longer than data.max_length (8 tokens)."),
    ],
)
def test_why_nothing_is_held_out(parameters: dict[str, Any], note: str, tmp_path: Path) -> None:
    tables = clean_tables()
    only(T, lambda row: row["split"] == "train")(tables)
    found = results_of(T, write_tables(tables, tmp_path), **parameters)["held_out_rows"]
    assert (found.severity, found.passed, found.note) == ("error", "asked" in parameters, note)


def test_the_note_on_rejected_rows_names_reasons_markers_and_file(tmp_path: Path) -> None:
    tables = clean_tables()
    details = ["INPUT holds no <fillMe>; it holds <FILL_ME>"] * 3 + [
        "INPUT holds no <fillMe>; it holds <FILL_ME>, [MASK]"
    ]
    details.append("INPUT holds no <fillMe>")
    tables["rejected"] += [
        {"row_id": f"m{number}", "reason": "missing_placeholder", "detail": detail}
        for number, detail in enumerate(details)
    ]
    found = results_of(P, write_tables(tables, tmp_path))["rejected_share"]
    assert not found.passed
    assert found.note == (
        "By reason: missing_placeholder 5, invalid_json 1. Only <fillMe> marks the cursor, but rows contain "
        f"<FILL_ME> (4), [MASK] (1): set data.placeholder. All rejected rows with their reasons: {tmp_path}/rejected.parquet"
    )
    tables["rejected"] = []
    assert results_of(P, write_tables(tables, tmp_path))["rejected_share"].note == ""


def test_the_note_on_too_long_rows_when_none_is_left(tmp_path: Path) -> None:
    tables = clean_tables()
    tables[T] = []
    tables["not_tokenized"] = [
        {"row_id": f"r{tokens}", "reason": "too_long", "detail": f"{tokens} tokens, 8 allowed"}
        for tokens in (900, 1200, 3000)
    ]
    assert results_of(T, write_tables(tables, tmp_path))["tokens_not_empty"].note == (
        "3 rows are too_long: they have 900 to 3,000 tokens, half of them more than 1,200, and data.max_length is 8. They "
        f"are in {tmp_path}/not_tokenized.parquet"
    )


def test_the_note_when_no_row_is_left_for_training(tmp_path: Path) -> None:
    tables = clean_tables()
    only(P, lambda row: row["split"] == "eval")(tables)
    assert results_of(P, write_tables(tables, tmp_path))["prompts_not_empty"].note == (
        "1 rows were rejected (see rejected_share), 3 are held out, and no row is left for training."
    )


def test_rows_left_out_of_both_splits_are_accounted_for(tmp_path: Path) -> None:
    tables = clean_tables()
    setting(P, 7, split="left_out")(tables)
    only(T, lambda row: row["row_id"] != "r7")(tables)
    found = results_of(T, write_tables(tables, tmp_path))
    assert found["tokens_accounted_for"].passed


@pytest.mark.parametrize(
    ("spans", "labels"),
    [([3, 5], [-100, 2, -100, 4, 9]), ([3, len(prompt_row(2, "train")["prompt"])], [-100, 2, 3, 4, 9])],
)
def test_conversations_have_trained_spans(spans: list[int], labels: list[int], tmp_path: Path) -> None:
    tables = clean_tables()
    conversation(labels)(tables)
    setting(P, 2, trained_spans=spans)(tables)
    assert results_of(T, write_tables(tables, tmp_path))["label_mask"].passed


def test_worksheets_may_be_shared_unless_rows_are_grouped_by_them(tmp_path: Path) -> None:
    tables = clean_tables()
    setting(R, 7, worksheet_id="w0")(tables)
    found = results_of(P, write_tables(tables, tmp_path), group_by="statement")["split_by_worksheet"]
    assert found.passed
    assert found.breakdown == [{"held_out_rows": 3, "worksheet_in_training": 1}]


def test_rows_without_a_worksheet_share_none(tmp_path: Path) -> None:
    tables = clean_tables()
    for number in (2, 7):
        setting(R, number, worksheet_id="")(tables)
    found = results_of(P, write_tables(tables, tmp_path), group_by="worksheet_id")["split_by_worksheet"]
    assert found.passed
    assert found.breakdown == [{"held_out_rows": 3, "worksheet_in_training": 0}]


def test_a_check_without_its_input_passes_with_a_note(tmp_path: Path, clean: dict[str, Path]) -> None:
    tables = clean_tables()
    for raw in tables[R]:
        del raw["worksheet_id"]
    found = results_of(P, write_tables(tables, tmp_path))
    assert found["length_drift"].passed
    assert found["length_drift"].note == "Not checked: previous not available."
    assert found["split_by_worksheet"].note == "Not checked: raw_completions.worksheet_id not available."


def test_lengths_like_before_pass_and_are_shown(tmp_path: Path) -> None:
    tables = clean_tables()
    previous(scale=1)(tables)
    found = results_of(P, write_tables(tables, tmp_path))["length_drift"]
    assert found.passed
    shown = [row for row in found.breakdown if row["version"] == "previous"]
    assert [(row["type"], row["rows"], row["response_p50"]) for row in shown] == [("fillMe_line", 30, 12)]


def test_shares_by_type(tmp_path: Path) -> None:
    tables = clean_tables()
    setting(P, 2, response="")(tables)
    found = results_of(P, write_tables(tables, tmp_path))["empty_outputs"]
    assert found.breakdown[0] == {"type": "fillMe_empty", "rows": 1, "total": 3, "share": 0.33333}
    assert (found.total, round(found.share, 3)) == (9, 0.111)


def test_neutralised_rows_may_name_fim_tokens(tmp_path: Path) -> None:
    tables = clean_tables()
    setting(P, 1, prompt="-- <|fim_prefix|>" + MIDDLE, control_spans=[17, 31])(tables)
    assert results_of(P, write_tables(tables, tmp_path))["fim_tokens_once"].rows == 0


@pytest.mark.parametrize(
    "secret",
    [
        "CREDENTIALS = (AWS_SECRET_KEY = 'abcdef123456')",
        "-- AKIAABCDEFGHIJKLMNOP",
        "PASSWORD => 'correct horse'",
        "ghp_" + "a1" * 20,
        "xoxb-1234567890-abc",
        "sk-" + "a1" * 12,
        "AIza" + "b" * 35,
        "eyJhbGciOiJI.eyJzdWIiOiIx.c2lnbmF0dXJl",
        "-----BEGIN RSA PRIVATE KEY-----\n" + "A1b2" * 8 + "\n-----END RSA PRIVATE KEY-----",
        "where mail = 'ann.lee@mail.example.org'",
    ],
)
def test_masked_secrets_are_not_found(secret: str, tmp_path: Path) -> None:
    name = "email_like_text" if "@" in secret else "secrets"
    for folder, text, rows in (("open", secret, 1), ("masked", mask_secrets(secret)[0], 0)):
        tables = clean_tables()
        prompt_of(3, text)(tables)
        (tmp_path / folder).mkdir()
        assert results_of(P, write_tables(tables, tmp_path / folder))[name].rows == rows, folder


@pytest.mark.parametrize(
    ("is_completion", "around", "passes"),
    [(False, "", True), (False, None, True), (True, "a", False)],
)
def test_rows_without_a_cursor_need_no_fim_tokens(
    tmp_path: Path, is_completion: bool, around: str | None, passes: bool
) -> None:
    tables = clean_tables()
    setting(P, 1, is_completion=is_completion, prompt="plain", prefix=around, suffix=around)(tables)
    found = results_of(P, write_tables(tables, tmp_path))
    assert found["empty_prefix"].passed
    assert {found[name].passed for name in ("ends_in_middle_token", "fim_tokens_once")} == {passes}
    assert found["empty_prefix"].rows == 0
