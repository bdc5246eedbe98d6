"""The heavy app: Django, and as much code and data at import as a grown project has (0.5-1 s, some 60 MB)."""

import gc
import os

import django
from django.conf import settings
from django.http import HttpResponse
from django.urls import path

# many small objects that the collector must visit: what an app's models, schemas and registries are made of
REGISTRY = {f"entry-{n}": {"id": n, "name": f"name {n}", "tags": [str(n), str(n + 1)]} for n in range(60_000)}

settings.configure(
    DEBUG=False,
    SECRET_KEY="benchmark",
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    MIDDLEWARE=["django.middleware.common.CommonMiddleware"],
    INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.auth", "django.contrib.sessions", "django.contrib.admin"],
    DATABASES={},
    LOGGING_CONFIG=None,
)
django.setup()

import django.contrib.admin.sites  # noqa: E402
import django.core.mail  # noqa: E402
import django.forms  # noqa: E402
import django.template.backends.django  # noqa: E402
import django.test.client  # noqa: E402
from django.core.asgi import get_asgi_application  # noqa: E402
from django.core.wsgi import get_wsgi_application  # noqa: E402


def answer(request):
    if request.path == "/gc":
        gc.collect()
    return HttpResponse(str(os.getpid()))


urlpatterns = [path("", answer), path("pid", answer), path("gc", answer)]
wsgi = get_wsgi_application()
asgi = get_asgi_application()
