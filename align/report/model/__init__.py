"""Checks whether a model's template and tokenizer suit training and sampling, without its weights: `align doctor MODEL`."""
