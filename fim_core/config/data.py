"""`data`: where rows come from and how they become training examples."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from fim_core.config.base import DialectName, Place, Section
from fim_core.config.split import parse_split

SourceType = Literal[
    "auto", "fim_completions", "huggingface_prompt_response", "huggingface_instruct", "huggingface", "sql_files", "demo"
]


HUB_ARGUMENTS = ("name", "data_dir", "data_files", "revision", "verification_mode")
"""Arguments of `datasets.load_dataset` that choose what is read. Others run code of the data set, hold secrets, or have
an option of their own."""


class SqlFileOptions(Section):
    """How whole SQL files are cut into completions (`type: sql_files`)."""

    cuts_per_statement: float = Field(2.0, gt=0, description="Expected completions made from each statement.")
    syntax_rate: float = Field(
        0.7, ge=0, le=1, description="Share of middles cut at syntax-node boundaries; rest random."
    )
    empty_rate: float = Field(0.05, ge=0, le=1, description="Share of cuts with nothing missing.")
    dialect: DialectName = Field("snowflake", description="sqlglot dialect that splits and parses the files.")


class Source(Section):
    """One place rows come from: a file, a folder, a hub data set, or the built-in demo."""

    type: SourceType = Field("auto", description="Shape of the rows. auto: told by the columns, or by *.sql files.")
    name_or_path: Place | None = Field(None, description="CSV, Parquet or JSON-lines file, folder, glob, or hub id.")
    split: str = Field(
        "train",
        description="Split to read from a hub id or a saved DatasetDict. Of any source it may take a slice of the rows: "
        "`train[10:20]`, `train[:10%]`.",
    )
    sample_ratio: float | None = Field(
        None, gt=0, le=1, description="Share of the source's rows (of its slice) that is drawn at random. Default: all."
    )
    sample_count: int | None = Field(
        None, ge=1, description="Rows of the source (of its slice) that are drawn at random. Default: all."
    )
    sample_seed: int = Field(42, description="Seed of the draw.")
    input_col: str = Field("INPUT", description="Column with the editor's state (any case).")
    output_col: str = Field("OUTPUT", description="Column with the accepted completion (any case).")
    type_col: str = Field("TYPE", description="Column with the kind of completion; optional (any case).")
    columns: dict[str, str] | None = Field(
        None,
        description="For `type: huggingface`: which columns are `prompt` (finished prompts) and `response`, or "
        "`messages`.",
    )
    render: Literal["chat"] | None = Field(
        None,
        description="For prompt and response columns. Default: prompts are finished and tokenized as they are. chat: "
        "they are questions, which get the tokenizer's chat markup.",
    )
    role_mapping: dict[str, str] | None = Field(
        None,
        description="For chat rows: where a role's text lies, `role: column.key.value` (user: messages.role.user).",
    )
    content_key: str | None = Field(
        None,
        description="With role_mapping: key of a message's text. Default: the first of content, text, message, value.",
    )
    kwargs: dict[str, Any] = Field(
        {}, description=f"For a hub id: more arguments of datasets.load_dataset ({', '.join(HUB_ARGUMENTS)})."
    )
    sql: SqlFileOptions | None = Field(None, description="Options of `type: sql_files`.")
    rows: int = Field(6000, ge=100, description="For `type: demo`: rows to generate.")
    seed: int = Field(7, description="For `type: demo` and `sql_files`: seed of what is generated.")

    @field_validator("split")
    @classmethod
    def _names_one_slice(cls, value: str) -> str:
        parse_split(value)
        return value

    @field_validator("kwargs")
    @classmethod
    def _reaches_the_library(cls, value: dict[str, Any]) -> dict[str, Any]:
        if unknown := [key for key in value if key not in HUB_ARGUMENTS]:
            raise ValueError(f"{', '.join(unknown)} cannot be given; {', '.join(HUB_ARGUMENTS)} can")
        return value

    @model_validator(mode="after")
    def _samples_one_way(self) -> Source:
        if self.sample_ratio is not None and self.sample_count is not None:
            raise ValueError("give either sample_ratio or sample_count")
        if self.content_key is not None and not self.role_mapping:
            raise ValueError("content_key goes with role_mapping")
        return self

    @model_validator(mode="after")
    def _has_a_place(self) -> Source:
        if self.type != "demo" and not self.name_or_path:
            raise ValueError("`name_or_path` is missing")
        if self.type == "huggingface" and self.columns is None:
            raise ValueError("`type: huggingface` needs `columns`, for example {prompt: question, response: answer}")
        return self


class DataConfig(Section):
    """`data`: sources, rendering, filtering, packing."""

    type: Literal["sft"] = Field("sft", description="Supervised fine-tuning data.")
    sources: list[Source] = Field(
        min_length=1, description="Training rows, read in this order. A path alone stands for its `name_or_path`."
    )
    eval_sources: list[Source] = Field(
        [], description="Held-out rows. Without them `eval_fraction` of the rows is held out."
    )
    eval_fraction: float = Field(
        0.1, ge=0, lt=1, description="Share of the rows that is held out when there are no eval_sources."
    )
    group_by: str = Field(
        "statement",
        description="Rows that are held out together: those of one `statement` (same SQL, white space and case folded), "
        "or of one value of a column of the export, for example worksheet_id, or of one `source` (the file). Even then a "
        "statement is never both trained on and held out.",
    )
    placeholder: str = Field(
        "<fillMe>",
        min_length=1,
        description="Marks the cursor in an INPUT; in any case of letters where that is unambiguous.",
    )
    template: Place = Field("chat", description="`chat`, `plain`, or the path of a template file.")
    fim_order: Literal["psm", "spm"] = Field("psm", description="Prefix-suffix-middle or suffix-prefix-middle prompts.")
    control_tokens: Literal["reject", "neutralise"] = Field(
        "reject", description="User text that becomes a control token: reject the row, or encode it as ordinary text."
    )
    null_marks: list[str] = Field(
        [],
        description="Outputs that an export writes for null, for example ['\\\\N', 'NULL']: they become empty. Default: every "
        "output is text.",
    )
    skip_empty_output: bool = Field(False, description="Reject rows whose completion is empty.")
    skip_empty_prefix: bool = Field(False, description="Reject rows whose `<fillMe>` stands at the very start.")
    mask_secrets: bool = Field(False, description="Replace what looks like a key, password or e-mail by a placeholder.")
    max_length: int = Field(8192, ge=16, description="Tokens of the longest row that is trained on.")
    pack_length: int = Field(
        8192,
        ge=16,
        description="Distinct tokens that a rank computes at once; a longer row is computed alone. Decides memory and "
        "speed, not what is learnt.",
    )
    filter_samples: bool = Field(
        True, description="Drop and count rows longer than max_length. false: also warn row by row; never truncated."
    )
    pack_samples: bool | Literal["prefix_tree", "flat", "none"] = Field(
        "prefix_tree", description="How rows share a sequence. true is `prefix_tree`, false is `none`."
    )
    mask_inputs: bool = Field(True, description="Train on responses only. false: train on every token of the row.")
    ignore_empty_think: bool = Field(
        False, description="For chat rows: do not train on an empty <think></think> block that the chat markup adds."
    )
    sample_weighted_loss: bool = Field(False, description="Each row counts once in the loss, whatever its length.")
    num_proc: int = Field(
        1, ge=1, description="Worker processes for cutting SQL files, parsing, rendering and tokenization."
    )
    cache_dir: Place | None = Field(
        None, description="Where data sets from a hub are kept. Default: the library's own place."
    )

    @field_validator("null_marks", mode="before")
    @classmethod
    def _marks_are_quoted(cls, value: Any) -> Any:
        if isinstance(value, list) and not all(isinstance(mark, str) for mark in value):
            raise ValueError("write each mark in quotes: YAML reads a bare NULL, NaN or NA as something else")
        return value

    @field_validator("sources", "eval_sources", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        listed = [value] if isinstance(value, str | dict) else value
        if not isinstance(listed, list):
            return listed
        return [{"name_or_path": source} if isinstance(source, str) else source for source in listed]

    @property
    def packing(self) -> Literal["prefix_tree", "flat", "none"]:
        """`pack_samples` as the name of a strategy."""
        if isinstance(self.pack_samples, bool):
            return "prefix_tree" if self.pack_samples else "none"
        return self.pack_samples
