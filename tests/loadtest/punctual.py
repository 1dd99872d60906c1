"""A worker process for the local endpoint that takes a job, sleeps as long as its input says, answers, and takes the
next.

Unlike the SDK's stock loop, which pauses up to a second between jobs, it keeps time: the forecast is compared with a
queue and not with
a pause. It speaks the worker's protocol directly, over one connection.
"""

import asyncio
import os

import aiohttp


async def main() -> None:
    pod = os.environ["RUNPOD_POD_ID"]

    def address(name: str, job_id: str = "") -> str:
        return os.environ[name].replace("$RUNPOD_POD_ID", pod).replace("$ID", job_id or pod)

    headers = {"Authorization": os.environ["RUNPOD_AI_API_KEY"]}
    async with aiohttp.ClientSession(headers=headers) as session:

        async def ping() -> None:
            while True:
                async with session.get(address("RUNPOD_WEBHOOK_PING")) as reply:
                    await reply.read()
                await asyncio.sleep(int(os.environ.get("RUNPOD_PING_INTERVAL", "1000")) / 1000)

        pinging = asyncio.create_task(ping())
        while not pinging.done():
            async with session.get(address("RUNPOD_WEBHOOK_GET_JOB") + "&job_in_progress=0") as reply:
                if reply.status != 200:
                    continue
                job = await reply.json()
            await asyncio.sleep(job["input"]["sleep_ms"] / 1000)
            async with session.post(
                address("RUNPOD_WEBHOOK_POST_OUTPUT", job["id"]) + "&isStream=false", json={"output": "slept"}
            ) as reply:
                await reply.read()


asyncio.run(main())
