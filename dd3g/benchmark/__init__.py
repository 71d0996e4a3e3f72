"""How fast is it on this machine? `dd3g benchmark infer`, `rasterize`, `pose`; read `__main__.py` first."""
