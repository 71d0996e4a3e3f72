"""The name of `picture_models.tiny` in pipelines that were saved before it moved; they still load."""

import sys

from data_gen.picture_models import tiny

sys.modules[__name__] = tiny  # whole: diffusers looks for its own base classes in this module too
