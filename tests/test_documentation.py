"""README.md, benchmarks/README.md and docs/ against the code: files, modules, commands, options and links."""

from __future__ import annotations

import ast
import importlib
import re
import typing
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
import typer

from fim_core.cli.main import app
from fim_core.config import Experiment
from fim_core.config.base import Section
from fim_core.config.launchers import LAUNCHER_TYPES, LauncherSection
from fim_core.quality.run import known_checks

ROOT = Path(__file__).parents[1]
TEXTS = {
    page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8")
    for page in (ROOT / "README.md", ROOT / "benchmarks" / "README.md", *sorted((ROOT / "docs").glob("*.md")))
}
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def code_in(text: str) -> list[str]:
    """Inline code and the lines of code blocks."""
    inline = re.findall(r"`([^`\n]+)`", FENCED.sub("", text))
    return inline + [line for _, block in FENCED.findall(text) for line in block.splitlines()]


CODE = [(page, code) for page, text in TEXTS.items() for code in code_in(text)]


def found(pattern: str) -> list[tuple[str, str]]:
    """Each match in the code of a page, once."""
    return sorted({(page, match) for page, code in CODE for match in re.findall(pattern, code)})


PATH = r"(?<![\w./-])((?:fim_core|fim_assets|benchmarks|configs|tests|docs)/[^\s`'\",)]*)"


@pytest.mark.parametrize(("page", "path"), found(PATH))
def test_files_exist(page: str, path: str) -> None:
    assert list(ROOT.glob(re.sub(r"<\w+>", "*", path))), f"{page}: no file {path}"


@pytest.mark.parametrize(("page", "module"), found(r"(?:-m |from |import )((?:fim_core|fim_assets|benchmarks)[\w.]*)"))
def test_modules_exist(page: str, module: str) -> None:
    assert find_spec(module), f"{page}: no module {module}"


@pytest.mark.parametrize(("page", "target"), found(r"(?:^|[;&|] *)make ([a-z][a-z-]*)"))
def test_make_targets_exist(page: str, target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), f"{page}: no target {target}"


LINKS = [(page, link) for page, text in TEXTS.items() for link in re.findall(r"\]\(([^)\s]+)\)", text)]


@pytest.mark.parametrize(("page", "target"), [link for link in LINKS if not link[1].startswith("http")])
def test_links_lead_somewhere(page: str, target: str) -> None:
    file, _, anchor = target.partition("#")
    linked = (ROOT / page).parent / file if file else ROOT / page
    assert linked.exists(), f"{page}: no file {target}"
    if anchor:
        titles = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
        anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
        assert anchor in anchors, f"{page}: no heading {target}"


@cache
def commands() -> dict[str, set[str]]:
    """Options of each subcommand of `fim`."""
    options: dict[str, set[str]] = {}

    def add(name: str, command: typing.Any) -> None:
        options[name] = {option for parameter in command.params for option in parameter.opts}
        for sub, inner in getattr(command, "commands", {}).items():
            add(f"{name} {sub}".strip(), inner)

    add("", typer.main.get_command(app))
    return options


@pytest.mark.parametrize(("page", "line"), found(r"(?:^|/|\| *)fim ((?:[a-z]|--).*)"))
def test_commands_and_their_options_exist(page: str, line: str) -> None:
    words = line.split()
    name = " ".join(words[:2]) if " ".join(words[:2]) in commands() else words[0]
    assert name in commands(), f"{page}: no command fim {line}"
    unknown = {word for word in words if word.startswith("-") and word != "-"} - commands()[name]
    assert not unknown, f"{page}: fim {name} has no option {unknown}"


def option_paths(kind: typing.Any, path: str = "") -> typing.Iterator[str]:
    """Dotted paths of all options of a section, those of every launcher included."""
    if isinstance(kind, type) and issubclass(kind, Section):
        kinds = [kind, *LAUNCHER_TYPES.values()] if kind is LauncherSection else [kind]
        for name, field in ((name, field) for each in kinds for name, field in each.model_fields.items()):
            yield f"{path}{name}"
            yield from option_paths(field.annotation, f"{path}{name}.")
    else:
        for argument in typing.get_args(kind):
            yield from option_paths(argument, path)


OPTIONS = set(option_paths(Experiment))
FREE_FORM = ("deepspeed.", "model.config.")
SECTIONS = {option.split(".")[0] for option in OPTIONS if "." in option} | {"deepspeed"}
NAMED = [(page, name) for page, name in found(r"^((?:\w+\.)+\w+)(?=$|:| )") if name.split(".")[0] in SECTIONS]


# The other page lists the keys of another trainer; tests/fim_core/config/test_arctic_training.py checks it.
@pytest.mark.parametrize(("page", "option"), [name for name in NAMED if name[0] != "docs/arctic_training.md"])
def test_options_exist(page: str, option: str) -> None:
    assert option in OPTIONS or option.startswith(FREE_FORM), f"{page}: no option {option}"


EXAMPLES = [block for language, block in FENCED.findall(TEXTS["README.md"]) if language == "python"]


@pytest.mark.parametrize("block", EXAMPLES)
def test_imports_of_python_examples_exist(block: str) -> None:
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("fim_"):
            module = importlib.import_module(str(node.module))
            assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)


@pytest.mark.parametrize(
    ("page", "check"), [(page, check) for page, text in TEXTS.items() for check in re.findall(r"checks? `(\w+)`", text)]
)
def test_checks_exist(page: str, check: str) -> None:
    assert check in known_checks(), f"{page}: no check {check}"
