"""What pip calls a module that is missing, where its name is another."""

from __future__ import annotations

# as far as most apps go; the module's own name may be a stranger's on PyPI
_DISTRIBUTIONS = {
    "attr": "attrs", "bs4": "beautifulsoup4", "corsheaders": "django-cors-headers", "Crypto": "pycryptodome",
    "cv2": "opencv-python-headless", "dateutil": "python-dateutil", "debug_toolbar": "django-debug-toolbar",
    "distutils": "setuptools", "dotenv": "python-dotenv", "environ": "django-environ", "git": "GitPython",
    "jose": "python-jose", "jwt": "PyJWT", "magic": "python-magic", "multipart": "python-multipart",
    "MySQLdb": "mysqlclient", "OpenSSL": "pyOpenSSL", "PIL": "pillow", "pkg_resources": "setuptools",
    "psycopg2": "psycopg2-binary", "rest_framework": "djangorestframework", "serial": "pyserial",
    "sklearn": "scikit-learn", "socketio": "python-socketio", "yaml": "PyYAML", "zmq": "pyzmq",
}  # fmt: skip


def distribution_of(module: str) -> str:
    """Return what to give to `pip install` for a module."""
    return _DISTRIBUTIONS.get(module, module)
