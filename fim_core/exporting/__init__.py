"""Exports of a checkpoint for other programs: GGUF for llama.cpp and Ollama, and a folder of safetensors in bfloat16."""
