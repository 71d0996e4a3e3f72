"""The picture factory: texts, existing pictures or meshes go in, shards of training data come out."""
