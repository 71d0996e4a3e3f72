"""The human body: joint layouts, rotations and cameras, and bodies that turn joint rotations into points.

Everything else of `dd3g.pose` stands on this; it imports nothing from there.

- `skeletons.py`, read first: the joint layouts of detectors and data sets, and the way from each to H36M-17,
  the canonical one inside.
- `geometry.py`: projection, Procrustes alignment, the root's translation in closed form, rotations.
- `bodies.py`: 24 joint rotations and a shape in, points out; our own body and an adapter for SMPL.
- `anny_body.py`: the adapter for Anny's bodies.
"""
