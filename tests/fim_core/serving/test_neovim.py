"""Completions in Neovim: ghost text appears after a key, and another key accepts it.

Run with Neovim 0.11 on the PATH, and clones of the plugins in the folder that FIM_NVIM_PLUGINS names.
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
from neovim import find_plugin, running_neovim

from fim_core.records.schema import Completion
from fim_core.serving.completer import Completer

DOCUMENTED_ADDRESS = "http://127.0.0.1:8080"

ROOT = Path(__file__).parents[3]
MINUET, LLAMA_VIM = re.findall(r"```lua\n(.*?)```", (ROOT / "docs" / "serving.md").read_text(), re.DOTALL)
"""The options as they are documented."""

# The template that the plugin's README gives for llama.cpp; the server takes such prompts apart.
RENDERING = """
prompt = function(before, after)
    return '<|fim_prefix|>' .. before .. '<|fim_suffix|>' .. after .. '<|fim_middle|>'
end,
suffix = false,
"""


def options(documented: str, address: str) -> str:
    """Documented options, with the address of the test's server."""
    assert documented.count(DOCUMENTED_ADDRESS) == 1
    return documented.replace(DOCUMENTED_ADDRESS, address) + "\nvim.cmd('filetype on')"


def case_for(completer: Completer, *, before: str, after: str, tokens: int) -> tuple[str, str]:
    """A line whose completion is some plain text without a line end, and the completion.

    `before` and `after` are what the plugin sends around the first line. A file of less than three lines is no context of
    its own for llama.vim.
    """
    for words in itertools.product(("SELECT", "WITH", "-- q"), ("a, ", "x AS (", "b + ", "c, d, ", "e ")):
        line = " ".join(words)
        text = completer.complete(Completion(before + line, after), max_tokens=tokens).text
        if text.isprintable() and text.isascii() and len(text.strip()) > 2 and text == text.rstrip():
            return line, text
    raise AssertionError("no line has a plain completion")


@pytest.mark.parametrize("template", [None, RENDERING], ids=["plain", "rendering"])
def test_minuet(address: str, completer: Completer, tmp_path: Path, template: str | None) -> None:
    plugin = find_plugin("minuet-ai.nvim")
    line, text = case_for(completer, before="\n", after="\nFROM t", tokens=48)
    file = tmp_path / "query.sql"
    file.write_text("\nFROM t\n")
    setup = options(MINUET, address)
    if template is not None:
        setup, replaced = re.subn(r"(?<=template = \{\n).*?\n(?= *\},\n)", template, setup, count=1, flags=re.DOTALL)
        assert replaced
    with running_neovim(tmp_path, plugin, setup, file) as nvim:
        nvim.type("A" + line)
        ghost, milliseconds = nvim.ghost_text("minuet.virtualtext")
        assert ghost == [text]
        assert milliseconds > 0
        nvim.type("<A-a>")
        nvim.wait_for_lines([line + text, "FROM t"])


def test_llama_vim(address: str, completer: Completer, tmp_path: Path) -> None:
    plugin = find_plugin("llama.vim")
    line, text = case_for(completer, before="\n", after="\nFROM t\n", tokens=128)
    file = tmp_path / "query.sql"
    file.write_text("\nFROM t\n")
    with running_neovim(tmp_path, plugin, options(LLAMA_VIM, address), file) as nvim:
        nvim.type("A" + line)
        ghost, milliseconds = nvim.ghost_text("vt_fim")
        assert ghost == [text]
        assert milliseconds > 0
        nvim.type("<Tab>")
        nvim.wait_for_lines([line + text, "FROM t"])
