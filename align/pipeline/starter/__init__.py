"""A first recipe for somebody's own model and data: what `align init` writes. Loads no torch.

`data` and `model` look at what there is, `goal` lays out the inputs and stages of a goal, `settings` fills in what follows from
sizes and machine, `write` renders the file.
"""
