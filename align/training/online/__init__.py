"""Proximal Policy Optimization with a value model, rollouts by the sampling engine, and no padding between sequences."""
