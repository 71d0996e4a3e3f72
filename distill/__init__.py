"""Distillation: a multi-view diffusion teacher becomes a generator.

    pictures, renders -> simulate -> quadruples -> train -> a generator     dd3g simulate, dd3g train
    renders -> train_teacher -> a teacher                                   dd3g train-teacher
    objects -> evaluation -> how good a generator is                        dd3g evaluate

Read `train.py` first, then `objective.py`; the paper's quadruples are in `quadruples.py`.
"""
