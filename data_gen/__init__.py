"""Training pictures: texts, existing pictures or meshes go in, shards of training data come out.

    prompts -> picture model -> matte -> filters -> shards -> report        dd3g data synthesize
    pictures that exist      -> matte -> filters -> shards -> report        dd3g data collect
    meshes  -> rendered views with depth          -> shards                 dd3g data render
    nothing -> made-up objects                    -> meshes                 dd3g data objects

Each room below has one page, the docstring of its `__init__`. A room imports only from those above it:

- `prompts`: text prompts from a grammar, a list of your own, or a language model;
- `filters`: mattes, quality scores and near duplicates;
- `picture_models`: what draws a picture from a text;
- `meshes`: rendered views of meshes;
- `sources`: pictures that exist already;
- `shards`: the writer of a dataset, which may be killed and resumed, on any number of processes;
- `reports`: checks of a dataset, its figures and a page about them.

`synthesize`, `collect`, `render` and `make_objects` wire the rooms together: read `synthesize.py` first, then
`shards`.
"""
