"""Results as files: people in 3D in; JSON, pages, figures and posed skeletons out.

- `results.py`, read first: all files of a picture or a video, and the JSON among them.
- `figures.py`: the picture, or a video, with the poses drawn in, three views of the hypotheses, and a page
  that shows them in 3D.
- `skeletons.py`: a person over time as .bvh and more.
- `skinned.py`: .glb, and .fbx by Blender; `markers.py`: .trc, .c3d and .csv.
"""
