"""llmpod: a vLLM worker for RunPod Serverless, an endpoint for your own machine, and a load tester."""
