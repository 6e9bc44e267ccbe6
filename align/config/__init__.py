"""What recipes may say: the fields of every section with their bounds, and the checks that need no model. Loads no torch."""
