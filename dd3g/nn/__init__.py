"""Blocks that the teacher and the generator share, and networks on disk.

Read `blocks.py` first. `multiview_unet.py` is the published teachers' U-Net, of `unet_blocks.py`, and
`checkpoint.py` finds, loads and saves the folder of a network.
"""
