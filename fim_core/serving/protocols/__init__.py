"""The protocols that editors speak, one module each: it parses a request into a `Call` and formats the answer."""

from fim_core.serving.protocols.base import Protocol
from fim_core.serving.protocols.infill import INFILL
from fim_core.serving.protocols.mistral import MISTRAL
from fim_core.serving.protocols.ollama import OLLAMA
from fim_core.serving.protocols.openai import OPENAI

PROTOCOLS: tuple[Protocol, ...] = (OPENAI, INFILL, MISTRAL, OLLAMA)

__all__ = ["INFILL", "MISTRAL", "OLLAMA", "OPENAI", "PROTOCOLS", "Protocol"]
