"""Horizon's own settings, with those that an operator makes."""

import os
import tempfile

from openstack_dashboard.settings import *  # noqa: F403

OPENSTACK_KEYSTONE_URL = os.environ["OS_AUTH_URL"]
OPENSTACK_CINDER_FEATURES = {"enable_backup": True}
ALLOWED_HOSTS = ["*"]
SECRET_KEY = "of-nobody-but-this-process"
STATIC_ROOT = tempfile.gettempdir()
# What styles pages needs tools that are not there.
COMPRESS_ENABLED = False
COMPRESS_PRECOMPILERS = ()
CACHES = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}
