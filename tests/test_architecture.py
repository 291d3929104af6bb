"""docs/architecture.md against the code: layers, stages, files and identifiers."""

from __future__ import annotations

import ast
import re
import tomllib
from functools import cache
from pathlib import Path

import pytest

from fim_core.pipeline import STAGES

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "architecture.md"
TEXT = PAGE.read_text(encoding="utf-8")
PICTURES = re.findall(r"^```text\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
PROSE = re.sub(r"^```.*?^```$", "", TEXT, flags=re.MULTILINE | re.DOTALL)
LINKS = re.findall(r"\[([^\]]+)\]\(([^)\s]+)\)", PROSE)
CODE = sorted(set(re.findall(r"`([^`]+)`", re.sub(r"\[[^\]]+\]\([^)\s]+\)", "", PROSE))))
NAMES_OF_THEIR_OWN = {"fim", "make lint", "CHECK", "-- parameter:"}
"""Code that is neither a path nor an asset: commands, and what a check has to write."""


@cache
def defined_in(file: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return names


@pytest.mark.parametrize(("text", "target"), LINKS)
def test_linked_files_exist_and_define_what_the_link_names(text: str, target: str) -> None:
    file = (PAGE.parent / target).resolve()
    assert file.is_file()
    if identifier := re.fullmatch(r"`(\w+)`", text):
        assert identifier[1] in defined_in(file)


@pytest.mark.parametrize("code", CODE)
def test_code_in_the_text_is_a_path_an_asset_or_known(code: str) -> None:
    if code in NAMES_OF_THEIR_OWN or code in {stage.asset for stage in STAGES}:
        return
    assert list(ROOT.glob(re.sub(r"<\w+>", "*", code))), f"no such path: {code}"


def test_the_layers_are_those_of_pyproject() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = {tuple(each.get("containers", ())): each["layers"] for each in contracts if each["type"] == "layers"}
    drawn = {}
    for picture in PICTURES:
        lines = [line for line in picture.splitlines() if line]
        indented = lines[-1].startswith(" ")
        container = (lines[0],) if indented else ()
        drawn[container] = [re.split(r"\s{2,}", line.strip())[0] for line in lines[indented:]]
    assert drawn == layers


def test_the_stages_are_described_in_their_order() -> None:
    items = re.findall(r"^\d\. `(\w+)` \(\[stage\]\((\S+)\)\)", PROSE, re.MULTILINE)
    assert items == [(stage.asset, f"../fim_core/pipeline/stages/{stage.asset}.py") for stage in STAGES]
