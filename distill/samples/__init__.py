"""Samples of training: shards of quadruples and of rendered objects in, `dd3g.training.Batch` out.

`renders.py` reads the shards, `unpacked.py` keeps them decoded on a node's own disk, `render_samples.py`
picks and varies the views of a sample. Read `datasets.py` first, which mixes them with quadruples.
"""
