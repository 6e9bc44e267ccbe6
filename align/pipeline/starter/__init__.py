"""A first recipe for somebody's own model and data: what `align init` writes. Loads no torch.

`data` and `model` look at what there is, `goal` has what a user can want and `rule` what checks answers, `layout` lays out inputs
and stages, `settings` fills in what follows from sizes and machine, `write` renders the file.
"""
