"""What scripts/build_quickstart.py is made of: the two small languages, the files written in them, the base model."""
