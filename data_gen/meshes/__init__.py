"""Rendered views of meshes.

In: a folder of .glb, .obj or .npz meshes. Out: for each object a sheet of RGBA views, one of depth, and
the cameras.

Read `objects.py` first, from a folder to samples. `dd3g/meshes` loads a mesh and draws it; here
`volumes.py` finds its matter, `variation.py` draws random light, colours and shape, and `captions.py` finds
words for an object from its name and pixels. `procedural.py` makes up objects where there are no meshes.
"""
