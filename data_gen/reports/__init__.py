"""What a finished or unfinished dataset holds.

In: a dataset, read through its manifests. Out: a list of problems (`verify.py`), figures (`figures.py`),
and one HTML page (`stats.py`).

Read `figures.py` first.
"""
