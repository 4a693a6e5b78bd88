"""How a route gets at the model that is served."""

from typing import Annotated

from fastapi import Depends, Request

from octavo.gpt.server.serving import Serving


def _serving(request: Request) -> Serving:
    serving: Serving = request.app.state.serving
    return serving


Asked = Annotated[Serving, Depends(_serving)]
