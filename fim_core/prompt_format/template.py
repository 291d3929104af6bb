"""Parsing and rendering of prompt templates.

A template is written in the syntax of Go's text/template. This module implements the subset that prompts need, because no
maintained Python library reads that syntax:

    {{define "system"}} … {{end}}               sections: system and user (optional), assistant (required)
    {{.SQL_HISTORY}}                            a field, one of FIELDS
    {{if .DDL_CONTEXT}} … {{else}} … {{end}}    tests whether a field is not empty; may be nested
    {{- … -}}                                   trim the white space of the template before or after
    {{/* … */}}                                 a comment

White space is kept as in Go. In addition, the template's own white space at both ends of a section is stripped, also
where an {{if}} rendered empty; white space in field values is never changed.

The assistant section ends with the fill-in-the-middle block, always in Qwen's names:

    <|fim_prefix|>{{.PREFIX}}<|fim_suffix|>{{.SUFFIX}}<|fim_middle|>

The three markers are replaced by the control tokens of the model's family, in its order. No other text of a template may
name a control token, because a tokenizer would encode it as the token. A template with only an assistant section is for
base models: it gets no chat markup.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, NoReturn

from fim_core.errors import FimError

SECTIONS = ("system", "user", "assistant")
FIELDS = ("SQL_HISTORY", "DDL_CONTEXT", "LAST_FEW_EXECUTED", "FILE_CONTENT", "PREFIX", "SUFFIX")
FIM_MARKERS = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")

BARE = '{{define "assistant"}}<|fim_prefix|>{{.PREFIX}}<|fim_suffix|>{{.SUFFIX}}<|fim_middle|>{{end}}'
"""The template for prompts of an unknown template: the text around the cursor only."""

_BUILT_IN = Path(__file__).parent / "templates"
_ACTION = re.compile(
    r"\{\{(?P<left>-(?=\s))?\s*(?:(?P<comment>/\*.*?\*/)|(?P<body>.*?))\s*(?P<right>(?<=\s)-)?\}\}", re.DOTALL
)
_DEFINE = re.compile(r'define\s*"([^"]*)"')
_IF = re.compile(r"if\s+\.(\w+)")
_FIELD = re.compile(r"\.(\w+)")


class Piece(NamedTuple):
    """A piece of rendered text. `trusted`: written by the template, not by a user."""

    text: str
    trusted: bool


@dataclass(frozen=True)
class _Text:
    text: str
    line: int


@dataclass(frozen=True)
class _Field:
    name: str


@dataclass(frozen=True)
class _If:
    field: str
    then: tuple[_Node, ...]
    otherwise: tuple[_Node, ...]


_Node = _Text | _Field | _If


@dataclass(frozen=True)
class Template:
    """A parsed template.

    Attributes:
        name: for messages.
        sections: nodes by section; `assistant` without its final fill-in-the-middle block.
    """

    name: str
    sections: Mapping[str, tuple[_Node, ...]]

    @property
    def is_chat(self) -> bool:
        """Whether it gets chat markup."""
        return "system" in self.sections or "user" in self.sections

    def fields_of(self, section: str) -> tuple[str, ...]:
        """The FIELDS that a section uses."""
        return tuple(sorted(set(_fields(self.sections.get(section, ())))))

    def render(self, section: str, fields: Mapping[str, str]) -> list[Piece]:
        """Render one section in one pass: values are never parsed as template text.

        Args:
            section: `system`, `user`, or `assistant` (the text before the fill-in-the-middle block).
            fields: a value for each of `fields_of(section)`.
        """
        pieces = list(_render(self.sections.get(section, ()), fields))
        return _strip_trusted(pieces, at_end=section != "assistant")

    def refuse_control_tokens(self, tokens: Iterable[str]) -> None:
        """Check that no text of the template names one of `tokens`.

        Raises:
            FimError: it does; with the line.
        """
        tokens = sorted(tokens)
        for node in _texts(node for nodes in self.sections.values() for node in nodes):
            for token in tokens:
                if (position := node.text.find(token)) >= 0:
                    line = node.line + node.text.count("\n", 0, position)
                    raise FimError(
                        f"{self.name}, line {line}: the text names the control token {token}, which a tokenizer would "
                        "encode as that token. Reword it: control tokens may only be in the block "
                        f"{FIM_MARKERS[0]}{{{{.PREFIX}}}}{FIM_MARKERS[1]}{{{{.SUFFIX}}}}{FIM_MARKERS[2]} that ends "
                        "the assistant section."
                    )


def template_path(name_or_path: str) -> Path:
    """The file of a template: `chat`, `plain`, or a path.

    Raises:
        FimError: there is no such file.
    """
    built_in = _BUILT_IN / f"{name_or_path}.tmpl"
    if name_or_path in {"chat", "plain"}:
        return built_in
    path = Path(name_or_path)
    if not path.is_file():
        raise FimError(f"There is no template {name_or_path}. Give `chat`, `plain` or the path of a template file.")
    return path


def read_template(name_or_path: str) -> str:
    """The text of a template: `chat`, `plain`, or a path.

    Raises:
        FimError: no such file, or not UTF-8.
    """
    path = template_path(name_or_path)
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise FimError(f"The template {path} is not UTF-8 text: {error.reason} at byte {error.start}.") from error


def load_template(name_or_path: str) -> Template:
    """Read and parse a template: `chat`, `plain`, or a path.

    Raises:
        FimError: no such file, not UTF-8, or a mistake in it; with the line.
    """
    return parse_template(read_template(name_or_path), name=template_path(name_or_path).name)


def parse_template(source: str, *, name: str = "template") -> Template:
    """Parse the text of a template.

    Raises:
        FimError: a mistake in it; with the line.
    """
    return _Parser(source, name).parse()


def _render(nodes: Iterable[_Node], fields: Mapping[str, str]) -> Iterator[Piece]:
    for node in nodes:
        match node:
            case _Text(text):
                yield Piece(text, True)
            case _Field(name):
                yield Piece(fields[name], False)
            case _If(field, then, otherwise):
                yield from _render(then if fields[field] else otherwise, fields)


def _strip_trusted(pieces: list[Piece], *, at_end: bool) -> list[Piece]:
    while pieces and pieces[0].trusted:
        if text := pieces[0].text.lstrip():
            pieces[0] = Piece(text, True)
            break
        del pieces[0]
    while at_end and pieces and pieces[-1].trusted:
        if text := pieces[-1].text.rstrip():
            pieces[-1] = Piece(text, True)
            break
        del pieces[-1]
    return pieces


def _fields(nodes: Iterable[_Node]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, _Field):
            yield node.name
        elif isinstance(node, _If):
            yield node.field
            yield from _fields((*node.then, *node.otherwise))


def _texts(nodes: Iterable[_Node]) -> Iterator[_Text]:
    for node in nodes:
        if isinstance(node, _Text):
            yield node
        elif isinstance(node, _If):
            yield from _texts((*node.then, *node.otherwise))


@dataclass
class _Open:
    """A block whose {{end}} was not read yet."""

    line: int
    section: str | None = None
    field: str | None = None
    then: tuple[_Node, ...] | None = None


class _Parser:
    def __init__(self, source: str, name: str) -> None:
        self.source, self.name = source, name
        self.sections: dict[str, tuple[_Node, ...]] = {}
        self.blocks: list[_Open] = []
        self.nodes: list[list[_Node]] = [[]]

    def parse(self) -> Template:
        position, trim_left = 0, False
        for action in _ACTION.finditer(self.source):
            self._text(position, action.start(), trim_left, trim_right=action["left"] is not None)
            if action["comment"] is None:
                self._action(action["body"], self._line(action.start()))
            position, trim_left = action.end(), action["right"] is not None
        self._text(position, len(self.source), trim_left, trim_right=False)
        if self.blocks:
            self._fail(self.blocks[-1].line, "the block that begins here has no {{end}}")
        if "assistant" not in self.sections:
            self._fail(self._line(len(self.source)), 'there is no {{define "assistant"}} section')
        self.sections["assistant"] = self._without_fim_block(self.sections["assistant"])
        template = Template(self.name, self.sections)
        template.refuse_control_tokens(FIM_MARKERS)
        return template

    def _line(self, position: int) -> int:
        return self.source.count("\n", 0, position) + 1

    def _fail(self, line: int, what: str) -> NoReturn:
        raise FimError(f"{self.name}, line {line}: {what}.")

    def _text(self, start: int, end: int, trim_left: bool, *, trim_right: bool) -> None:
        text = self.source[start:end]
        if (unclosed := text.find("{{")) >= 0:
            self._fail(self._line(start + unclosed), "{{ without }}")
        if trim_left:
            start += len(text) - len(text.lstrip())
            text = text.lstrip()
        text = text.rstrip() if trim_right else text
        if not text:
            return
        if not self.blocks:
            if text.strip():
                line = self._line(start + len(text) - len(text.lstrip()))
                self._fail(line, "text outside a section; put it between {{define …}} and {{end}}")
            return
        siblings = self.nodes[-1]
        if siblings and isinstance(last := siblings[-1], _Text):
            # A comment was between them: joined, they may form a control token.
            siblings[-1] = _Text(last.text + text, last.line)
        else:
            siblings.append(_Text(text, self._line(start)))

    def _action(self, body: str, line: int) -> None:
        if found := _DEFINE.fullmatch(body):
            self._define(found[1], line)
        elif not self.blocks:
            self._fail(line, f"{{{{{body}}}}} outside a section")
        elif found := _IF.fullmatch(body):
            self.blocks.append(_Open(line, field=self._known(found[1], line)))
            self.nodes.append([])
        elif body == "else":
            self._else(line)
        elif body == "end":
            self._end()
        elif found := _FIELD.fullmatch(body):
            self.nodes[-1].append(_Field(self._known(found[1], line)))
        else:
            self._fail(line, f"no such action: {{{{{body}}}}}; there are .FIELD, if .FIELD, else, end and define")

    def _known(self, field: str, line: int) -> str:
        if field not in FIELDS:
            self._fail(line, f"there is no field .{field}; the fields are .{', .'.join(FIELDS)}")
        return field

    def _define(self, section: str, line: int) -> None:
        if self.blocks:
            self._fail(line, "a section inside another block; is an {{end}} missing before it?")
        if section not in SECTIONS:
            self._fail(line, f'there is no section "{section}"; the sections are {", ".join(SECTIONS)}')
        if section in self.sections:
            self._fail(line, f'the section "{section}" is defined twice')
        self.blocks.append(_Open(line, section=section))
        self.nodes.append([])

    def _else(self, line: int) -> None:
        block = self.blocks[-1]
        if block.field is None or block.then is not None:
            self._fail(line, "{{else}} without {{if}}")
        block.then = tuple(self.nodes[-1])
        self.nodes[-1] = []

    def _end(self) -> None:
        block, nodes = self.blocks.pop(), tuple(self.nodes.pop())
        if block.section is not None:
            self.sections[block.section] = nodes
        elif block.field is not None:
            then, otherwise = (nodes, ()) if block.then is None else (block.then, nodes)
            self.nodes[-1].append(_If(block.field, then, otherwise))

    def _without_fim_block(self, nodes: tuple[_Node, ...]) -> tuple[_Node, ...]:
        before, after = FIM_MARKERS[0], FIM_MARKERS[1:]
        match nodes[-5:]:
            case (_Text(start, line), _Field("PREFIX"), _Text(suffix), _Field("SUFFIX"), _Text(end)) if (
                start.endswith(before) and (suffix, end.rstrip()) == after
            ):
                lead = start.removesuffix(before)
                return (*nodes[:-5], _Text(lead, line)) if lead else nodes[:-5]
        lines = [node.line for node in _texts(nodes)]
        return self._fail(
            lines[-1] if lines else self._line(len(self.source)),
            f"the assistant section must end in {before}{{{{.PREFIX}}}}{after[0]}{{{{.SUFFIX}}}}{after[1]}, "
            "with nothing between the parts",
        )
