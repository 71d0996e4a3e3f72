"""People in 2D: a picture, or another detector's file, in; one `Detection` a person out.

- `people.py`, read first: `Detection`, and `detect`, which makes them from either source.
- `blazepose.py`: the detector that finds people in a picture, 33 keypoints and heatmaps each.
- `reading.py`: the files of other detectors. `keypoint_files.py` has the parsers, `json_keypoints.py` those
  of JSON, `long_json.py` keeps an hour of it out of memory; `keypoints.py` is the one check.
- `camera.py`: intrinsics.
- `frames.py`: the frames of a video, and who is who in them.
"""
