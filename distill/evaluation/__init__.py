"""How good is a generator? Its renders against the true views of objects, beside simple baselines.

Meshes or shards of their renders, generators, a teacher and quadruples go in; `evaluation.json`,
`objects.csv` and `sheet.png` come out. Read `compare.py` first; `dd3g evaluate` is `__main__.py`.
"""
