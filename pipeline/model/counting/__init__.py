"""Counting models: popularity, rules and nearest neighbours as models that are trained and served.

`fitting` counts the training sessions into tables, `scorer` scores by them, and `model` makes a
scorer a `Model`.
"""
