"""Export: a Dockerfile, and what must not go into the image."""

from __future__ import annotations

import json
import re
import shlex

from pyworker.config.schema import AppConfig, RunConfig
from pyworker.export.plan import (
    APP_FOLDER,
    MADE_BY,
    USER_ID,
    Options,
    at_hand,
    beside,
    comment,
    header,
    plans,
    secret_files,
    tls_loss,
)

# **/: of any folder, without it of the outermost alone
_IGNORED = (
    "**/.git", "**/.venv", "**/__pycache__", "**/*.pyc", "**/.env", "**/.env.*", "**/.mypy_cache", "**/.pytest_cache",
    "**/.ruff_cache", "**/node_modules",
)  # fmt: skip
_WHEEL = "pyworker-*.whl"
# what a line of .dockerignore cannot say of a name, or would say something else by
_NO_PATTERN = re.compile(r"[\n\r\[\]\\]|\A[!#\s]|\s\Z")
# pip has no option for it: what the project needs, without the project
_FROM_PYPROJECT = (
    "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project'].get('dependencies', []), sep='\\n')"
)


def export(apps: tuple[AppConfig, ...], run: RunConfig, options: Options) -> dict[str, str]:
    all_plans = plans(apps, run, options, contained=True)
    more = [_what_is_installed(options)]
    more += [f"{p.app.name}: {name} comes from outside: docker run -e {name}" for p in all_plans for name in p.needed]
    more += [
        f"{p.app.name}: env_file {path} is not copied: docker run -v {shlex.quote(f'{beside(path)}:{inside}:ro')}"
        for p in all_plans
        for inside, path in p.files.items()
    ]
    more += [text for p in all_plans for text in tls_loss(p)]
    ports = " ".join(str(port) for port in dict.fromkeys(port for plan in all_plans for port in plan.ports))
    grace = max(plan.grace for plan in all_plans)
    if len(all_plans) == 1:
        arguments = list(all_plans[0].command)
    else:
        only = [word for plan in all_plans for word in ("--only", plan.app.name)]
        arguments = [options.file, *(only if len(all_plans) < len(options.every) else ())]
        arguments += ["--profile", options.profile] if options.profile else []
        arguments += ["--probe", f":{all_plans[0].probe}"]
        more.append(
            "bind and python of several apps: write 0.0.0.0 in the file, or run one app per container (--only NAME --bind …)"
        )
    lines = [
        "FROM docker.io/library/python:3.13-slim",
        "ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1",
        f"WORKDIR {APP_FOLDER}",
        "",
        "# what changes seldom comes first: this layer is built again only with other requirements, or another pyworker",
        f"COPY {' '.join(name for name in (options.requirements, _WHEEL) if name)} ./",
        f"RUN {_install(options.requirements)}",
        "COPY . .",
        f"RUN rm -f {_WHEEL} && python -m compileall -q .",
        "",
        f"USER {USER_ID}:{USER_ID}",
        *([f"EXPOSE {ports}"] if ports else []),
        "STOPSIGNAL SIGTERM",
        f"# docker run --stop-timeout {grace} --read-only",
        'ENTRYPOINT ["pyworker", "run"]',
        f"CMD {json.dumps(arguments, ensure_ascii=False)}",
    ]
    before = [
        "Before it is built, put pyworker's wheel beside it (the index has another project of that name):",
        "  pip wheel --no-deps -w . FOLDER_OF_PYWORKER",
    ]
    secret = [path for p in all_plans for path in secret_files(p).values()]
    secret += [at_hand(p.app, path) for p in all_plans for path in p.app.env_file]
    inside = [path for path in secret if not path.startswith(("/", "../"))]
    # a secret that no pattern met would be copied into the image: "?" is any character
    ignore = "".join(
        f"{name}\n" for name in dict.fromkeys((*_IGNORED, *(_NO_PATTERN.sub("?", path) for path in inside)))
    )
    return {
        "Dockerfile": comment([*header("docker", all_plans, tuple(more)), *before]) + "\n".join(lines) + "\n",
        ".dockerignore": comment([MADE_BY.format("docker")]) + ignore,
    }


def _what_is_installed(options: Options) -> str:
    if not options.requirements:
        return "what the app needs: this folder has neither requirements.txt nor pyproject.toml; pyworker alone is installed"
    return f"the Python of the app: the image has its own; {options.requirements} names what is installed"


def _install(requirements: str) -> str:
    """At once, so that pip says so when the app and pyworker cannot have the same versions."""
    if requirements == "pyproject.toml":
        return f'python -c "{_FROM_PYPROJECT}" > /requirements.txt && pip install -r /requirements.txt ./{_WHEEL}'
    return f"pip install {f'-r {requirements} ' if requirements else ''}./{_WHEEL}"
