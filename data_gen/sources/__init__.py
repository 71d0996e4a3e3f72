"""Pictures that exist already, ready to be collected into a dataset.

In: a folder or file of pictures, parquet tables, webdataset shards, or rendered objects. Out: `Item`s in
a fixed order, each with an id, what is known about it, and a way to open it.

`pictures.py`, read first, finds and opens them. The readers of files, tables and shards are those of
`dd3g.picture.sources`, which distillation reads with too.
"""
