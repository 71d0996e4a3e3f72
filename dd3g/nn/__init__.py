"""Blocks that the teacher and the generator share, and networks on disk. Read `blocks.py` first."""
