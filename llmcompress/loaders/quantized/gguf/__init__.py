"""GGUF files of llama.cpp: blocks repacked, metadata as a configuration and a tokenizer."""
