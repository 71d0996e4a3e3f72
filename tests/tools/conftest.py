from stand_ins.untrained_pose import archive, weights  # noqa: F401
