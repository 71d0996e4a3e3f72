"""Models that draw a picture from a text.

In: texts and seeds, one a picture. Out: RGB pictures, or RGBA ones with straight alpha.

Read `protocol.py` first, the protocol and its configuration. `pipelines.py` loads a model: any
text-to-image pipeline of diffusers (whose folder `pipeline_folders.py` checks before anything is read),
our own small one (`tiny.py`, trained by `data_gen.train_tiny`), or coloured shapes without a network
(`shapes.py`).
"""
