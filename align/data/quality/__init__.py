"""Measures of a dataset: what its texts are like, before anything is trained on them. Loads no torch.

Every measure takes plain texts or numbers and returns numbers; none reads files, and none changes a text. docs/quality.md has
each with formula, threshold, how to read it and limits.
"""
