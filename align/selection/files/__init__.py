"""Selection over files of any size: rows are read in columns, prompt by prompt, and never all at once."""
