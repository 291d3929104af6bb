"""Quantization of GGUF files by llama.cpp itself."""

from __future__ import annotations

import ctypes
from importlib.util import find_spec
from pathlib import Path

from fim_core.errors import FimError


def require_llama_cpp() -> None:
    """Require llama-cpp-python, which contains llama.cpp.

    Raises:
        FimError: it is not installed.
    """
    if find_spec("llama_cpp") is None:
        raise FimError(
            "--quantize q4_k_m is done by llama.cpp, which is not installed: pip install llama-cpp-python (compiles for some "
            "minutes and needs a C++ compiler). Or export without --quantize, and run llama.cpp's `llama-quantize FILE q4_k_m`."
        )


def quantize_q4_k_m(source: Path, target: Path) -> None:
    """Quantize a float16 file to q4_k_m, llama.cpp's mixture of 4 and 6 bits.

    Raises:
        FimError: llama.cpp is not installed, or fails.
    """
    require_llama_cpp()
    import llama_cpp

    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M
    llama_cpp.llama_log_set(_drop, ctypes.c_void_p(0))
    code = llama_cpp.llama_model_quantize(bytes(source), bytes(target), ctypes.byref(parameters))
    if code != 0:
        raise FimError(f"llama.cpp could not quantize the model (code {code}). Export it with --quantize q8_0.")


@ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
def _drop(level: int, text: bytes, data: int) -> None:
    """Drop a line of llama.cpp's log."""
