"""Human pose: 3D hypotheses for the people in a picture, from keypoints of any detector, or from nothing.

from dd3g.pose import estimate
for person in estimate("photo.jpg", method="guided", m=20):
    person.pose, person.expected_error  # (17, 3) metres in the camera frame, metres

A picture or a video comes in, files go out; `estimation.py`, read first, is that way for one picture:

photo, video or keypoints -> detection/people.py -> methods/registry.py -> export/results.py -> NAME.pose.*
motion capture -> data/motion.py -> data/synthesis.py -> training.py -> networks/ -> methods/

`methods` has a file for each paper, `networks` what they use, `body` the joints and rotations under all of
them, `metrics.py` the errors; `__main__.py`, `request.py` and `video.py` are the command, `train.py` that of
training. The people of a video lie in files and come from there in chunks (`series.py`).
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dd3g.pose.estimation import complete, estimate, generate
    from dd3g.pose.hypotheses import Hypotheses, PersonHypotheses

__all__ = ["Hypotheses", "PersonHypotheses", "complete", "estimate", "generate"]


def __getattr__(name: str) -> Any:
    # On demand: torch alone takes longer to import than most commands need to report an error.
    if name not in __all__:
        raise AttributeError(f"module 'dd3g.pose' has no attribute {name!r}")
    from dd3g.pose import estimation

    return getattr(estimation, name)
