"""Is a model's template and tokenizer fit for training and sampling? Answered without its weights: `align doctor MODEL`."""
