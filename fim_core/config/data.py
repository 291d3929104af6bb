"""Section `data`: sources of rows, prompts, length limits and packing."""

from __future__ import annotations

import glob
import re
from datetime import date
from typing import Annotated, Any, Literal

from pydantic import Field, GetCoreSchemaHandler, PrivateAttr, field_validator, model_validator
from pydantic_core import CoreSchema, core_schema

from fim_core.config.base import DialectName, PathOrId, PlaceOrId, Section
from fim_core.config.split_expression import parse_split
from fim_core.object_storage.urls import is_url

SourceType = Literal[
    "auto",
    "fim_completions",
    "huggingface_prompt_response",
    "huggingface_instruct",
    "huggingface",
    "sql_files",
    "snowflake",
    "demo",
]

DATE = "{date}"
"""Stands for a date (2026-01-31) in the path of a source that has one export a day."""

HUB_ARGUMENTS = ("name", "data_dir", "data_files", "revision", "verification_mode")
"""Arguments of `datasets.load_dataset` that select what is read. The others run code of the data set, hold secrets, or
have their own option here."""


class SqlFileOptions(Section):
    """Options for making completions from SQL files (`type: sql_files`)."""

    cuts_per_statement: float = Field(2.0, gt=0, description="Expected number of completions made from each statement.")
    syntax_rate: float = Field(
        0.7, ge=0, le=1, description="Share of middles cut at syntax-node boundaries; the rest are cut at random."
    )
    empty_rate: float = Field(0.05, ge=0, le=1, description="Share of cuts with nothing missing.")
    dialect: DialectName = Field("snowflake", description="sqlglot dialect that splits and parses the files.")


class _TextOrOptions:
    """Accepts a query as text, or a section of options; errors name the keys of the section."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_wrap_validator_function(
            lambda value, validate: value if isinstance(value, str) else validate(value),
            handler.generate_schema(SqlFileOptions),
            serialization=core_schema.plain_serializer_function_ser_schema(
                lambda value: value if isinstance(value, str) else value.model_dump(mode="json")
            ),
        )


SqlSetting = Annotated[SqlFileOptions | str, _TextOrOptions()]

_IDENTIFIER = r'(?:[A-Za-z_][\w$]*|"(?:[^"]|"")+")'

_SNOWFLAKE_ONLY = ("table_name", "column_mapping", "limit", "connection")


class FeedbackColumns(Section):
    """Columns of an export with what users did with each completion; names in any case."""

    shown: str | None = Field(None, description="Column: whether the completion was shown (true or false).")
    action: str | None = Field(
        None, description="Column: what the user did (accepted, rejected or edited). Rejected ones are not trained on."
    )
    kept: str | None = Field(
        None,
        description="Column: text that the user kept in its place. Edited completions are trained on as this text.",
    )
    id: str | None = Field(
        None,
        description="For a log of `fim serve`, whose OUTPUT is what the model generated: column with the id that completions "
        "share with later rows that say what users did.",
    )
    model: str | None = Field(
        None,
        description="Column: version of the model that wrote OUTPUT. Metrics of feedback are then also by version.",
    )

    @model_validator(mode="after")
    def _says_what_users_did(self) -> FeedbackColumns:
        if self.action is None and self.id is not None:
            raise ValueError("`id` needs `action`, the column of the log with what users did")
        if self.shown is None and self.action is None and self.kept is None:
            raise ValueError("name at least one of the columns `shown`, `action` and `kept`")
        return self


class Source(Section):
    """One source of rows: a file, a folder, a hub data set, a Snowflake query, or the built-in demo."""

    type: SourceType = Field(
        "auto", description="Shape of the rows. auto: inferred from the columns, or from *.sql files."
    )
    name_or_path: PlaceOrId | None = Field(
        None,
        description="CSV, Parquet or JSON-lines file, folder or glob, on this machine or at `s3://`, `gs://`, `az://` or "
        "`hf://`; or a hub id. `{date}` in a path or URL stands for the date of a daily export: exports/{date}/*.parquet.",
    )
    split: str = Field(
        "train",
        description="Split to read from a hub id or a saved DatasetDict. For any source it may select a slice of the rows: "
        "`train[10:20]`, `train[:10%]`.",
    )
    sample_ratio: float | None = Field(
        None, gt=0, le=1, description="Share of the source's rows (of its slice) to sample at random. Default: all."
    )
    sample_count: int | None = Field(
        None, ge=1, description="Number of the source's rows (of its slice) to sample at random. Default: all."
    )
    sample_seed: int = Field(42, description="Seed of the sample.")
    input_col: str = Field("INPUT", description="Column with the editor's state (any case).")
    output_col: str = Field("OUTPUT", description="Column with the accepted completion (any case).")
    type_col: str = Field("TYPE", description="Optional column with the kind of completion (any case).")
    feedback: FeedbackColumns | None = Field(
        None,
        description="Optional columns with what users did with the completions. Default: all OUTPUTs were inserted.",
    )
    columns: dict[str, str] | None = Field(
        None,
        description="For `type: huggingface`: names of the columns that hold `prompt` (finished prompts) and `response`, "
        "or `messages`.",
    )
    render: Literal["chat"] | None = Field(
        None,
        description="For prompt and response columns. Default: prompts are finished and are tokenized unchanged. chat: "
        "prompts are questions, rendered with the tokenizer's chat template.",
    )
    role_mapping: dict[str, str] | None = Field(
        None,
        description="For chat rows: where to find each role's text, `role: column.key.value` (user: messages.role.user).",
    )
    content_key: str | None = Field(
        None,
        description="With role_mapping: key of a message's text. Default: the first found of content, text, message, value.",
    )
    kwargs: dict[str, Any] = Field(
        {}, description=f"For a hub id: further arguments of datasets.load_dataset ({', '.join(HUB_ARGUMENTS)})."
    )
    sql: SqlSetting | None = Field(
        None, description="Options of `type: sql_files`; for `type: snowflake`, the query, as text."
    )
    table_name: str | None = Field(
        None,
        pattern=rf"^{_IDENTIFIER}(?:\.{_IDENTIFIER}){{0,2}}$",
        description="For `type: snowflake`: [[database.]schema.]table to read, instead of `sql`.",
    )
    column_mapping: dict[str, str] = Field(
        {}, description="For `type: snowflake`: other names for columns, `name in Snowflake: name here`."
    )
    limit: int | None = Field(None, ge=1, description="For `type: snowflake`: maximum number of rows to read.")
    connection: str | None = Field(
        None,
        description="For `type: snowflake`: name of a connection in connections.toml. Default: the connector's default.",
    )
    rows: int = Field(6000, ge=100, description="For `type: demo`: rows to generate.")
    seed: int = Field(7, description="For `type: demo` and `sql_files`: seed of the generated rows.")

    @field_validator("split")
    @classmethod
    def _valid_split(cls, value: str) -> str:
        parse_split(value)
        return value

    @field_validator("kwargs")
    @classmethod
    def _known_arguments(cls, value: dict[str, Any]) -> dict[str, Any]:
        if unknown := [key for key in value if key not in HUB_ARGUMENTS]:
            raise ValueError(
                f"{', '.join(unknown)} is not allowed; the allowed arguments are {', '.join(HUB_ARGUMENTS)}"
            )
        return value

    @model_validator(mode="after")
    def _one_sample_size(self) -> Source:
        if self.sample_ratio is not None and self.sample_count is not None:
            raise ValueError("set either sample_ratio or sample_count, not both")
        if self.content_key is not None and not self.role_mapping:
            raise ValueError("content_key needs role_mapping")
        return self

    @model_validator(mode="after")
    def _feedback_is_exported(self) -> Source:
        if self.feedback is not None and self.type in ("demo", "sql_files"):
            raise ValueError(f"`feedback` does not go with `type: {self.type}`, whose completions nobody has seen")
        return self

    @property
    def is_dated(self) -> bool:
        """Whether this source has one export a day."""
        return DATE in (self.name_or_path or "")

    @model_validator(mode="after")
    def _dated_source_is_read_whole(self) -> Source:
        if not self.is_dated:
            return self
        place = self.name_or_path or ""
        if is_url(place) and (DATE in (bucket := place.split("/")[2]) or glob.has_magic(bucket)):
            raise ValueError(f"{place}: name one bucket; {DATE} and wildcards go into the rest of the URL")
        if re.search(rf"\[[^]/]*{re.escape(DATE)}", place):
            raise ValueError(f"{place}: {DATE} stands for a whole date, so it cannot be inside [ ]")
        if "**" in place[: place.index(DATE)]:
            raise ValueError(f"{place}: `**` before {DATE} could be folders of any depth; write `*` for each of them")
        if self.sample_ratio is not None or self.sample_count is not None or parse_split(self.split)[1] is not None:
            raise ValueError(f"a source with {DATE} is read by days: set data.window instead of a slice or a sample")
        return self

    @model_validator(mode="after")
    def _has_place(self) -> Source:
        if self.type == "snowflake":
            if isinstance(self.sql, str) == (self.table_name is not None):
                raise ValueError("`type: snowflake` needs either `sql`, a query, or `table_name`")
            if self.name_or_path or self.kwargs:
                raise ValueError("`name_or_path` and `kwargs` do not go with `type: snowflake`")
            return self
        if given := [name for name in _SNOWFLAKE_ONLY if getattr(self, name)]:
            raise ValueError(f"{', '.join(given)} goes with `type: snowflake` only")
        if isinstance(self.sql, str):
            raise ValueError("`sql` is a query: it goes with `type: snowflake`; for `type: sql_files` it is a section")
        if self.type != "demo" and not self.name_or_path:
            raise ValueError("`name_or_path` is missing")
        if self.type == "huggingface" and self.columns is None:
            raise ValueError("`type: huggingface` needs `columns`, for example {prompt: question, response: answer}")
        return self


class DataConfig(Section):
    """`data`: sources, prompts, filtering and packing."""

    type: Literal["sft"] = Field("sft", description="Supervised fine-tuning data.")
    sources: list[Source] = Field(
        min_length=1, description="Training rows, read in this order. A bare path is short for `{name_or_path: …}`."
    )
    eval_sources: list[Source] = Field(
        [], description="Held-out rows. Default: `eval_fraction` of the rows of `sources`."
    )
    window: int | None = Field(
        None,
        ge=1,
        description="Number of days to train on, up to the newest export, of sources with `{date}` in their path. Default: "
        "all.",
    )
    eval_fraction: float = Field(
        0.1, ge=0, lt=1, description="Share of the rows to hold out if there are no eval_sources."
    )
    group_by: str = Field(
        "statement",
        description="Rows to hold out together: those with the same `statement` (SQL compared without white space and "
        "case), from the same `source` (file), or with the same value in a column of the export, for example "
        "worksheet_id. Whatever the grouping, no statement is both trained on and held out.",
    )
    placeholder: str = Field(
        "<fillMe>",
        min_length=1,
        description="Marker of the cursor in INPUT; matched in any letter case where that is unambiguous.",
    )
    template: PathOrId = Field("chat", description="`chat`, `plain`, or the path of a template file.")
    fim_order: Literal["psm", "spm"] = Field("psm", description="Prefix-suffix-middle or suffix-prefix-middle prompts.")
    control_tokens: Literal["reject", "neutralise"] = Field(
        "reject",
        description="What to do with user text that would become a control token: reject the row, or encode the text as "
        "ordinary text.",
    )
    null_marks: list[str] = Field(
        [],
        description="Outputs that the export writes for null, for example ['\\\\N', 'NULL']; they become empty. Default: "
        "every output is text.",
    )
    skip_empty_output: bool = Field(False, description="Reject rows whose completion is empty.")
    skip_empty_prefix: bool = Field(False, description="Reject rows with nothing before the cursor.")
    mask_secrets: bool = Field(
        False, description="Replace text that looks like a key, password or e-mail address with a placeholder."
    )
    max_length: int = Field(8192, ge=16, description="Maximum tokens of a row; longer rows are rejected.")
    pack_length: int = Field(
        8192,
        ge=16,
        description="Maximum distinct tokens of a pack; a longer row gets a pack to itself. Affects memory and speed, not "
        "what is learned.",
    )
    filter_samples: bool = Field(
        True,
        description="Reject and count rows longer than max_length. false: also log a warning for each. Rows are never "
        "truncated.",
    )
    pack_samples: bool | Literal["prefix_tree", "flat", "none"] = Field(
        "prefix_tree", description="How rows are packed into sequences. true means `prefix_tree`, false means `none`."
    )
    mask_inputs: bool = Field(True, description="Train on responses only. false: train on every token of a row.")
    ignore_empty_think: bool = Field(
        False, description="For chat rows: do not train on the empty <think></think> block that the chat template adds."
    )
    sample_weighted_loss: bool = Field(False, description="Weight every row equally in the loss, whatever its length.")
    num_proc: int = Field(
        1, ge=1, description="Worker processes for cutting SQL files, parsing, rendering and tokenizing."
    )
    cache_dir: PathOrId | None = Field(
        None, description="Cache folder for data sets from a hub. Default: that of the datasets library."
    )

    @field_validator("null_marks", mode="before")
    @classmethod
    def _quoted_marks(cls, value: Any) -> Any:
        if isinstance(value, list) and not all(isinstance(mark, str) for mark in value):
            raise ValueError("quote each mark: YAML does not read a bare NULL or NaN as text")
        return value

    @field_validator("sources", "eval_sources", mode="before")
    @classmethod
    def _as_list(cls, value: Any) -> Any:
        listed = [value] if isinstance(value, str | dict) else value
        if not isinstance(listed, list):
            return listed
        return [{"name_or_path": source} if isinstance(source, str) else source for source in listed]

    _day: date | None = PrivateAttr(None)

    @property
    def day(self) -> date | None:
        """The only day to read, of sources with one export a day; None: every day, or those of the window."""
        return self._day

    @property
    def has_feedback(self) -> bool:
        """Whether a source has columns with what users did."""
        return any(source.feedback is not None for source in (*self.sources, *self.eval_sources))

    @property
    def is_dated(self) -> bool:
        """Whether a source has one export a day."""
        return any(source.is_dated for source in self.sources)

    def of_day(self, day: date) -> DataConfig:
        """The same options for the rows of a single day; sources without dates are left out."""
        dated = [source for source in self.sources if source.is_dated]
        data = self.model_copy(update={"sources": dated, "eval_sources": []})
        data._day = day
        return data

    @model_validator(mode="after")
    def _window_needs_dates(self) -> DataConfig:
        if self.window is not None and not self.is_dated:
            raise ValueError(f"window needs a source with {DATE} in its path, such as exports/{DATE}/*.parquet")
        if any(source.is_dated for source in self.eval_sources):
            raise ValueError(f"eval_sources: {DATE} is for `sources`; held-out rows are the same every day")
        return self

    @property
    def packing(self) -> Literal["prefix_tree", "flat", "none"]:
        """The packing strategy that `pack_samples` selects."""
        if isinstance(self.pack_samples, bool):
            return "prefix_tree" if self.pack_samples else "none"
        return self.pack_samples
