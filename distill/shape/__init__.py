"""What the shape network learns from: objects with volumes in, matter along the rays of their pictures out.

`samples.py` finds that matter in the volumes, which `carving.py` makes for a teacher's quadruples. Read
`ShapeObjective` in `objective.py` first.
"""
