"""What is in a data file: its numbers, what to be wary of, and some of its rows as a model would be trained on them."""
