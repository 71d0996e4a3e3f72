"""A teacher's answers: pictures in, shards of quadruples out, by processes that may be killed at any time.

`inputs.py` finds the pictures, `ode.py` answers one, `mattes.py` cuts its views out, `verify.py` asks again
whether a set still holds. Read `generate_shards.py` first.
"""
