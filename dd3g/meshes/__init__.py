"""Meshes on disk and their pictures, without a graphics stack.

`mesh.py`, read first, loads a mesh, `rendering.py` draws it; `layouts.py` finds the objects of public data
sets, `views.py` reads pictures that come with cameras.
"""
