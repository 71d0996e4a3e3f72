"""Data sets and motion capture in; `Recording` (one camera's view of a take) and `Motion` (frames) out.

- `recording.py`, read first: the form that every data set with pictures is brought into, by `h36m.py`,
  `mpi3dhp.py` and `threedpw.py`; `scorehmr.py` reads annotations and predictions.
- `motion.py`: motion capture without pictures, from the CMU archive; `bvh.py` and `acclaim.py` read files.
- `synthesis.py`: motion seen by virtual cameras, which the networks are trained and measured on.
- `arrays.py`: npz files and pickles of strangers, read without running what is in them.
"""
