"""Settings of the shop's gunicorn."""

import multiprocessing
import os

wsgi_app = "shop.wsgi:application"
bind = f"0.0.0.0:{os.environ.get('APP_PORT', '8000')}"
workers = multiprocessing.cpu_count() * 2 + 1
worker_class = "gthread"
threads = int(os.getenv("THREADS", 4))
timeout = 30
graceful_timeout = 2 * 45
keepalive = 65
max_requests = 1_000
max_requests_jitter = max_requests // 10
preload_app = True
accesslog = "-"
errorlog = "-"
loglevel = os.environ.get("LOG_LEVEL", "info")
raw_env = ["A=1", "B=two"]
forwarded_allow_ips = "10.0.0.1,10.0.0.2"
proc_name = "shop"
pidfile = "/tmp/gunicorn.pid"
limit_request_line = 8190
worker_tmp_dir = os.path.join("/dev", "shm")
helper = 12

if os.environ.get("DEBUG"):
    reload = True


def post_fork(server, worker):
    server.log.info("forked")
