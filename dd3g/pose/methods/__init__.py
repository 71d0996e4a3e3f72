"""The three published methods from 2D to 3D, and the baselines that they are measured against.

In go keypoints (B, 17, 2) in pixels, their confidences and the cameras; out come `Hypotheses`, m poses a
person. `registry.py` lists the three for the command and for `dd3g.pose.estimate`.

| file | method | paper |
|---|---|---|
| `guided.py`, read first | a diffusion prior, guided by the picture | Snelgar et al. 2026, arXiv 2602.03126 |
| `restoration.py` | a lifter of one pose, with noise where it is unsure | PRPose, arXiv 2405.02114 |
| `recovery.py` | a body refined by diffusion (`refinement.py`) | ScoreHMR, Stathopoulos et al. 2024 |
| `zedo.py` | baseline of the first: optimisation with the prior | ZeDO, arXiv 2307.03833 |
| `fitting.py` | baseline of the third: gradient descent, no network | SMPLify-like |

What is known of a pose or of a body, as energies: `guided_energies.py` and `recovery_energies.py`.
"""
