"""A small rendered world whose every label is known exactly.

`eval.tabletop.render.render(seed, split, index)` gives a `Scene`; `kinds` names what is in it, `captions` says it in
words, `shards` writes training data, `towers` trains two tiny teachers. It proves machinery; it is no evidence about
natural images.
"""
