"""Results as files: people in 3D in; JSON, pages, figures and posed skeletons out.

- `results.py`, read first: JSON, the page that shows poses in 3D, and the posed skeleton as .bvh and .glb.
- `figures.py`: the picture with the poses drawn in, and three views of the hypotheses.
"""
