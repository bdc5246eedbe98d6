"""importers/detect.py: the usual shapes of Python projects."""

from __future__ import annotations

import pytest

from pyworker.importers.detect import detect, is_source, node_program

DJANGO = {
    "manage.py": "import os\nif __name__ == '__main__':\n    pass\n",
    "shop/__init__.py": "",
    "shop/settings.py": 'WSGI_APPLICATION = "shop.wsgi.application"\n',
    "shop/wsgi.py": "from django.core.wsgi import get_wsgi_application\napplication = get_wsgi_application()\n",
    "shop/asgi.py": "from django.core.asgi import get_asgi_application\napplication = get_asgi_application()\n",
}


@pytest.mark.parametrize(
    ("sources", "what", "target", "factory", "cwd"),
    [
        (DJANGO, "Django", "shop.wsgi:application", False, ""),
        ({k: v for k, v in DJANGO.items() if "wsgi.py" not in k}, "Django", "shop.asgi:application", False, ""),
        ({"manage.py": "", "shop/settings.py": DJANGO["shop/settings.py"]}, "Django", "shop.wsgi:application", False, ""),
        ({"main.py": "from fastapi import FastAPI\napp = FastAPI()\n"}, "FastAPI", "main:app", False, ""),
        ({"app/main.py": "import fastapi\napi: object = fastapi.FastAPI(title='x')\n", "app/__init__.py": ""}, "FastAPI", "app.main:api", False, ""),
        ({"src/shop/__init__.py": "", "src/shop/web.py": "app = Starlette()\n"}, "Starlette", "shop.web:app", False, "src"),
        ({"app.py": "from flask import Flask\napp = Flask(__name__)\nif __name__ == '__main__':\n    app.run()\n"}, "Flask", "app:app", False, ""),
        ({"shop/__init__.py": "def create_app(config=None):\n    app = Flask('x')\n    return app\n"}, "Flask", "shop:create_app", True, ""),
        ({"backend/main.py": "from database import x\nfrom fastapi import FastAPI\napp = FastAPI()\n", "backend/database.py": ""}, "FastAPI", "main:app", False, "backend"),
        ({"backend/main.py": "from backend.database import x\napp = FastAPI()\n", "backend/database.py": ""}, "FastAPI", "backend.main:app", False, ""),
        ({"shop/__init__.py": "def create_app(name):\n    return Flask('x')\n", "wsgi.py": "from shop import create_app\napp = create_app('production')\n"}, "an app", "wsgi:app", False, ""),
        ({**DJANGO, "shop/asgi.py": "django_app = get_asgi_application()\napplication = ProtocolTypeRouter({'http': django_app})\n"}, "Django Channels", "shop.asgi:application", False, ""),
        ({f"backend/{k}": v for k, v in DJANGO.items()}, "Django", "shop.wsgi:application", False, "backend"),
        ({"my-app/main.py": "app = FastAPI()\n"}, "FastAPI", "main:app", False, "my-app"),
        ({"main.py": "api = FastAPI()\napp = FastAPI()\n"}, "FastAPI", "main:app", False, ""),
        ({"main.py": "application = app = Flask(__name__)\n"}, "Flask", "main:application", False, ""),
        ({"app.py": "import falcon\napp = falcon.App()\napp.add_route('/', x)\n"}, "Falcon", "app:app", False, ""),
        ({"app.py": "import falcon.asgi\napi = falcon.asgi.App()\n"}, "Falcon", "app:api", False, ""),
        ({"app.py": "from blacksheep import Application\napp = Application()\n"}, "BlackSheep", "app:app", False, ""),
        ({"app.py": "from emmett import App as Web\napp = Web(__name__)\n"}, "Emmett", "app:app", False, ""),
        ({"app.py": "from strawberry.asgi import GraphQL\ndef create_app():\n    return GraphQL(schema)\n"}, "Strawberry", "app:create_app", True, ""),
        ({"app.py": "from shiny import App, ui\napp = App(ui.page_fluid(), server)\n"}, "Shiny", "app:app", False, ""),
        ({"x.py": "async def application(scope, receive, send):\n    pass\n"}, "an ASGI app", "x:application", False, ""),
        ({"x.py": "def application(environ, start_response):\n    pass\n"}, "a WSGI app", "x:application", False, ""),
    ],
)  # fmt: skip
def test_the_most_likely_app_comes_first(
    sources: dict[str, str], what: str, target: str, factory: bool, cwd: str
) -> None:
    first = detect(sources)[0]
    assert (first.what, first.target, first.factory, first.cwd) == (what, target, factory, cwd)


def test_a_script_is_the_last_resort() -> None:
    found = detect({"tick.py": "if __name__ == '__main__':\n    pass\n", "main.py": "app = Flask(__name__)\n"})
    assert [f.what for f in found] == ["Flask", "script"]
    assert found[1].script == "tick.py"


@pytest.mark.parametrize(
    ("sources", "what", "command"),
    [
        ({"app.py": "import streamlit as st\nst.title('x')\n"}, "Streamlit", ("streamlit", "run", "app.py", "--server.headless", "true")),
        (
            {"lib.py": "import streamlit as st\ndef show(): st.title('x')\n", "pages/1_a.py": "import streamlit as st\nst.title('a')\n",
             "z.py": "import streamlit as st\nst.title('z')\n", "Home.py": "from streamlit import title\ntitle('x')\n"},
            "Streamlit", ("streamlit", "run", "Home.py", "--server.headless", "true"),
        ),
        ({"app.py": "import chainlit as cl\n@cl.on_message\nasync def main(message): ...\n"}, "Chainlit", ("chainlit", "run", "app.py", "--headless")),
        ({"app.py": "import panel as pn\npn.panel('x').servable()\n"}, "Panel", ("panel", "serve", "app.py")),
        ({"app.py": "from bokeh.io import curdoc\ncurdoc().add_root(x)\n"}, "Bokeh", ("bokeh", "serve", "app.py")),
    ],
)  # fmt: skip
def test_what_its_own_program_serves_is_that_command(sources: dict[str, str], what: str, command: tuple[str, ...]) -> None:
    first = detect(sources)[0]
    assert (first.what, first.command) == (what, command)


def test_socketio_with_flask_is_the_script_that_has_websockets() -> None:
    main = "if __name__ == '__main__':\n    socketio.run(app)\n"
    one = "app = Flask(__name__)\nsocketio = SocketIO(app)\n"
    for sources in ({"app.py": one + main}, {"shop/__init__.py": one, "app.py": f"from shop import app, socketio\n{main}"}):
        first = detect(sources)[0]
        assert (first.what, first.script) == ("Flask-SocketIO", "app.py")
    assert detect({"app.py": one})[0].target == "app:app"


def test_socketio_goes_round_the_app_of_another_framework() -> None:
    found = detect({"main.py": "app = FastAPI()\nserver = AsyncServer()\nboth = socketio.ASGIApp(server, app)\n"})
    assert [(f.what, f.target) for f in found] == [("Socket.IO", "main:both"), ("FastAPI", "main:app")]


def test_what_keeps_its_sessions_in_memory_is_told_from_the_app_it_is_mounted_in() -> None:
    main = "import frontend\napp = FastAPI()\nfrontend.init(app)\n"
    for library, call, what in (("nicegui", "ui.run_with(app)", "NiceGUI"), ("gradio", "gr.mount_gradio_app(app, page)", "Gradio"), ("chainlit", "mount_chainlit(app, 'x.py', '/')", "Chainlit")):
        found = detect({"main.py": main, "frontend.py": f"import {library}\ndef init(app):\n    {call}\n"})
        assert [(f.what, f.target) for f in found] == [(what, "main:app")]
    assert detect({"main.py": main, "frontend.py": "def init(app):\n    app.run_with(3)\n"})[0].what == "FastAPI"


def test_settings_that_are_no_python_of_today_are_passed_over() -> None:
    settings = 'print "for Python 2"\n' + DJANGO["shop/settings.py"]
    assert detect({"manage.py": "", "shop/settings.py": settings}) == []


def test_the_same_name_of_another_module_is_no_app() -> None:
    for text in ("from aiohttp.web import Application\napp = Application()\n", "from textual.app import App\napp = App()\n"):
        assert detect({"main.py": text}) == []


def test_a_folder_with_one_program_is_that_script() -> None:
    (found,) = detect({"serve.py": '"""Serves."""\nimport x\nx.run(8000)\n', "lib.py": "def f(): pass\n"})
    assert (found.what, found.script) == ("script", "serve.py")
    assert detect({"a.py": "x.run()\n", "b.py": "x.run()\n"}) == []


@pytest.mark.parametrize(
    "body",
    ["for i in count():\n    print(i)\n", "with serve() as s:\n    s.forever()\n", "try:\n    main()\nexcept KeyboardInterrupt:\n    pass\n"],
)
def test_what_a_script_does_may_stand_in_a_loop_or_a_block(body: str) -> None:
    library = "try:\n    import fast\nexcept ImportError:\n    fast = None\n"
    assert [f.script for f in detect({"tick.py": body, "lib.py": library})] == ["tick.py"]


def test_a_factory_that_needs_arguments_is_none() -> None:
    assert detect({"x.py": "def create_app(config):\n    return Flask('x')\n"}) == []


def test_what_is_no_python_is_passed_over() -> None:
    assert detect({"x.py": "def (", "y.py": "\0"}) == []


@pytest.mark.parametrize(
    "path", ["tests/app.py", ".venv/x.py", "a/node_modules/x.py", "test_app.py", "x.txt", "lib/site-packages/x.py"]
)
def test_tests_and_others_code_are_not_read(path: str) -> None:
    assert not is_source(path)


def test_a_package_that_names_no_start_asks_nobody_for_it() -> None:  # pytest's stdin cannot be read
    (found,) = node_program('{"scripts": {"start": null}}', ["index.js"])
    assert found.command == ("node", "index.js")


@pytest.mark.parametrize(
    ("main", "names", "program"),
    [
        ("index.js", ["app.js"], "app.js"),  # what `npm init` writes into an empty folder
        ("index.js", ["server.js"], "server.js"),
        ("lib.js", ["lib.js", "server.js"], "server.js"),  # npm start does not look at `main` then
        ("index.js", ["index.js", "app.js"], "index.js"),
        ("dist/x.js", ["index.js"], "dist/x.js"),  # may still have to be built
        ("index.js", [], "index.js"),
    ],
)
def test_the_main_module_that_npm_init_names_counts_when_it_is_there(main: str, names: list[str], program: str) -> None:
    (found,) = node_program(f'{{"main": "{main}"}}', names)
    assert found.command == ("node", program)
