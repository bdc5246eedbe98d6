from multiprocessing import cpu_count
from os import environ, path

HERE = path.dirname(path.abspath(__file__))


def max_workers():
    return cpu_count() * 2 + 1


bind = ["unix:/run/gunicorn/site.sock", "127.0.0.1:9001"]
workers = max_workers()
chdir = path.join(HERE, "src")
wsgi_app = "site.wsgi"
preload_app = True
max_requests = int(environ.get("MAX_REQUESTS", 500))
max_requests_jitter = int(max_requests * 0.1)
umask = 0o007
user = "www-data"
logconfig_dict = {"version": 1}
secure_scheme_headers = {"X-FORWARDED-PROTOCOL": "ssl"}


def on_starting(server):
    server.log.info("starting")


class Log:
    pass
