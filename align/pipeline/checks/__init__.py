"""What `align plan` and `align run` look at before anything starts: rows, models, limits, learning rates, memory and disk.

Every check is a function that returns findings. What takes time is kept in the store by content, and nothing here loads torch or
transformers unless a model is about to be refused.
"""
