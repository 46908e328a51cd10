"""Puts the API together: routes, errors, the page and the background tasks as one ASGI application."""

import logging
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.routing import Match, Route

from contract import traces
from service.api import problems
from service.api.gateway import Gateway
from service.api.guard import Guard
from service.api.shapes.table import ROUTERS
from service.errors import InvalidRequest, MethodNotAllowed, NotFound, ServiceError
from service.logs import setup
from service.settings import Settings

logger = logging.getLogger(__name__)
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"]
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
WEB = Path(__file__).parent.parent / "web"
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'self'",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def create_app(settings: Settings) -> FastAPI:
    """The application; its state holds the Gateway, opened with the lifespan."""

    @asynccontextmanager
    async def lifespan(app: FastAPI):
        setup(settings.log_level)
        traces.begin(settings.otlp_endpoint, "wan-gateway")
        await app.state.gateway.start()
        yield
        await app.state.gateway.stop()

    app = FastAPI(
        title="Wan video generation",
        version="1",
        description="Videos from text, pictures and clips with Wan; see docs/clients.md for the other servers whose API this is too.",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.gateway = Gateway(settings)
    app.add_middleware(Guard, gateway=app.state.gateway)
    for router in reversed(ROUTERS):  # a fixed path such as /videos/models before /videos/{id}
        app.include_router(router)
    _add_errors(app)
    _add_page(app)
    return app


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(ServiceError)
    async def service_error(request: Request, error: ServiceError):
        return problems.answer(error, request.url.path)

    @app.exception_handler(RequestValidationError)
    async def bad_parameter(request: Request, error: RequestValidationError):
        first = error.errors()[0]
        allowed = first["msg"].removeprefix("Input should be ")
        return await service_error(request, InvalidRequest(str(first["loc"][-1]), first.get("input"), allowed))

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException):
        if error.status_code == 405:
            answer = await service_error(request, MethodNotAllowed(f"{request.method} is not allowed here"))
        elif error.status_code == 404:
            answer = await service_error(request, NotFound(f"there is nothing at {request.url.path[:100]!r}"))
        else:
            answer = await service_error(request, problems.of_status(error.status_code, str(error.detail)))
        answer.headers.update(error.headers or {})
        return answer

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception):
        logger.error("unexpected error", extra={"path": request.url.path}, exc_info=error)
        return JSONResponse(ServiceError("an unexpected error; see the server's log").envelope(), 500)

    # BentoML serves its own routes beside this application; under /v1 the answer to a wrong path is ours
    @app.api_route("/v1/{path:path}", methods=METHODS, include_in_schema=False)
    async def nothing_here(request: Request, path: str):
        known = [route for router in ROUTERS for route in router.routes]
        methods = {
            name
            for route in known
            if isinstance(route, Route) and route.matches(request.scope)[0] is Match.PARTIAL
            for name in route.methods or ()
        }
        if methods:
            raise HTTPException(405, headers={"Allow": ", ".join(sorted(methods))})
        raise NotFound("there is nothing here; see /openapi.json")


def _add_page(app: FastAPI) -> None:
    @app.get("/metrics", include_in_schema=False)
    async def metrics(request: Request):
        return PlainTextResponse(await request.app.state.gateway.metrics(), media_type=METRICS_TYPE)

    @app.get("/", include_in_schema=False)
    async def page():
        return FileResponse(WEB / "index.html", headers=PAGE_HEADERS)

    app.mount("/web", StaticFiles(directory=WEB), name="web")
