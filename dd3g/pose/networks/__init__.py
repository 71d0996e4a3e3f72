"""The networks behind the methods: poses or keypoints in, noise, poses or errors out.

Each has a config, `save_pretrained` and `from_pretrained`; the shipped weights are in `dd3g/weights/pose-*`.

- `prior.py`, read first: the unconditional denoiser of poses that guided sampling and ZeDO use.
- `lifter.py`: 2D keypoints to one 3D pose; `difficulty.py`: how wrong it is at each joint (restoration).
- `chosen.py`: which of them run, those that ship or others; `pretrained.py`: how they are kept.
- `rotation_denoiser.py`: the conditional denoiser of a body's joint rotations (recovery).
"""
