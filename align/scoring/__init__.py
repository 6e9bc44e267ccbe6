"""Scorers give completions numbers: reward models, rules, and judges behind an API."""
