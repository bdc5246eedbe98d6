"""Small apps of real frameworks, made when asked: importing one must not import the others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def flask_app() -> Any:
    from flask import Flask, Response, request, stream_with_context

    app = Flask("frameworks")

    @app.get("/hello/<name>")
    def hello(name: str) -> str:
        return f"hello {name}"

    @app.post("/form")
    def form() -> str:
        return "".join(f"{name}{value}" for name, value in sorted(request.form.items()))

    @app.get("/stream")
    def stream() -> Response:
        def parts() -> Iterator[str]:
            yield f"{request.path} "
            for n in range(3):
                yield f"{n} "

        return Response(stream_with_context(parts()))

    @app.get("/boom")
    def boom() -> str:
        raise RuntimeError("boom")

    return app


def django_app(asgi: bool = False) -> Any:
    import django
    from django.conf import settings
    from django.core.handlers.asgi import ASGIHandler
    from django.core.handlers.wsgi import WSGIHandler
    from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
    from django.urls import path

    def hello(request: HttpRequest) -> HttpResponse:
        return HttpResponse(f"hello {request.GET.get('name', '')}")

    def stream(request: HttpRequest) -> StreamingHttpResponse:
        return StreamingHttpResponse(f"{n} " for n in range(3))

    def upload(request: HttpRequest) -> HttpResponse:
        return HttpResponse(str(len(request.read())))

    if not settings.configured:
        settings.configure(
            ALLOWED_HOSTS=["*"], SECRET_KEY="test", DATA_UPLOAD_MAX_MEMORY_SIZE=None, LOGGING_CONFIG=None,
            ROOT_URLCONF=type("urls", (), {"urlpatterns": [path("hello", hello), path("stream", stream), path("upload", upload)]}),
            MIDDLEWARE=["django.middleware.common.CommonMiddleware"],
        )  # fmt: skip
        django.setup(set_prefix=False)
    return ASGIHandler() if asgi else WSGIHandler()
