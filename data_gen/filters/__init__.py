"""From a drawn picture to a cut-out that is good enough to train on, or the reason why it is not.

In: RGB or RGBA pictures. Out: framed RGBA cut-outs whose soft edges are cleaned (`mattes.py`), their
scores, and for each rejected one a reason code.

Read `rules.py` first, the scores, thresholds and reasons. `learned_scores.py` adds CLIP, aesthetic and
safety scores where their weights are configured, and `duplicates.py` finds near duplicates in a whole
dataset.
"""
