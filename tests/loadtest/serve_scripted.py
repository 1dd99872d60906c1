"""The scripted server as a process of its own: python serve_scripted.py '{"exec_s": 0.05, "workers": 2}'. Prints its
URL."""

import asyncio
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.loadtest.scripted import JobScript, Script, ScriptedRunPod


async def main() -> None:
    given = json.loads(sys.argv[1]) if len(sys.argv) > 1 else {}
    job = {key: given.pop(key) for key in ("exec_s", "delay_s", "status", "error") if key in given}
    if "chunks" in given:
        job["chunks"] = [tuple(chunk) for chunk in given.pop("chunks")]
    server = await ScriptedRunPod(Script(job=lambda _: JobScript(**job), **given)).start()
    print(server.url, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
