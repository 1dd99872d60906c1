"""A worker that ignores SIGTERM and starts children that try to survive it, in its own session and in others."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

signal.signal(signal.SIGTERM, signal.SIG_IGN)
SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]
children = [subprocess.Popen(SLEEP), subprocess.Popen(SLEEP, start_new_session=True)]
orphan = subprocess.run(["sh", "-c", "sleep 600 >/dev/null 2>&1 & echo $!"], stdout=subprocess.PIPE, text=True)
pids = [os.getpid(), *(child.pid for child in children), int(orphan.stdout)]
Path(os.environ["PIDS"]).write_text(" ".join(map(str, pids)))
if os.environ.get("LEAVE"):
    sys.exit(0)
urllib.request.urlopen(os.environ["RUNPOD_WEBHOOK_GET_JOB"].replace("$ID", os.environ["RUNPOD_POD_ID"]))
time.sleep(600)
