"""What authors' code computes on made-up weights, kept as arrays, against what this project computes.

Arrays of a folder go in, differences come out. Read `golden.py` first, then the file of a network.
"""
