"""The writer of a dataset: a pure function of prompts and options, killed and resumed at any moment.

In: a `DatasetSpec` (`dataset.py`): prompts, options, and the backend that draws and mattes. Out: a folder
or bucket prefix of webdataset shards `pictures-00000.tar`, each with a manifest `pictures-00000.json`,
one `index.json` and a card.

Read `generate.py` first: every process makes its own shards (`shard_worker.py`), then all replace near
duplicates together (`deduplicate.py`). `manifest.py` is the record of one shard, `storage.py` the folder
or bucket, `process_group.py` who the other processes are, and `merge.py` makes one dataset of several.
"""
