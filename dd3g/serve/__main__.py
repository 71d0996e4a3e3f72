"""A server for pictures of objects: `dd3g serve`."""

from __future__ import annotations

import errno
import socket
import sys
from typing import Annotated

import typer

import dd3g
from dd3g.command.run import Device, command_line
from dd3g.command.signals import signals_stop
from dd3g.errors import UserError
from dd3g.infer import DEFAULT_WEIGHTS


def serve(
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 for all of this machine.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 8000,
    weights: Annotated[str, typer.Option(help="Shipped name, folder or hub id.")] = DEFAULT_WEIGHTS,
    device: Device = "auto",
    no_matte: Annotated[
        bool, typer.Option("--no-matte", help="Take a picture without alpha whole, as the object.")
    ] = False,
    max_waiting: Annotated[int, typer.Option(help="Most pictures at a time; others must try again.")] = 32,
    max_megabytes: Annotated[float, typer.Option(help="Largest picture file.")] = 20.0,
    max_seconds: Annotated[float, typer.Option(help="Longest wait for an answer.")] = 60.0,
) -> None:
    """Serve a page to drop pictures on, and POST /generate for programs, until Ctrl-C, SIGTERM or SIGHUP.

    Needs the extra `serve`. Nothing that a caller sends is taken for a path, and no connection is opened.
    """
    for name, value in (("waiting", max_waiting), ("megabytes", max_megabytes), ("seconds", max_seconds)):
        if not 0 < value < float("inf"):
            raise UserError(f"--max-{name} {value:g} is out of range: give a number above 0")
    try:
        import uvicorn

        from dd3g.serve.app import Limits, make_app
    except ImportError as error:
        raise UserError(f"dd3g serve needs the extra 'serve' ({error}): pip install 'dd3g[serve]'") from error
    from dd3g.models import require_model
    from dd3g.nn.checkpoint import find_device
    from dd3g.pepd import Generator
    from dd3g.serve.worker import Worker

    if not host.strip():
        raise UserError(
            "--host is empty: give an address, such as 127.0.0.1, or 0.0.0.0 for all of this machine"
        )
    if not no_matte:
        require_model("u2netp")
    with _listening(host, port) as listener:
        place = str(find_device(device))
        generator = Generator.from_pretrained(weights, device=place)
        worker = Worker(generator, "none" if no_matte else "auto")
        try:
            worker.warm_up()
            if generator.captured is not None:
                typer.echo(f"warmed up in {generator.captured.seconds:.1f} s", err=True)
            about = {"version": dd3g.__version__, "weights": weights, "device": place}
            app = make_app(worker, about, Limits(max_waiting, max_megabytes, max_seconds))
            server = uvicorn.Server(
                uvicorn.Config(
                    app,
                    log_level="warning",
                    access_log=False,
                    server_header=False,
                    lifespan="on",
                    timeout_graceful_shutdown=int(max_seconds) + 1,
                )
            )
            at = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
            # uvicorn raises the signal that stopped it once more when all is answered: no error then.
            with signals_stop(instead=lambda number: setattr(server, "should_exit", True)):
                typer.echo(f"serving {weights} on {at} (Ctrl-C stops it)")
                sys.stdout.flush()
                server.run(sockets=[listener])
        finally:
            worker.close()
    typer.echo("stopped: answered every picture that had arrived")


def _listening(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, OverflowError, TypeError) as error:  # the last for a name that IDNA cannot encode
        reason = getattr(error, "strerror", None) or error
        number = getattr(error, "errno", None)
        of_port = isinstance(error, OverflowError) or number in (errno.EADDRINUSE, errno.EACCES)
        advice = "--port, or 0 for a free one" if of_port else "--host, such as 127.0.0.1"
        raise UserError(f"cannot listen on {host} port {port} ({reason}): give another {advice}") from error


main = command_line(serve, "dd3g serve", needs_words=False)

if __name__ == "__main__":
    sys.exit(main())
