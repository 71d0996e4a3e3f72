"""LGM (Tang et al., arXiv 2402.05054): four views of an object to Gaussians in one pass.

A U-Net over pictures and the Plücker rays of their cameras, whose attention looks at all views at once; each
pixel of its answer is a Gaussian. Written from the authors' recipe, and compared with what their code
computes by `python -m tools.check_goldens --only lgm`. Read `model.py` first.
"""

from distill.lgm.model import LGM, SIZE, check_cameras, lgm_input, load_lgm
from distill.lgm.network import BIG, SMALL, TINY, Layout

__all__ = ["BIG", "LGM", "SIZE", "SMALL", "TINY", "Layout", "check_cameras", "lgm_input", "load_lgm"]
