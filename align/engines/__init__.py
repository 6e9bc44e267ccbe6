"""Engines sample completions from a model: transformers or vLLM behind one protocol, sharded and resumable."""
