"""One file per stage: its configuration, and a function that runs it. Stages do not import each other."""
