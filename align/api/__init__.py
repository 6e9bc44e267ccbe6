"""The Python API: run a recipe from Python, and read what a run made. `align` itself has its public names."""
