"""Trainers: batches, checkpoints and the loop. Training that samples is in `online`, that on pairs in `pairwise`."""
