"""Pictures to 3D Gaussians over HTTP: `dd3g serve`.

`worker.py`, read first, makes the files, one picture after another; `app.py` is the HTTP around it,
`page.html` the page that a browser gets, `__main__.py` the command.
"""
