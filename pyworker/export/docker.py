"""Export: a Dockerfile, and what must not go into the image."""

from __future__ import annotations

from pyworker.config.schema import AppConfig, RunConfig
from pyworker.export.plan import PROBE_PORT, USER_ID, Options, comment, header, plans

_IGNORED = (
    ".git",
    ".venv",
    "__pycache__",
    "*.pyc",
    ".env",
    ".env.*",
    ".mypy_cache",
    ".pytest_cache",
    ".ruff_cache",
    "node_modules",
)


def export(apps: tuple[AppConfig, ...], run: RunConfig, options: Options) -> dict[str, str]:
    """Return the files by name."""
    all_plans = plans(apps, run, options, contained=True)
    more = ["the Python of the app: the image has its own; requirements.txt names what is installed"]
    more += [f"{p.app.name}: {name} comes from outside: docker run -e {name}" for p in all_plans for name in p.needed]
    more += [
        f"{p.app.name}: env_file {f} is not copied: docker run --env-file" for p in all_plans for f in p.app.env_file
    ]
    ports = " ".join(str(port) for port in dict.fromkeys(port for plan in all_plans for port in plan.ports))
    grace = max(plan.grace for plan in all_plans)
    binds = [f'"--bind", "0.0.0.0:{port}"' for port in all_plans[0].ports] if len(all_plans) == 1 else []
    if len(all_plans) > 1:
        more.append(
            "bind of several apps: write 0.0.0.0 in the file, or run one app per container (--only NAME --bind …)"
        )
    command = ", ".join([f'"{options.file}"', f'"--probe", ":{PROBE_PORT}"', *binds])
    lines = [
        "FROM docker.io/library/python:3.13-slim",
        "ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1",
        "WORKDIR /app",
        "",
        "# what changes seldom comes first: this layer is built again only with other requirements",
        "COPY requirements.txt ./",
        "RUN pip install -r requirements.txt pyworker",
        "COPY . .",
        "RUN python -m compileall -q .",
        "",
        f"USER {USER_ID}:{USER_ID}",
        *([f"EXPOSE {ports}"] if ports else []),
        "STOPSIGNAL SIGTERM",
        f"# docker run --stop-timeout {grace} --read-only",
        'ENTRYPOINT ["pyworker", "run"]',
        f"CMD [{command}]",
    ]
    ignore = "".join(f"{name}\n" for name in _IGNORED)
    return {
        "Dockerfile": comment(header("docker", all_plans, tuple(more))) + "\n".join(lines) + "\n",
        ".dockerignore": ignore,
    }
