"""Files: splats, meshes, videos, pages and shards, each written whole or not at all.

Gaussians or meshes go in and files come out, or back. `splats.py`, read first, picks the file of a format:
`ply.py`, `packed.py` (.splat, .spz, .compressed.ply), `sog.py`, `glb.py`. `mesh.py`, `turntable.py` and
`viewer.py` write what shows an object, `shards.py` and `tables.py` hold samples; `atomic.py` is under all.
"""
