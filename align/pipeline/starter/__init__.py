"""A first recipe for somebody's own model and data: what `align init` writes. Loads no torch.

`choices` has the words that a user can choose from. `data` and `model` look at what there is, `goal` has what a user wants and
`rule` what checks answers, `layout` lays out inputs and stages, `settings` fills in what follows from sizes and machine, `write`
renders the file.
"""
