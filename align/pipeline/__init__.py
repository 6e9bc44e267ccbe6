"""From a recipe to a run: which stages have to run, what they need, and running them."""
