"""Run by the interpreter that has Horizon: signs in and does what a browser would, without a web server.

Each line of standard input is {"get": PATH} or {"post": PATH, "form": {…}}, as the page's script sends it
where "modal" is true; each line of standard output says where that led: {"status", "page", "said", "wrong"},
with the messages that the page and its form show.  The user and Keystone are an RC file's variables.
"""

import json
import os
import re
import sys
from pathlib import Path

os.environ["DJANGO_SETTINGS_MODULE"] = "horizon_settings"
# Last, since files here have the names of packages.
sys.path.append(str(Path(__file__).parent))
import django

django.setup()
from django.test import Client  # noqa: E402

browser = Client()
# Horizon remembers the region that was chosen last.
browser.cookies["services_region"] = os.environ["OS_REGION_NAME"]
entered = {"auth_type": "credentials", "region": "default"}
entered |= {"username": os.environ["OS_USERNAME"], "password": os.environ["OS_PASSWORD"]}
assert browser.post("/auth/login/", entered).status_code == 302

for line in sys.stdin:
    asked = json.loads(line)
    headers = {"x-requested-with": "XMLHttpRequest"} if asked.get("modal") else {}
    if "post" in asked:
        answer = browser.post(asked["post"], asked["form"], headers=headers, follow=True)
    else:
        answer = browser.get(asked["get"], headers=headers, follow=True)
    page = answer.content.decode()
    told = [
        " ".join(re.sub("<[^>]*>", " ", text).split())
        for text in re.findall(r'<div class="alert (.*?)</div>', page, re.DOTALL)
    ]
    form = answer.context.get("form") if answer.context is not None else None
    wrong = {name: list(map(str, texts)) for name, texts in form.errors.items()} if form is not None else {}
    outcome = {"status": answer.status_code, "page": page, "said": told, "wrong": wrong}
    print(json.dumps(outcome), flush=True)
