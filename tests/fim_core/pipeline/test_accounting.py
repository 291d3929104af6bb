"""Row counts add up, wherever rows were rejected."""

from __future__ import annotations

from pathlib import Path

from data_path import completion, run_data_path

from fim_core.cli.summary import row_lines
from fim_core.demo.tokenizer import train_tokenizer
from fim_core.pipeline.accounting import RowAccount


def test_every_row_is_counted_once(tmp_path: Path) -> None:
    rows = [completion("select ", f" from t{number}", "a", SHEET=f"w{number % 40}") for number in range(200)]
    rows += [completion("select ", "current_date", "", SHEET=f"w{number}") for number in range(40)]
    rows += [completion("select ", ", ".join("abcdefghij"[: number % 7]) + " " * 900, "x") for number in range(9)]
    rows += [{"input": ""}, {"input": "{"}, {"input": "{"}]
    tokenizer = train_tokenizer(["select a\n  from t;\n"] * 3, 600)
    done = run_data_path(tmp_path, rows, tokenizer, group_by="sheet", max_length=600)
    prompts, tokens = (vars(counts) for counts in (done.prompt_counts, done.counts))
    account = RowAccount.of(prompts, tokens)
    assert account.rejected == {"empty_input": 1, "invalid_json": 2, "too_long": 9}
    assert account.left_out > 0
    assert account.rows_in == len(rows) == account.kept + account.left_out + sum(account.rejected.values())
    assert account.kept == len(done.rows) == tokens["rows_kept"]
    assert dict(row_lines(prompts, tokens)) == {
        "rows in": "252",
        "kept": f"{account.kept} ({account.train} to train on, {account.eval} held out)",
        "rejected": "12 (empty_input 1, invalid_json 2, too_long 9)",
        "left out": f"{account.left_out} (their group is held out, but their statement is trained on elsewhere)",
        "held-out groups": f"{prompts['held_out_groups']} of {prompts['groups']}",
    }
