"""Processes: how work is shared among them, and how each of them ends."""
