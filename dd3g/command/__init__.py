"""What commands share: options with typer, configurations with OmegaConf, errors, signals and progress.

A command is a function that `run_command` calls; one with a configuration goes through `launch` in
`configuration.py`. Read `run.py` first.
"""
