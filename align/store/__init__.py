"""Artifacts on disk: named by what they were made from, written atomically, checked when they are read."""
