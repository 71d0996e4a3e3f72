"""How good is a generator? Its renders against the true views of objects, beside baselines and other tools.

A data set on disk, a protocol, and rows go in; `evaluation.json`, `objects.csv`, tables, sheets and a page
come out. Read `protocol.py` first, `targets.py` (an object as the protocol shows it), `rows.py` (who predicts
it), `work.py` (one object scored), `compare.py` (all of them); `dd3g evaluate` is `__main__.py`.
"""
