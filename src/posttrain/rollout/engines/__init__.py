"""Samplers that generate with vLLM or with inference servers."""
