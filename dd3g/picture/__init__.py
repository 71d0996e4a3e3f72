"""Any picture of an object -> a square RGBA tensor framed like the pictures the generator was trained on.

`inputs.py` finds the pictures that a command line means, `decoding.py` reads any of them, `matting.py` and
`framing.py` find the object in it. Read `load_image` in `loading.py` first.
"""

from dd3g.picture.decoding import read_rgba
from dd3g.picture.loading import FILL, Picture, as_picture, cut_out, load_image, resize_rgba

__all__ = ["FILL", "Picture", "as_picture", "cut_out", "load_image", "read_rgba", "resize_rgba"]
