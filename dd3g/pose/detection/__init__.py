"""People in 2D: a picture, or another detector's file, in; one `Detection` a person out.

- `people.py`, read first: `Detection`, and `detect`, which makes them from either source.
- `blazepose.py`: the detector that finds people in a picture, 33 keypoints and heatmaps each.
- `reading.py`: the files of other detectors. `json_keypoints.py` parses JSON, `long_json.py` keeps an hour of
  it out of memory; `detected.py` is what all of them give, `keypoints.py` the one check.
- `camera.py`: intrinsics.
- `frames.py`: the frames of a video, and who is who in them.
"""
