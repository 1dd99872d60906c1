"""An LLM worker for RunPod Serverless, a RunPod endpoint for your own machine, and a load tester for both."""

__version__ = "0.1.0"
