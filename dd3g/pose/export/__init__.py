"""Results as files: people in 3D in; JSON, pages, figures and posed skeletons out.

- `results.py`, read first: all files of a picture or a video, and the JSON among them.
- `figures.py`: the picture, or a video, with the poses drawn in, three views of the hypotheses, and a page
  that shows them in 3D.
- `skeletons.py`: a person over time as .bvh, .glb, .fbx by Blender, and SMPL's parameters; `markers.py`: as
  .trc, .c3d and .csv.
"""
