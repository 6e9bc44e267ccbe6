"""Readers of file formats. Each gives raw rows with their numbers, or what is wrong at a place; none knows kinds of rows."""
