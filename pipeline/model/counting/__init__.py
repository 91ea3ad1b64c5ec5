"""Counting models: popularity, rules and nearest neighbours, trained and served as models.

`fitting` counts the training sessions into tables, `scorer` computes scores from the tables, and
`model` wraps a scorer as a `Model`.
"""
