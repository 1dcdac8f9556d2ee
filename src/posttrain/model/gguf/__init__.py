"""GGUF files, llama.cpp's format: read into model folders, and written from them."""
