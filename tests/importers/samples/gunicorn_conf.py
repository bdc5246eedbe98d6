import json
import multiprocessing
import os
from pathlib import Path

BASE_DIR = Path(__file__).resolve().parent

host = os.getenv("HOST", "0.0.0.0")
port = os.getenv("PORT", "8080")
bind_from_environment = os.getenv("BIND")
if bind_from_environment:
    use_bind = bind_from_environment
else:
    use_bind = f"{host}:{port}"

cores = multiprocessing.cpu_count()
per_core = float(os.getenv("WORKERS_PER_CORE", "1"))
concurrency = max(int(per_core * cores), 2)

bind = use_bind
workers = concurrency
worker_class = "uvicorn.workers.UvicornWorker"
worker_tmp_dir = "/dev/shm"
loglevel = os.getenv("LOG_LEVEL", "info")
accesslog = os.getenv("ACCESS_LOG", "-") or None
errorlog = "-"
graceful_timeout = int(os.getenv("GRACEFUL_TIMEOUT", "120"))
timeout = int(os.getenv("TIMEOUT", "120"))
keepalive = int(os.getenv("KEEP_ALIVE", "5"))
raw_env = ["DJANGO_SETTINGS_MODULE=x.settings", "PRICE=5$"]

print(json.dumps({"workers": workers}))
